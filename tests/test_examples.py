"""The programs in examples/, on small images of the bundled room."""

from __future__ import annotations

import csv
import importlib.util
import io
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest

from relocalizer import load_map
from relocalizer.camera import Camera
from slam.config.schema import InputConfig, SlamConfig
from slam.input.open_source import open_source

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
STEP, IMAGES, LONGEST = 4, 16, 60
SIZE = (320, 240)


def main_of(name: str) -> Callable[[list[str]], None]:
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[[list[str]], None] = module.main
    return main


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Small images of the room, and the middle of every second of them, as of another camera."""
    whole, middle = (tmp_path_factory.mktemp(name) for name in ("whole", "middle"))
    config = InputConfig(prefetch_frames=0)
    for k, frame in enumerate(
        open_source(ROOT / "sequences" / "room_loop", config=config, stride=STEP, max_frames=IMAGES)
    ):
        image = cv2.resize(cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR), SIZE, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(whole / f"{k:04d}.png"), image)
        if k % 2 == 0:
            cv2.imwrite(str(middle / f"{k:04d}.png"), image[12:228, 16:304])
    small: Camera = frame.camera.resized(*SIZE)
    (whole / "camera.yaml").write_text(small.to_yaml())
    (middle / "camera.yaml").write_text(small.cropped(16, 12, 288, 216).to_yaml())
    return whole, middle


@pytest.fixture(scope="module")
def own_camera(room: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The map that the example of a camera of one's own saves."""
    folder = tmp_path_factory.mktemp("own") / "map"
    main_of("own_camera")([str(room[0] / "%04d.png"), str(room[0] / "camera.yaml"), "--map", str(folder)])
    return folder


def test_a_camera_of_ones_own_gives_a_map(own_camera: Path) -> None:
    assert len(load_map(own_camera).keyframes) >= 3


def test_images_are_located_in_batches(
    own_camera: Path, room: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    middle = room[1]
    main_of("batch_relocalization")([str(own_camera), str(middle), str(middle / "camera.yaml"), "--batch", "4"])
    said = capsys.readouterr()
    lines = list(csv.DictReader(io.StringIO(said.out)))
    assert len(lines) == IMAGES // 2
    assert sum(bool(line["x"]) for line in lines) >= 6
    assert re.match(rf"\d+ of {IMAGES // 2} images found, \d+ ms an image", said.err)


def test_two_cameras_are_in_one_map(
    room: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main_of("two_cameras")([str(room[0]), str(room[1]), "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "was not found in the map of the first" not in said
    assert re.search(r"session 0: \d+ keyframes, images of 320x240, segments \[0\]", said), said
    both = load_map(tmp_path / "second" / "map")
    assert len(both.cameras) == 2


def test_a_predictor_of_ones_own_is_asked(room: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    main_of("custom_predictor")([str(room[0])])
    found = re.match(r"(\d+) frames with a pose, (\d+) pairs related", capsys.readouterr().out)
    assert found is not None
    assert int(found[1]) >= IMAGES // 2
    assert int(found[2]) > 0


def test_the_network_is_asked_for_on_the_device_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, SlamConfig]] = []

    def record(source: str, *, out: str, config: SlamConfig) -> SimpleNamespace:
        asked.append((source, config))
        return SimpleNamespace(tracked=9, frames=10, verdict="good")

    monkeypatch.setattr("slam.run.record_run.record_run", record)
    main_of("reloc3r_gpu")(["film.mp4", "--network", "reloc3r-224", "--device", "cuda:1", "--weights", "tuned"])
    [(source, config)] = asked
    assert source == "film.mp4"
    assert (config.predictor.kind, config.predictor.device, config.predictor.weights) == (
        "reloc3r-224",
        "cuda:1",
        "tuned",
    )


def test_a_video_becomes_what_trainers_of_splats_read(
    room: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main_of("splat_export")([str(room[0]), "--out", str(tmp_path)])
    assert f"next: ns-train splatfacto --data {tmp_path / 'nerfstudio'}" in capsys.readouterr().out
    assert (tmp_path / "nerfstudio" / "transforms.json").is_file()
    assert list((tmp_path / "nerfstudio" / "images").iterdir())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_start_it(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= (75 if path.stem == "ros2_node" else LONGEST)  # a node is mostly topics
    assert f"\npython examples/{path.name} " in text


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="the extra docs is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the extra docs is not installed")
    (tmp_path / "sequences").symlink_to(ROOT / "sequences")
    notebook = nbformat.read(ROOT / "examples" / "tour.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "the run is good" in said
    assert re.search(r"^ATE \d", said, re.MULTILINE)
    assert said.count("confidence") >= 2
    assert (tmp_path / "runs" / "tour" / "room.ply").is_file()

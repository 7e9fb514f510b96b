"""The public interface: real types, the example program, and predictors that other distributions bring."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import relocalizer
import slam
from relocalizer.predictors import plugins
from slam.config.loading import load_config

ROOT = Path(__file__).resolve().parent.parent

USER_CODE = """
from relocalizer import Relocalizer
from slam import Slam, SlamConfig, open_source, record_run

system = Slam.create(SlamConfig())
for frame in open_source("room.mp4"):
    reveal_type(system.step(frame))
reveal_type(system)
reveal_type(system.finish())
reveal_type(record_run("room.mp4", out="runs/room"))
reveal_type(Relocalizer.open("runs/room"))
reveal_type(Relocalizer.open("runs/room").locate(frame.image, frame.camera))
"""
TYPES = [
    "slam.result.FrameResult",
    "slam.system.Slam",
    "slam.result.SlamResult",
    "slam.run.recorded_run.RunReport",
    "relocalizer.relocalizer.Relocalizer",
    "relocalizer.relocalizer.Relocalization | relocalizer.relocalizer.NotFound",
]


def test_a_users_program_sees_real_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(USER_CODE)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), "program.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    found = [re.sub(r"Union\[(.*), (.*)\]", r"\1 | \2", t) for t in re.findall(r'type is "(.*)"', done.stdout)]
    assert found == TYPES, done.stdout + done.stderr
    assert "Success" in done.stdout


@pytest.mark.parametrize("package", [slam, relocalizer])
def test_every_public_name_can_be_had_and_is_listed(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(package, name) is not None
        assert name in dir(package)


def test_the_example_prints_live_poses_saves_a_map_and_localizes_in_it(tmp_path: Path) -> None:
    command = [sys.executable, "examples/frame_by_frame.py", "sequences/room_loop", "--frames", "60"]
    done = subprocess.run(
        [*command, "--map", str(tmp_path / "map")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert re.match(r"0: initializing \(.+\)", lines[0])
    assert re.match(r"59: -?\d\.\d{3} -?\d\.\d{3} -?\d\.\d{3}, keyframe \d+", lines[59])
    assert lines[60].startswith("60 frames have a final pose")
    assert re.match(
        r"the last image is at \[.*\], confidence 0\.9|the last image is at \[.*\], confidence 1", lines[61]
    )
    assert (tmp_path / "map" / "manifest.json").is_file()


# Predictors of other distributions


@pytest.fixture
def careful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The plug-in of docs/extending.md, installed as pip leaves it."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.S)
    [point] = re.findall(r"(?m)^careful = \"(.*)\"", page)
    (tmp_path / "careful.py").write_text(code)
    folder = tmp_path / "careful_predictor-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: careful-predictor\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{plugins.GROUP}]\ncareful = {point}\nbroken = nowhere:make\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "careful"


def test_an_installed_predictor_runs_slam_and_its_map_is_opened_with_it(careful, tmp_path, slam_command):
    out = tmp_path / "run"
    command = ["run", ROOT / "sequences" / "room_loop", "--max-frames", 40, "--predictor", careful, "-o", out]
    ended = slam_command(*command)
    assert ended.code == 0, ended.err
    assert "predictor: careful (as asked)" in ended.err
    opened = relocalizer.Relocalizer.open(out)
    frame = next(iter(slam.open_source(ROOT / "sequences" / "room_loop")))
    assert isinstance(opened.locate(frame.image, frame.camera), relocalizer.Relocalization)


def test_installed_predictors_are_listed_by_the_doctor_and_in_errors(careful, slam_command):
    assert re.search(r"predictor careful +ok +careful:make", slam_command("doctor").out)
    ended = slam_command("run", "anywhere", "--predictor", "carefull")
    assert ended.code == 2
    assert "geometric, reloc3r-512, reloc3r-224, broken, careful" in ended.complaint


def test_a_predictor_that_cannot_be_imported_is_named(careful, slam_command, tmp_path):
    room = ROOT / "sequences" / "room_loop"
    ended = slam_command("run", room, "--max-frames", 5, "--predictor", "broken", "-o", tmp_path / "run")
    assert ended.code == 2
    assert "predictor broken (nowhere:make): cannot be made" in ended.complaint
    assert not (tmp_path / "run").exists()


def test_a_setting_of_a_predictor_that_is_not_installed_is_refused() -> None:
    with pytest.raises(relocalizer.UserError, match=r"predictor\.kind"):
        load_config([], ["predictor.kind=unheard-of"])

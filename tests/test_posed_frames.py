"""All posed images of a run, exported at full size for programs that train on them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from textured_walk import FOCAL_PX, HEIGHT, WALLS, WIDTH, poses, rendered, textures, write_clip

from relocalizer.camera import Camera
from relocalizer.errors import ConfigError, MapError
from relocalizer.maps.map_reader import load_map
from slam.cli import app
from slam.config.schema import SlamConfig
from slam.run.posed_frames import open_again, posed_images
from slam.run.record_run import record_run
from slam.run.recorded_run import RunReport

CAMERA = Camera(width=WIDTH, height=HEIGHT, fx=FOCAL_PX, fy=FOCAL_PX, cx=(WIDTH - 1) / 2, cy=(HEIGHT - 1) / 2)
SHRUNK = SlamConfig.model_validate({"input": {"max_side_px": 320}})
FRAMES = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    walls = textures(len(WALLS))
    folder = write_clip(
        tmp_path_factory.mktemp("clip") / "images", [rendered(walls, *pose) for pose in poses(60)[:FRAMES]]
    )
    (folder / "camera.yaml").write_text(CAMERA.to_yaml(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    report = record_run(clip, out=tmp_path_factory.mktemp("run") / "run", config=SHRUNK)
    assert report.tracked == FRAMES
    assert report.values["keyframes"] < FRAMES
    return report


def call(*arguments: object) -> None:
    assert app(args=[str(argument) for argument in arguments], standalone_mode=False) in (None, 0)


def exported(run: RunReport, clip: Path, out: Path, form: str) -> Path:
    call("map", "export", run.folder, "--format", form, "--images", "all", "--source", clip, "-o", out)
    return out


@pytest.fixture(scope="module")
def model(run: RunReport, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(run, clip, tmp_path_factory.mktemp("export") / "colmap", "colmap")


def test_every_posed_image_is_there_at_full_size(model: Path) -> None:
    lines = (model / "sparse" / "0" / "images.txt").read_text(encoding="utf-8").splitlines()
    names = [line.split()[-1] for line in lines[1::2]]
    assert names == [f"{n:04d}.jpg" for n in range(FRAMES)]
    assert sorted(path.name for path in (model / "images").iterdir()) == names
    assert all(cv2.imread(str(model / "images" / name)).shape == (HEIGHT, WIDTH, 3) for name in names)


@pytest.mark.parametrize("form", ["txt", "bin"])
def test_pycolmap_projects_the_points_to_where_the_full_images_show_them(
    form: str, model: Path, run: RunReport, tmp_path: Path
) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    for name in ("cameras", "images", "points3D"):
        shutil.copy(model / "sparse" / "0" / f"{name}.{form}", tmp_path)
    read = pycolmap.Reconstruction(str(tmp_path))
    assert read.num_reg_images() == FRAMES
    assert {image.camera.width for image in read.images.values()} == {WIDTH}
    read.update_point_3d_errors()
    assert read.compute_mean_reprojection_error() < 1.0
    saved = load_map(run.folder)
    assert read.compute_num_observations() == np.isin(saved.observations.landmark, saved.landmarks.ids).sum()
    assert len(read.cameras) == 1
    for image in read.images.values():
        assert np.allclose(image.camera.params, [FOCAL_PX, FOCAL_PX, WIDTH / 2, HEIGHT / 2], atol=1.0)


def test_nerfstudio_gets_the_same_images_and_the_points(run: RunReport, clip: Path, tmp_path: Path) -> None:
    scene = exported(run, clip, tmp_path / "scene", "nerfstudio")
    transforms = json.loads((scene / "transforms.json").read_text(encoding="utf-8"))
    assert [frame["file_path"] for frame in transforms["frames"]] == [f"images/{n:04d}.jpg" for n in range(FRAMES)]
    assert all((scene / frame["file_path"]).is_file() and frame["w"] == WIDTH for frame in transforms["frames"])
    assert (scene / transforms["ply_file_path"]).is_file()


def test_a_source_that_is_not_that_of_the_run_is_refused(run: RunReport, clip: Path, tmp_path: Path) -> None:
    saved = load_map(run.folder)
    renamed = replace(saved, image_names=tuple(f"other_{name}" for name in saved.image_names))
    source = open_again(str(clip), run.folder)
    with pytest.raises(MapError, match="expected the source of the run"):
        list(posed_images(renamed, source))
    shorter = write_clip(tmp_path / "shorter", [cv2.imread(str(clip / f"{n:04d}.png")) for n in range(FRAMES - 1)])
    with pytest.raises(MapError, match="1 posed images are not there"):
        list(posed_images(saved, open_again(str(shorter), run.folder)))


def test_a_map_without_a_run_folder_does_not_know_its_camera(run: RunReport, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(MapError, match="no run folder with a report"):
        open_again(str(clip), run.folder / "map")


def test_images_and_source_come_together(run: RunReport, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give both or neither"):
        call("map", "export", run.folder, "--images", "all", "-o", tmp_path / "out")
    with pytest.raises(ConfigError, match="ply holds no images"):
        call("map", "export", run.folder, "--images", "all", "--source", "x", "--format", "ply", "-o", tmp_path / "out")


def test_an_export_is_turned_upright(run: RunReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("map", "export", run.folder, "--format", "ply", "--up", "-o", tmp_path / "up.ply")
    assert "up is z, estimated from" in capsys.readouterr().err


def test_an_export_of_a_run_with_gps_is_in_axes_of_the_earth(
    run: RunReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["units"]["georeference"] is None
    place = {"latitude_deg": 47.37, "longitude_deg": 8.54, "height_m": 410.0, "enu_from_world": np.eye(4).tolist()}
    report["units"]["georeference"] = place
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    call("map", "export", folder, "--format", "ply", "--up", "-o", tmp_path / "up.ply")
    assert "meters east, north and up of latitude 47.3700000" in capsys.readouterr().err
    call("map", "export", folder, "--format", "ply", "-o", tmp_path / "as_it_is.ply")
    assert (tmp_path / "up.ply").read_bytes() == (tmp_path / "as_it_is.ply").read_bytes()  # both axes are the same here

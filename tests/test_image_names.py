"""Names of image files in the run folder, in the map and in what is made of it."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
from map_samples import small_map

from relocalizer.errors import MapError
from relocalizer.maps.map_export import export_map
from relocalizer.maps.map_reader import load_map
from relocalizer.maps.map_writer import save_map
from relocalizer.maps.reference_map import ReferenceMap
from slam.config.loading import load_config
from slam.evaluation.trajectory_files import read_note, read_tum
from slam.events import FrameLocalizedLater, RunFinished
from slam.input.open_source import open_source
from slam.run.frames_table import FramesTable
from slam.run.record_run import record_run
from slam.run.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fourth image of the bundled sequence, with names of its own."""
    folder = tmp_path_factory.mktemp("photos")
    capture = cv2.VideoCapture(str(ROOT / "sequences" / "room_loop" / "video.mp4"))
    for k in range(80):
        ok, image = capture.read()
        assert ok
        if k % 4 == 0:
            cv2.imwrite(str(folder / f"IMG {k:04d}.color.png"), image)
    shutil.copy(ROOT / "sequences" / "room_loop" / "camera.yaml", folder)
    return folder


@pytest.fixture(scope="module")
def run_folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "out"
    assert not record_run(photos, out=out, config=load_config([], [])).failures
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_folder_has_a_line_for_each_frame_with_the_name_of_its_image(run_folder: Path) -> None:
    rows = rows_of(run_folder / "frames.csv")
    assert [row["name"] for row in rows] == [f"IMG {4 * k:04d}.color.png" for k in range(20)]
    assert [row["index"] for row in rows] == [str(k) for k in range(20)]
    assert rows[3]["timestamp"] == "0.100000000"
    assert (rows[0]["state"], rows[0]["keyframe"], rows[0]["inliers"]) == ("initializing", "", "0")
    assert rows[-1]["state"] == "tracking"
    assert int(rows[-1]["inliers"]) > 30
    assert int(rows[-1]["keyframe"]) >= 1


def test_the_map_and_its_exports_keep_the_names(run_folder: Path, tmp_path: Path) -> None:
    stored = load_map(run_folder)
    indices = stored.keyframes.frame_indices.tolist()
    assert stored.image_names == tuple(f"IMG {4 * k:04d}.color.png" for k in indices)
    export_map(stored, "colmap", tmp_path / "colmap")
    expected = [f"IMG_{4 * k:04d}.color.jpg" for k in indices]
    lines = (tmp_path / "colmap" / "sparse" / "0" / "images.txt").read_text(encoding="utf-8").splitlines()[1::2]
    assert [line.split()[-1] for line in lines] == expected
    assert sorted(os.listdir(tmp_path / "colmap" / "images")) == sorted(expected)
    export_map(stored, "nerfstudio", tmp_path / "nerf")
    frames = json.loads((tmp_path / "nerf" / "transforms.json").read_text())["frames"]
    assert [frame["file_path"] for frame in frames] == [f"images/{name}" for name in expected]


def test_a_map_that_is_continued_keeps_the_names_of_both_runs(run_folder: Path, photos: Path, tmp_path: Path) -> None:
    record_run(photos, out=tmp_path / "out", start_map=run_folder, config=load_config([], []))
    first, both = load_map(run_folder).image_names, load_map(tmp_path / "out").image_names
    assert both[: len(first)] == first
    assert all(name.startswith("IMG ") for name in both)


def test_relocalized_images_are_named(run_folder: Path, photos: Path, tmp_path: Path, slam_command) -> None:
    image = photos / "IMG 0040.color.png"
    out = tmp_path / "poses.txt"
    ended = slam_command("relocalize", run_folder, image, "--out", out, "--json")
    [entry] = json.loads(ended.out)["images"]
    assert entry["image"] == str(image)
    assert all(name.startswith("IMG ") for name in entry["keyframe_images"])
    assert len(entry["keyframe_images"]) == len(entry["keyframes"]) > 0
    assert f"# 0.000000000 is {image}" in out.read_text()
    assert len(read_tum(out)) == 1
    assert read_note(out) == ""


def named(names: tuple[str, ...]) -> ReferenceMap:
    sample = small_map()
    count = len(sample.keyframes)
    return replace(sample, image_names=(*names, *[""] * count)[:count])


def exported_names(reference_map: ReferenceMap, out: Path) -> set[str]:
    export_map(reference_map, "nerfstudio", out)
    return set(os.listdir(out / "images"))


def test_names_that_exports_cannot_have_are_changed_and_stay_different(tmp_path: Path) -> None:
    ids = small_map().keyframes.ids.tolist()
    found = exported_names(named(("a.png", "left/a b.png", "ünï.jpg")), tmp_path / "out")
    assert {"a.jpg", "left_a_b.jpg", "ünï.jpg"} <= found
    twice = exported_names(named(("a.png", "a.jpg", os.fsdecode(b"x\xe9.png"))), tmp_path / "twice")
    assert {f"{ids[0]:06d}_a.jpg", f"{ids[1]:06d}_a.jpg", "x_.jpg"} <= twice
    assert f"{ids[0]:06d}.jpg" in exported_names(small_map(), tmp_path / "without")


def test_names_of_all_kinds_are_stored(tmp_path: Path) -> None:
    names = ("a.png", "left/a b.png", os.fsdecode(b"x\xe9.png"))
    save_map(tmp_path / "map", named(names))
    assert load_map(tmp_path / "map").image_names[:3] == names
    save_map(tmp_path / "map", small_map())
    assert load_map(tmp_path / "map").image_names == ()


def test_a_wrong_number_of_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image_names: expected one for each keyframe"):
        save_map(tmp_path / "map", replace(small_map(), image_names=("a",)))
    save_map(tmp_path / "map", named(("a.png",)))
    manifest = json.loads((tmp_path / "map" / "manifest.json").read_text())
    from relocalizer.maps.map_format import checksum_of

    manifest["image_names"] = ["a.png"]
    manifest["checksum"] = checksum_of(manifest)
    (tmp_path / "map" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MapError, match="image_names: expected a name for each keyframe"):
        load_map(tmp_path / "map")


def test_a_frame_that_was_localized_later_is_marked(tmp_path: Path, photos: Path) -> None:
    table = FramesTable(RunFolder.create(tmp_path / "run"))
    table._rows[7] = ["7", "0.1", "a, b.png", "lost", "", "0"]
    table(FrameLocalizedLater(frame_index=7, timestamp_ns=100_000_000, keyframe_id=3, inliers=44))
    table(RunFinished(timestamps_ns=None, frame_indices=None, world_from_cam=None))  # type: ignore[arg-type]
    table.close()
    [row] = rows_of(tmp_path / "run" / "frames.csv")
    assert list(row.values()) == ["7", "0.1", "a, b.png", "localized later", "3", "44"]


def test_images_of_one_name_in_several_folders_are_distinguished(tmp_path: Path, photos: Path) -> None:
    image = next(photos.glob("*.png")).read_bytes()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(image)
    source = open_source([tmp_path / "a" / "1.png", tmp_path / "b" / "1.png"])
    assert [frame.name for frame in source] == ["a/1.png", "b/1.png"]

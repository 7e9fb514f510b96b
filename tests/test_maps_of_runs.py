"""Maps of real images: the bundled room is mapped once, and its second clip continues in that map."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_images

from relocalizer.geometry import align_points
from relocalizer.maps.map_reader import load_map
from slam.evaluation.trajectory_files import read_tum
from slam.run.summary import map_words

ROOT = Path(__file__).parents[1]
LOOP, REVISIT = ROOT / "sequences" / "room_loop", ROOT / "sequences" / "room_revisit"
QUICK = ("--predictor", "geometric", "--stride", 3, "--refine", "none")


def slam(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "slam", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    ended = slam("run", LOOP, "-o", out, *QUICK)
    assert ended.returncode == 0, ended.stderr
    return out


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def errors_in_map(run: Path, first: Path) -> tuple[np.ndarray, float]:
    """Distances of a run's positions from the truth, when the first run is laid over it; and the room's size."""
    truth, path = read_tum(LOOP / "groundtruth.txt"), read_tum(first / "trajectory.txt")
    mapped = np.searchsorted(truth.timestamps_ns, path.timestamps_ns - 10**6)
    truth_from_map = align_points(truth.positions[mapped], path.positions)
    found, again = read_tum(run / "trajectory.txt"), read_tum(REVISIT / "groundtruth.txt")
    rows = np.searchsorted(again.timestamps_ns, found.timestamps_ns - 10**6)
    off = np.linalg.norm(truth_from_map.apply(found.positions) - again.positions[rows], axis=1)
    points = np.quantile(truth_from_map.apply(load_map(first).points_world), [0.05, 0.95], axis=0)
    return off, float(np.linalg.norm(points[1] - points[0]))


def test_a_run_leaves_a_map_and_nothing_on_the_way_to_it(first):
    saved = load_map(first)
    report = json.loads((first / "report.json").read_text())
    assert len(saved.keyframes) == report["keyframes"]
    assert len(saved.frames.indices) == report["tracked"]
    assert sorted(p.name for p in first.iterdir() if p.name.startswith(".")) == []
    assert all(saved.image(row).shape == (480, 640, 3) for row in (0, len(saved.keyframes) - 1))


def test_a_keyframe_takes_less_than_150_kilobytes(first):
    size = sum(len(data) for data in bytes_of(first / "map").values())
    assert size < 150_000 * len(load_map(first).keyframes)


def test_the_second_clip_is_localized_in_the_map_of_the_first(first, tmp_path):
    before = bytes_of(first / "map")
    ended = slam("run", REVISIT, "--map", first, "--localize-only", "-o", tmp_path / "run", "--stride", 2)
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    off, size = errors_in_map(tmp_path / "run", first)
    assert report["tracked"] >= 0.95 * report["frames"]
    assert np.median(off) < 0.01 * size
    assert report["map"]["localize_only"] is True
    assert "predictor: geometric (the map's)" in ended.stderr
    assert not (tmp_path / "run" / "map").exists()
    assert bytes_of(first / "map") == before


def test_a_clip_without_a_camera_is_localized_with_that_of_the_map(first, tmp_path):
    clip = shutil.copy(REVISIT / "video.mp4", tmp_path / "again.mp4")
    options = ("--localize-only", "--max-frames", 20, "--stride", 2)
    ended = slam("run", clip, "--map", first, "-o", tmp_path / "run", *options)
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    off, size = errors_in_map(tmp_path / "run", first)
    assert np.median(off) < 0.01 * size
    assert "640x480, camera of the map, as no other was named" in ended.stderr
    assert "camera of the map, as no other was named" in report["source"]["description"]
    assert report["camera"]["assumed"] is False


def test_the_second_clip_extends_the_map_of_the_first(first, tmp_path):
    before = bytes_of(first / "map")
    ended = slam("run", REVISIT, "--map", first, "-o", tmp_path / "run", "--max-frames", 25, *QUICK)
    assert ended.returncode == 0, ended.stderr
    assert "found in" in ended.stdout
    assert json.loads((tmp_path / "run" / "report.json").read_text())["map"]["poses_in_map"] is True
    off, size = errors_in_map(tmp_path / "run", first)
    assert np.median(off) < 0.01 * size
    old, new = load_map(first), load_map(tmp_path / "run")
    assert np.array_equal(new.keyframes.ids[: len(old.keyframes)], old.keyframes.ids)
    assert len(new.keyframes) > len(old.keyframes)
    assert new.image.jpeg(0) == old.image.jpeg(0)
    assert bytes_of(first / "map") == before


def test_a_run_that_is_not_found_in_the_map_ends_with_how_to_see_why_in_the_same_map(first, tmp_path):
    elsewhere = write_images(tmp_path / "wall", 6, width=640, height=480)
    ended = slam("run", elsewhere, "--map", first, "--localize-only", "-o", tmp_path / "run")
    assert ended.returncode == 1
    assert f"NOT FOUND in {first}" in ended.stdout
    last = ended.stdout.splitlines()[-1]
    assert last == f"next: slam run {elsewhere} --map {first} --localize-only --record run.rrd"
    assert json.loads((tmp_path / "run" / "report.json").read_text())["map"]["poses_in_map"] is False


@pytest.mark.parametrize(
    ("found_at_frame", "poses_in_map", "words"),
    [
        (3, True, "found in runs/a at frame 3"),
        (-1, True, "found in runs/a on the way"),
        (-1, False, "NOT FOUND in runs/a: poses are in a frame and units of their own"),
    ],
)
def test_the_summary_says_whether_poses_are_in_the_map(found_at_frame, poses_in_map, words):
    report = {"from": "runs/a", "localize_only": False}
    assert map_words({**report, "found_at_frame": found_at_frame, "poses_in_map": poses_in_map}) == words


def test_ctrl_c_leaves_a_readable_map(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "slam", "run", str(LOOP), "-o", str(out), "--quiet"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as run:
        while run.poll() is None:  # however fast the machine is: until there is a map to speak of
            log = out / "events.jsonl"
            if log.is_file() and log.read_text().count('"KeyframeAdded"') >= 3:
                run.send_signal(signal.SIGINT)
                break
            time.sleep(0.02)
        _, err = run.communicate()
    assert run.returncode == 130, err
    assert len(load_map(out).keyframes) >= 3


def test_localize_only_without_a_map_says_what_is_missing(tmp_path):
    ended = slam("run", REVISIT, "--localize-only", "-o", tmp_path / "run")
    assert ended.returncode == 2
    assert "--localize-only: in which map? add --map DIR" in ended.stderr


def test_a_map_that_is_none_is_refused_before_anything_is_made(tmp_path):
    ended = slam("run", REVISIT, "--map", tmp_path, "-o", tmp_path / "run")
    assert ended.returncode == 2
    assert "not a map (manifest.json is missing)" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_a_map_of_another_predictor_is_refused_before_anything_is_made(first, tmp_path):
    ended = slam("run", REVISIT, "--map", first, "--predictor", "reloc3r-224", "-o", tmp_path / "run")
    assert ended.returncode == 2
    assert "map: made by predictor geometric, this is reloc3r-224; add --predictor geometric" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_the_map_verbs_read_the_map_of_a_run(first, tmp_path):
    facts = json.loads(slam("map", "info", first, "--json").stdout)
    assert facts["counts"]["keyframes"] == len(load_map(first).keyframes)
    assert f"{facts['counts']['keyframes']}" in slam("map", "info", first).stdout
    assert slam("map", "export", first, "--format", "ply", "-o", tmp_path / "points.ply").returncode == 0
    assert f"element vertex {facts['counts']['landmarks']}".encode() in (tmp_path / "points.ply").read_bytes()[:200]


def test_a_map_merged_with_itself_is_tied_in_many_places(first, tmp_path):
    ended = slam("map", "merge", first, first, "-o", tmp_path / "twice", "--set", "bundle_adjustment.final_rounds=1")
    assert ended.returncode == 0, ended.stderr
    once, twice = load_map(first), load_map(tmp_path / "twice")
    assert len(twice.keyframes) == 2 * len(once.keyframes)
    assert set(twice.keyframes.segment.tolist()) == {0}
    apart = twice.keyframes.translations[: len(once.keyframes)] - twice.keyframes.translations[len(once.keyframes) :]
    size = np.linalg.norm(np.ptp(once.keyframes.translations, axis=0))
    assert np.median(np.linalg.norm(apart, axis=1)) < 0.01 * size


def test_a_map_is_not_merged_over_another(first):
    ended = slam("map", "merge", first, first, "-o", first / "map")
    assert ended.returncode == 2
    assert "is there already; choose another name or remove it" in ended.stderr

"""`slam map from-poses` and `slam relocalize` on images of the bundled room."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest
from map_samples import in_two_segments
from scipy.spatial.transform import Rotation

from relocalizer.geometry import rotation_angle
from relocalizer.images import read_image
from relocalizer.maps.map_reader import load_map
from relocalizer.maps.map_writer import save_map
from slam.config.schema import InputConfig
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_note, read_tum, write_tum
from slam.input.open_source import open_source

STEP, IMAGES = 6, 12


@pytest.fixture(scope="module")
def room(root, tmp_path_factory):
    """Twelve images of the room, a fifth of a second apart, with their poses, as TUM has them."""
    folder = tmp_path_factory.mktemp("room")
    sequence = root / "sequences" / "room_loop"
    truth = read_tum(sequence / "groundtruth.txt")
    frames = open_source(str(sequence), config=InputConfig(prefetch_frames=0), stride=STEP, max_frames=IMAGES)
    lines, rows = [], []
    for frame in frames:
        name = f"{frame.index:04d}.png"
        cv2.imwrite(str(folder / name), cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR))
        rows.append(int(np.abs(truth.timestamps_ns - frame.timestamp_ns).argmin()))
        lines.append(f"{truth.timestamps_ns[rows[-1]] / 1e9:.9f} {name}")
    (folder / "rgb.txt").write_text("\n".join(lines) + "\n")
    (folder / "camera.yaml").write_text((sequence / "camera.yaml").read_text())
    write_tum(folder / "groundtruth.txt", Trajectory(truth.timestamps_ns[rows], truth.world_from_cam[rows]))
    return folder


@pytest.fixture(scope="module")
def room_map(room, tmp_path_factory):
    """A map of every second of the images."""
    from slam.cli import main

    folder = tmp_path_factory.mktemp("maps") / "room"
    with pytest.raises(SystemExit) as ended:
        main(["map", "from-poses", str(room), "-o", str(folder), "--stride", "2", "-q"])
    assert not ended.value.code
    return folder


@pytest.fixture
def blank(tmp_path, room):
    image = np.full_like(read_image(room / "0000.png"), 127)
    cv2.imwrite(str(tmp_path / "blank.png"), image)
    return tmp_path / "blank.png"


def test_the_map_has_the_images_as_keyframes_in_meters(room_map):
    found = load_map(room_map)
    assert len(found.keyframes) == IMAGES // 2
    assert found.provenance.units == "meters"
    assert len(found.landmarks) > 500


def test_what_was_made_is_said_with_what_to_do_next(slam_command, room, tmp_path):
    ended = slam_command("map", "from-poses", room, "-o", tmp_path / "m", "--max-frames", 3)
    assert ended.code == 0
    assert "3 keyframes" in ended.out
    assert f"next: slam relocalize {tmp_path / 'm'}" in ended.err
    assert "3 images with poses" in ended.err


def test_images_between_the_keyframes_are_found_where_they_were_taken(slam_command, room, room_map, tmp_path):
    out = tmp_path / "poses.txt"
    ended = slam_command("relocalize", room_map, room, "--out", out)
    assert ended.code == 0, ended.err
    assert re.search(
        r"0.*: position -?\d+\.\d{3} -?\d+\.\d{3} -?\d+\.\d{3} meters, confidence [01]\.\d\d, \d+ landmarks", ended.out
    )
    assert f"{IMAGES} of {IMAGES} found; confidence is of an error under 0.25 meters and 5 deg" in ended.out
    found, truth = read_tum(out), read_tum(room / "groundtruth.txt")
    np.testing.assert_array_equal(found.timestamps_ns, truth.timestamps_ns)
    assert np.linalg.norm(found.positions - truth.positions, axis=1).max() < 0.02
    turned = np.swapaxes(truth.world_from_cam, 1, 2)[:, :3, :3] @ found.world_from_cam[:, :3, :3]
    assert np.degrees(max(rotation_angle(R) for R in turned)) < 0.3


def test_json_has_a_pose_or_a_reason_for_each_image(slam_command, room, room_map, blank):
    ended = slam_command("relocalize", room_map, room / "0006.png", blank, "--json", "-q")
    assert ended.code == 0
    said = json.loads(ended.out)
    bound = {"distance": 0.25, "units": "meters", "angle_deg": 5.0}
    assert said["confidence_is_of_error_under"] == bound
    good, bad = said["images"]
    assert good["confidence_is_of_error_under"] == bound
    assert good["found"] is True
    assert len(good["position"]) == 3
    assert np.linalg.norm(good["quaternion_xyzw"]) == pytest.approx(1.0)
    assert np.array(good["covariance"]).shape == (6, 6)
    assert 0.5 <= good["confidence"] <= 1.0
    assert good["how"] == "landmarks"
    assert bad == {"image": str(blank), "timestamp_ns": 1_000_000_000, "found": False, "reason": bad["reason"]}
    assert bad["reason"].endswith("needed")


# --- settings -----------------------------------------------------------------------------------------


def test_settings_of_relocalization_act(slam_command, room, room_map, tmp_path):
    image = room / "0006.png"
    assert slam_command("relocalize", room_map, image, "-q").code == 0
    strict = ("relocalization.min_inliers=900", "relocalization.min_views=100")
    ended = slam_command("relocalize", room_map, image, "-q", *(part for key in strict for part in ("--set", key)))
    assert ended.code == 1
    assert "projected landmarks agree, 900 and" in ended.out
    (tmp_path / "strict.yaml").write_text("relocalization:\n  min_inliers: 900\n  min_views: 100\n")
    assert slam_command("relocalize", room_map, image, "-q", "-c", tmp_path / "strict.yaml").out == ended.out


def test_settings_of_the_averaging_act(slam_command, room, room_map):
    arguments = ("relocalize", room_map, room / "0006.png", "-q", "--json", "--set", "relocalization.min_inliers=900")
    setting = "relocalization.averaging.max_relative_sigma"
    free, strict = (slam_command(*arguments, "--set", f"{setting}={sigma}") for sigma in (10, 1e-9))
    assert json.loads(free.out)["images"][0]["how"] == "averaged"
    assert json.loads(strict.out)["images"][0]["found"] is False


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("tracking.min_inliers=50", "does not use it; did you mean 'relocalization.min_inliers'?"),
        ("tracks.max_tracks=400", "does not use it (it uses seed, input, predictor, relocalization)"),
        ("features.max_features=400", "does not use it"),
        ("metric_scale.scale_from=groundtruth:1", "does not use it"),
    ],
)
def test_a_setting_that_the_verb_does_not_use_is_refused(slam_command, room, room_map, setting, sentence):
    ended = slam_command("relocalize", room_map, room / "0006.png", "--set", setting)
    assert ended.code == 2
    assert ended.complaint.startswith(f"slam: --set {setting}: slam relocalize does not use it")
    assert sentence in ended.complaint


def test_settings_of_a_file_that_the_verb_does_not_use_are_named(slam_command, room, room_map, tmp_path):
    """A file may be of a run, which has other settings too; those with their default values are not worth a word."""
    (tmp_path / "run.yaml").write_text("tracks:\n  max_tracks: 400\nbundle_adjustment:\n  window: 8\nseed: 3\n")
    ended = slam_command("relocalize", room_map, room / "0006.png", "-c", tmp_path / "run.yaml")
    assert ended.code == 0
    assert "not used by slam relocalize: tracks.max_tracks\n" in ended.err


@pytest.mark.parametrize(
    "verb",
    [
        ("map", "from-poses", "images"),
        ("map", "merge", "a", "b", "-o", "c"),
    ],
)
def test_no_other_verb_takes_settings_that_it_does_not_use(slam_command, verb):
    ended = slam_command(*verb, "--set", "relocalization.min_inliers=50")
    assert ended.code == 2
    assert "--set relocalization.min_inliers=50: slam " in ended.complaint
    assert "does not use it" in ended.complaint


# --- units --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(room_map, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts") / "room"
    save_map(folder, in_two_segments(load_map(room_map), scale=10.0))
    return folder


def test_a_pose_is_said_to_be_in_the_units_of_its_segment(slam_command, room, parts):
    images = (room / "0000.png", room / "0060.png")
    said = json.loads(slam_command("relocalize", parts, *images, "--json", "-q").out)
    first, second = said["images"]
    assert (first["segment"], second["segment"]) == (0, 1)
    assert first["confidence_is_of_error_under"] == {"distance": 0.25, "units": "meters", "angle_deg": 5.0}
    assert second["confidence_is_of_error_under"]["units"] == "map units"
    assert second["confidence_is_of_error_under"]["distance"] != 0.25
    assert said["confidence_is_of_error_under"] is None  # of both
    out = slam_command("relocalize", parts, *images, "-q").out
    assert "0060.png: " in out
    assert " map units in segment 1, confidence" in out
    assert "confidence is of an error under 0.25 meters and 5 deg in segment 0, " in out
    assert re.search(r"[0-9.]+ map units and 5 deg in segment 1\n", out)
    facts = slam_command("map", "info", parts).out
    assert re.search(r"units +meters.*, but for segment 1", facts)
    assert re.search(r"segment 1 .*map units", facts)


def test_the_file_of_poses_says_what_its_lengths_are(slam_command, room, parts, tmp_path):
    for name, k, note in (("a", "0000", "lengths in meters: "), ("b", "0060", "")):
        slam_command("relocalize", parts, room / f"{k}.png", "--out", tmp_path / name, "-q")
        assert read_note(tmp_path / name).startswith(note)
        assert bool(read_note(tmp_path / name)) is bool(note)


def test_when_nothing_is_found_the_exit_code_is_one_and_no_file_is_made(slam_command, room_map, blank, tmp_path):
    ended = slam_command("relocalize", room_map, blank, "--out", tmp_path / "poses.txt")
    assert ended.code == 1
    assert "blank.png: not found: 0 landmarks matched, 8 needed" in ended.out
    assert ended.complaint == "slam: no image was found in the map"
    assert not (tmp_path / "poses.txt").exists()


def test_an_image_that_cannot_be_read_is_an_answer_too(slam_command, room, room_map, tmp_path):
    (tmp_path / "broken.png").write_bytes((room / "0000.png").read_bytes()[:1000])
    ended = slam_command("relocalize", room_map, tmp_path / "broken.png", room / "0000.png", "-q")
    assert ended.code == 0
    assert "not found: " in ended.out
    assert "cut off" in ended.out
    assert "1 of 2 found" in ended.out


def test_an_image_without_a_camera_is_an_answer_that_says_what_to_do(slam_command, room, room_map, tmp_path):
    cv2.imwrite(str(tmp_path / "wide.png"), cv2.imread(str(room / "0000.png"))[100:300])
    ended = slam_command("relocalize", room_map, tmp_path / "wide.png", room / "0000.png", "-q")
    assert ended.code == 0
    assert f"{tmp_path}/wide.png: not found: 640x200, and the map's cameras have another shape (640x480)" in ended.out
    assert "1 of 2 found" in ended.out


def test_ctrl_c_leaves_the_images_found_until_then(slam_command, room, room_map, tmp_path, monkeypatch):
    from slam.input.query_images import QueryReader

    read, first = QueryReader.read, ["0000.png"]

    def until_the_second_batch(reader, image):
        if image.path.name not in first:
            raise KeyboardInterrupt
        return read(reader, image)

    monkeypatch.setattr(QueryReader, "read", until_the_second_batch)
    monkeypatch.setattr("slam.workers.localization.ITEM_IMAGES", 1)
    ended = slam_command("relocalize", room_map, room, "--out", tmp_path / "poses.txt")
    assert (ended.code, ended.complaint) == (130, "slam: interrupted")
    assert "1 of 1 found" in ended.out
    assert len(read_tum(tmp_path / "poses.txt")) == 1


def test_what_is_no_map_is_one_line(slam_command, room, tmp_path):
    ended = slam_command("relocalize", tmp_path, room)
    assert ended.code == 2
    assert "not a map" in ended.complaint


def test_files_that_are_there_are_not_overwritten(slam_command, room, room_map, tmp_path):
    (tmp_path / "poses.txt").write_text("mine\n")
    assert slam_command("relocalize", room_map, room, "--out", tmp_path / "poses.txt").code == 2
    assert (tmp_path / "poses.txt").read_text() == "mine\n"
    ended = slam_command("map", "from-poses", room, "-o", room_map)
    assert ended.code == 2
    assert "is there already" in ended.complaint


def test_poses_of_other_images_are_found_out(slam_command, room, tmp_path):
    truth = read_tum(room / "groundtruth.txt")
    poses = truth.world_from_cam.copy()
    poses[:, :3, :3] = Rotation.random(IMAGES, rng=np.random.default_rng(1)).as_matrix()
    write_tum(tmp_path / "wrong.txt", Trajectory(truth.timestamps_ns, poses))
    ended = slam_command("map", "from-poses", room, tmp_path / "wrong.txt", "-o", tmp_path / "m", "-q")
    assert ended.code == 1
    assert "are the poses and the camera those of these images?" in ended.complaint


# --- several processes ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--jobs", "2"), ("--ray", "local", "--jobs", "2")])
def test_workers_make_the_same_map_and_find_the_same_poses(slam_command, room, tmp_path, monkeypatch, words):
    if "--ray" in words:
        pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr("slam.workers.localization.ITEM_IMAGES", 4)
    monkeypatch.setattr("slam.workers.posed_features.ITEM_IMAGES", 3)
    made = []
    for name, more in (("one", ()), ("two", words)):
        folder = tmp_path / name
        assert slam_command("map", "from-poses", room, "-o", folder, "--stride", "2", "-q", *more).code == 0
        ended = slam_command("relocalize", folder, room, "--json", "-q", *more)
        assert ended.code == 0
        made.append([{**entry, "image": ""} for entry in json.loads(ended.out)["images"]])
    one, two = (load_map(tmp_path / name) for name in ("one", "two"))
    assert np.array_equal(one.features.descriptors, two.features.descriptors)
    assert np.array_equal(one.landmarks.points_in_anchor, two.landmarks.points_in_anchor)
    assert np.array_equal(one.keyframes.descriptors, two.keyframes.descriptors)
    assert len(made[0]) == IMAGES
    rounded = "quaternion_xyzw"  # a transform that is sent to another process loses its last bit
    for a, b in zip(*made, strict=True):
        assert a[rounded] == pytest.approx(b[rounded], abs=1e-12)
        assert {**a, rounded: None} == {**b, rounded: None}

"""Which poses of two files belong together when one of them has no times, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_trajectory, write_kitti, write_tum

COUNT = 60
# KITTI's images come about every 0.1 s, and not exactly: 10 Hz made up drift away from the real times.
TIMES = np.cumsum(np.random.default_rng(0).uniform(0.102, 0.106, COUNT) * 1e9).astype(np.int64)


@pytest.fixture
def truth() -> Trajectory:
    rng = np.random.default_rng(1)
    poses = np.tile(np.eye(4), (COUNT, 1, 1))
    poses[:, :3, 3] = rng.normal(size=(COUNT, 3)).cumsum(axis=0)
    poses[:, :3, :3] = Rotation.from_rotvec(0.1 * rng.normal(size=(COUNT, 3)).cumsum(axis=0)).as_matrix()
    return Trajectory(TIMES, poses)


@pytest.fixture
def kitti(tmp_path: Path, truth: Trajectory) -> Path:
    write_kitti(tmp_path / "poses.kitti", truth)
    return tmp_path / "poses.kitti"


def kept(truth: Trajectory, rows: list[int] | np.ndarray) -> Trajectory:
    return Trajectory(truth.timestamps_ns[rows], truth.world_from_cam[rows])


def run_folder(folder: Path, truth: Trajectory, posed: np.ndarray, numbers: np.ndarray | None = None) -> Path:
    """What a run leaves that took all frames and found a pose for some; frame k has number `numbers[k]`."""
    numbers = np.arange(len(truth)) if numbers is None else numbers
    folder.mkdir()
    write_tum(folder / "trajectory.txt", kept(truth, posed))
    frames = zip(numbers.tolist(), truth.timestamps_ns.tolist(), strict=True)
    lines = [{"event": "FrameProcessed", "frame": {"index": k, "timestamp_ns": t}, "state": "lost"} for k, t in frames]
    lines.insert(3, {"event": "KeyframeAdded", "keyframe": {"id": 0, "frame_index": 0, "timestamp_ns": 5}})
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "FrameProc')
    return folder


def figures(slam_command, *arguments) -> dict:
    ended = slam_command("eval", *arguments, "--json")
    assert ended.code == 0, ended.err
    return {**json.loads(ended.out), "said": ended.err}


def test_as_many_poses_are_paired_line_by_line_and_it_is_said(slam_command, tmp_path, truth, kitti):
    write_tum(tmp_path / "estimate.txt", truth)
    for pair in ((tmp_path / "estimate.txt", kitti), (kitti, tmp_path / "estimate.txt"), (kitti, kitti)):
        found = figures(slam_command, *pair)
        assert (found["matched"], found["matched_by"]) == (COUNT, "line number")
        assert found["ate_sim3"]["rmse"] == pytest.approx(0.0, abs=1e-6)
        assert f"{kitti}: no times; both have 60 poses and are paired line by line" in found["said"]
    assert figures(slam_command, kitti, kitti)["rpe_second"] is None
    assert figures(slam_command, kitti, tmp_path / "estimate.txt")["rpe_second"]["pairs"] > 40


def test_times_that_were_made_up_by_a_conversion_are_matched_with_none(slam_command, tmp_path, truth, kitti):
    write_tum(tmp_path / "estimate.txt", truth)
    assert slam_command("convert", kitti, tmp_path / "truth.txt").code == 0
    assert figures(slam_command, tmp_path / "estimate.txt", tmp_path / "truth.txt")["matched"] == COUNT
    write_tum(tmp_path / "fewer.txt", kept(truth, np.arange(50)))
    ended = slam_command("eval", tmp_path / "fewer.txt", tmp_path / "truth.txt")
    assert ended.code == 2
    assert "has no times" in ended.complaint


def test_fewer_poses_than_lines_are_refused_and_times_asked_for(slam_command, tmp_path, truth, kitti):
    lost = tmp_path / "lost.txt"
    write_tum(lost, kept(truth, np.delete(np.arange(COUNT), np.arange(20, 31))))
    ended = slam_command("eval", lost, kitti)
    assert ended.code == 2
    assert ended.complaint == (
        f"slam: {lost} has 49 poses, {kitti} 60, and {kitti} has no times: nothing tells which belong together; "
        "give its times with --times FILE (a time a line)"
    )


def test_two_files_without_times_of_different_length_are_refused(slam_command, tmp_path, truth, kitti):
    write_kitti(tmp_path / "lost.kitti", kept(truth, np.delete(np.arange(COUNT), np.arange(20, 31))))
    ended = slam_command("eval", tmp_path / "lost.kitti", kitti)
    assert ended.code == 2
    assert "lost.kitti has 49 poses" in ended.complaint
    assert "and neither has times: nothing tells which belong together" in ended.complaint


@pytest.mark.parametrize("place", ["option", "beside", "KITTI's folders"])
def test_the_times_of_a_file_pair_what_a_run_lost(slam_command, tmp_path, truth, place):
    rows = np.delete(np.arange(COUNT), np.arange(20, 31))
    (tmp_path / "poses").mkdir()
    poses, lost = tmp_path / "poses" / "07.txt", tmp_path / "lost.txt"
    write_kitti(poses, truth)
    write_tum(lost, kept(truth, rows))
    times = {
        "option": tmp_path / "elsewhere.txt",
        "beside": tmp_path / "poses" / "times.txt",
        "KITTI's folders": tmp_path / "sequences" / "07" / "times.txt",
    }[place]
    times.parent.mkdir(parents=True, exist_ok=True)
    times.write_text("".join(f"{t / 1e9:.6e}\n" for t in TIMES.tolist()))
    found = figures(slam_command, lost, poses, *(("--times", times) if place == "option" else ()))
    assert (found["matched"], found["matched_by"]) == (len(rows), "time")
    assert found["ate_sim3"]["rmse"] == pytest.approx(0.0, abs=1e-6)
    assert place == "option" or f"{poses}: times of {times}" in found["said"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0.1\n0.2\n", "poses.kitti: 60 poses, but 2 timestamps were given for them"),
        ("0.1\nnoon\n", "times.txt, line 2: expected a time in seconds, got 'noon'"),
        ("0.5\n" * COUNT, "poses.kitti: the timestamps given for its poses do not increase"),
        (None, "times cannot be read (No such file or directory)"),
    ],
)
def test_times_that_cannot_be_those_of_the_poses_are_refused(slam_command, tmp_path, truth, kitti, text, sentence):
    write_tum(tmp_path / "estimate.txt", truth)
    if text is not None:
        (tmp_path / "times.txt").write_text(text)
    ended = slam_command("eval", tmp_path / "estimate.txt", kitti, "--times", tmp_path / "times.txt")
    assert ended.code == 2
    assert sentence in ended.complaint


def test_times_for_files_that_have_their_own_are_refused(slam_command, tmp_path, truth):
    write_tum(tmp_path / "a.txt", truth)
    (tmp_path / "times.txt").write_text("0\n")
    ended = slam_command("eval", tmp_path / "a.txt", tmp_path / "a.txt", "--times", tmp_path / "times.txt")
    assert (ended.code, "both files have times of their own" in ended.complaint) == (2, True)
    ended = slam_command("convert", tmp_path / "a.txt", tmp_path / "b.txt", "--times", tmp_path / "times.txt")
    assert (ended.code, "a.txt has times of its own" in ended.complaint) == (2, True)


def test_times_beside_that_are_of_other_poses_are_not_used(slam_command, tmp_path, truth, kitti):
    write_tum(tmp_path / "lost.txt", kept(truth, np.arange(3, 40)))
    (tmp_path / "times.txt").write_text("0\n1\n2\n")
    assert "has no times" in slam_command("eval", tmp_path / "lost.txt", kitti).complaint


@pytest.mark.parametrize("stride", [1, 2])
def test_a_run_folder_is_paired_by_the_numbers_of_its_frames(slam_command, tmp_path, truth, kitti, stride):
    """Frames before the map began and some on the way have no pose; nothing but the log tells which lines they are."""
    taken = np.arange(3, COUNT - 5, stride)
    posed = np.delete(np.arange(len(taken)), [0, 1, 9, 10])
    run = run_folder(tmp_path / "run", kept(truth, taken), posed, taken)
    for estimate in (run, run / "trajectory.txt"):
        found = figures(slam_command, estimate, kitti)
        assert (found["matched"], found["matched_by"]) == (len(posed), "frame number")
        assert found["ate_sim3"]["rmse"] == pytest.approx(0.0, abs=1e-6)
        assert (found["covered"], found["expected"]) == (len(posed), len(taken))
        assert f"{kitti}: no times; line k + 1 is taken for frame k of the run's source" in found["said"]


def test_a_run_of_more_frames_than_there_are_lines_is_refused(slam_command, tmp_path, truth):
    run = run_folder(tmp_path / "run", truth, np.arange(COUNT))
    write_kitti(tmp_path / "short.kitti", kept(truth, np.arange(40)))
    ended = slam_command("eval", run, tmp_path / "short.kitti")
    assert ended.code == 2
    assert "short.kitti: 40 poses without times, but frame 59 of the run has one too" in ended.complaint


def test_a_log_of_another_run_beside_a_trajectory_is_not_believed(slam_command, tmp_path, truth, kitti):
    run = run_folder(tmp_path / "run", truth, np.arange(5, 50))
    write_tum(run / "other.txt", Trajectory(truth.timestamps_ns[:40] + 7, truth.world_from_cam[:40]))
    assert "has no times" in slam_command("eval", run / "other.txt", kitti).complaint


# --- converting ---------------------------------------------------------------------------------------


def test_frames_without_a_pose_are_said_when_lines_are_no_longer_frames(slam_command, tmp_path, truth):
    lost = tmp_path / "lost.txt"
    write_tum(lost, kept(truth, np.delete(np.arange(COUNT), np.arange(20, 31))))
    ended = slam_command("convert", lost, tmp_path / "lost.kitti")
    assert ended.code == 0
    sentence = f"{lost}: 11 of 60 frames have no pose, so a line of {tmp_path / 'lost.kitti'} is no longer a frame"
    assert sentence in ended.err
    assert "no pose" not in slam_command("convert", lost, tmp_path / "again.txt").err  # its times tell
    run = run_folder(tmp_path / "run", truth, np.arange(7, COUNT))  # the first have none, which no gap tells
    assert "7 of 60 frames have no pose" in slam_command("convert", run, tmp_path / "run.kitti").err


def test_a_trajectory_of_every_frame_is_converted_without_a_word(slam_command, tmp_path, truth):
    write_tum(tmp_path / "all.txt", truth)
    ended = slam_command("convert", tmp_path / "all.txt", tmp_path / "all.kitti")
    assert ended.err.splitlines() == [f"wrote {tmp_path / 'all.kitti'}: {truth}"]


def test_times_make_a_timed_trajectory_of_kittis_poses(slam_command, tmp_path, truth, kitti):
    (tmp_path / "times.txt").write_text("".join(f"{t / 1e9:.9f}\n" for t in TIMES.tolist()))
    ended = slam_command("convert", kitti, tmp_path / "timed.txt", "--times", tmp_path / "times.txt")
    assert ended.code == 0, ended.err
    read = read_trajectory(tmp_path / "timed.txt")
    assert read.has_times
    assert read.timestamps_ns.tolist() == TIMES.tolist()


# --- the order of quaternions -------------------------------------------------------------------------


def test_a_file_whose_orientations_fit_in_another_order_is_refused(slam_command, tmp_path, truth):
    write_tum(tmp_path / "estimate.txt", truth)
    lines = (tmp_path / "estimate.txt").read_text().splitlines()[1:]
    swapped = [" ".join([*f[:4], f[7], *f[4:7]]) for f in (line.split() for line in lines)]
    (tmp_path / "truth.txt").write_text("\n".join(swapped) + "\n")
    ended = slam_command("eval", tmp_path / "estimate.txt", tmp_path / "truth.txt")
    assert ended.code == 2
    assert f"if those of {tmp_path / 'truth.txt'} are w x y z and not x y z w; say it in a header" in ended.complaint
    assert ended.out == ""
    (tmp_path / "named.txt").write_text("\n".join(["# timestamp tx ty tz qw qx qy qz", *swapped]) + "\n")
    assert figures(slam_command, tmp_path / "estimate.txt", tmp_path / "named.txt")["orientation_deg"]["max"] < 1e-4


def test_a_header_that_names_the_wrong_order_is_believed_and_the_doubt_is_said(slam_command, tmp_path, truth):
    write_tum(tmp_path / "estimate.txt", truth)
    text = (tmp_path / "estimate.txt").read_text()
    (tmp_path / "truth.txt").write_text(text.replace("qx qy qz qw", "qw qx qy qz"))
    ended = slam_command("eval", tmp_path / "estimate.txt", tmp_path / "truth.txt")
    assert ended.code == 0
    assert "note: the orientations do not agree (" in ended.out


def test_a_rotated_body_is_reported_with_what_is_left_without_it(slam_command, tmp_path, truth):
    write_tum(tmp_path / "estimate.txt", truth)
    body = truth.world_from_cam.copy()
    body[:, :3, :3] = body[:, :3, :3] @ Rotation.from_euler("y", 90, degrees=True).as_matrix()
    write_tum(tmp_path / "truth.txt", Trajectory(truth.timestamps_ns, body))
    ended = slam_command("eval", tmp_path / "estimate.txt", tmp_path / "truth.txt")
    assert ended.code == 0
    assert "note: the orientations look turned by a constant 90.0 deg" in ended.out


# --- clocks -------------------------------------------------------------------------------------------


def test_an_offset_between_the_clocks_is_said_and_applied_only_when_asked_for(slam_command, tmp_path, truth):
    write_tum(tmp_path / "truth.txt", truth)
    write_tum(tmp_path / "late.txt", Trajectory(truth.timestamps_ns + 1234 * 10**9, truth.world_from_cam))
    pair = (tmp_path / "late.txt", tmp_path / "truth.txt")
    ended = slam_command("eval", *pair)
    assert ended.code == 2
    assert "with -1234.000000000 s added to the estimate's times 60 poses match" in ended.complaint
    assert figures(slam_command, *pair, "--time-offset", "-1234")["matched"] == COUNT

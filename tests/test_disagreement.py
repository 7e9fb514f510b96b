"""What is wrong with two files is distinguished from a bad estimate, on paths whose truth is known."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from relocalizer.errors import TrajectoryError
from relocalizer.geometry import Similarity
from slam.evaluation.metrics import Evaluation, evaluate
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_trajectory

STEP_NS = 33_333_333
NOISE = [(0.0, 0.0), (0.01, 0.3), (0.02, 2.0)]  # of positions (share of their box's diagonal), degrees an axis
MUCH_NOISE = (0.05, 5.0)


def room_walk(count: int = 200, seed: int = 0) -> Trajectory:
    """A camera carried about a room, turning about all axes; smooth, and never twice the same."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0.0, 1.0, count)[:, None]
    waves = sum(rng.normal(size=3) * np.sin(2 * np.pi * k * t + rng.uniform(0, 6, 3)) / k for k in (1, 2, 3))
    turns = sum(rng.normal(size=3) * np.sin(2 * np.pi * k * t + rng.uniform(0, 6, 3)) / k for k in (1, 2))
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, 3] = waves + 2.0 * t * rng.normal(size=3)
    poses[:, :3, :3] = Rotation.from_rotvec(0.5 * turns).as_matrix() @ Rotation.random(rng=rng).as_matrix()
    return Trajectory(5 * 10**9 + STEP_NS * np.arange(count), poses)


def drive(count: int = 200, seed: int = 0) -> Trajectory:
    """A car: level, and turning about one axis alone."""
    yaw = np.random.default_rng(seed).normal(scale=0.02, size=count).cumsum().cumsum() / 4
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(np.outer(yaw, [0, 1, 0])).as_matrix()
    poses[:, :3, 3] = np.cumsum(poses[:, :3, 2], axis=0)
    return Trajectory(STEP_NS * np.arange(count), poses)


def turned(trajectory: Trajectory, rotations: np.ndarray) -> Trajectory:
    poses = trajectory.world_from_cam.copy()
    poses[:, :3, :3] = rotations
    return replace(trajectory, world_from_cam=poses)


def reordered(trajectory: Trajectory, shift: int) -> Trajectory:
    """-1: quaternions x y z w read as w x y z; 1: w x y z read as x y z w."""
    quaternions = Rotation.from_matrix(trajectory.world_from_cam[:, :3, :3]).as_quat()
    return turned(trajectory, Rotation.from_quat(np.roll(quaternions, shift, axis=1)).as_matrix())


def estimate_of(truth: Trajectory, noise: tuple[float, float] = (0.0, 0.0), seed: int = 1) -> Trajectory:
    """In another world and unit, with noise."""
    rng = np.random.default_rng(seed)
    poses = truth.world_from_cam.copy()
    extent = np.linalg.norm(np.ptp(truth.positions, axis=0))
    poses[:, :3, 3] += noise[0] * extent * rng.normal(size=(len(truth), 3)) / np.sqrt(3)
    wobble = Rotation.from_rotvec(np.radians(noise[1]) * rng.normal(size=(len(truth), 3)))
    poses[:, :3, :3] = poses[:, :3, :3] @ wobble.as_matrix()
    elsewhere = Similarity(Rotation.random(rng=rng).as_matrix(), rng.normal(size=3), 0.3)
    return Trajectory(truth.timestamps_ns, poses).transformed(elsewhere)


def best_reading(result: Evaluation) -> tuple[str, str, str]:
    assert result.orientation_check is not None
    assert result.orientation_check.readings, result.orientation_check
    reading = result.orientation_check.readings[0]
    return reading.side, reading.order, reading.read_as


# --- orientations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("shift", [1, -1])
@pytest.mark.parametrize("seed", range(3))
def test_quaternions_of_another_order_are_found_on_either_side(noise, shift, seed):
    truth = room_walk(seed=seed)
    order, read_as = ("w x y z", "x y z w") if shift == 1 else ("x y z w", "w x y z")
    result = evaluate(estimate_of(truth, noise), reordered(truth, shift))
    assert best_reading(result) == ("ground truth", order, read_as)
    assert any(note.startswith("the orientations do not agree (") for note in result.notes)
    result = evaluate(reordered(estimate_of(truth, noise), shift), truth)
    assert best_reading(result) == ("estimate", order, read_as)


@pytest.mark.parametrize("noise", NOISE)
def test_the_order_is_found_when_the_truth_is_of_another_body_too(noise):
    """EuRoC's ground truth, of the IMU, against a camera's path."""
    truth = room_walk(seed=4)
    cam_from_body = Rotation.from_euler("zyx", [90.0, 3.0, -2.0], degrees=True).as_matrix()
    body = turned(truth, truth.world_from_cam[:, :3, :3] @ cam_from_body)
    assert best_reading(evaluate(estimate_of(truth, noise), reordered(body, 1)))[:2] == ("ground truth", "w x y z")


def test_the_order_is_found_of_a_car_that_turns_about_one_axis():
    truth = drive()
    assert best_reading(evaluate(estimate_of(truth, (0.005, 0.3)), reordered(truth, 1)))[1] == "w x y z"


@pytest.mark.parametrize("angle", [8.0, 45.0, 90.0, 180.0])
@pytest.mark.parametrize("noise", NOISE)
def test_another_bodys_axes_are_a_constant_rotation_and_no_fault(angle, noise):
    truth = room_walk(seed=2)
    axis = np.array([1.0, -2.0, 0.5]) / np.sqrt(5.25)
    turn = Rotation.from_rotvec(np.radians(angle) * axis).as_matrix()
    result = evaluate(estimate_of(truth, noise), turned(truth, truth.world_from_cam[:, :3, :3] @ turn))
    check = result.orientation_check
    assert check is not None
    assert check.readings == ()
    assert check.constant_deg == pytest.approx(angle, abs=1.0)
    assert check.residual_rmse_deg == pytest.approx(noise[1] * np.sqrt(3), rel=0.2, abs=0.3)
    assert result.orientation_deg is not None
    assert result.orientation_deg.rmse == pytest.approx(angle, abs=3.0)  # the figure itself stays what it was
    if noise[1] < angle / 4:
        assert [note for note in result.notes if f"a constant {check.constant_deg:.1f} deg" in note]


@pytest.mark.parametrize("noise", [*NOISE, MUCH_NOISE])
@pytest.mark.parametrize("path", [room_walk, drive])
def test_a_good_estimate_has_no_note(noise, path):
    truth = path(seed=3)
    result = evaluate(estimate_of(truth, noise), truth)
    assert result.notes == ()
    assert result.orientation_check is None or result.orientation_check.readings == ()


@pytest.mark.parametrize("shift", [1, -1])
def test_in_much_noise_another_order_is_not_sure_and_not_silent(shift):
    truth = room_walk()
    result = evaluate(estimate_of(truth, MUCH_NOISE), reordered(truth, shift))
    assert result.orientation_deg is not None
    assert result.orientation_deg.rmse > 90.0
    assert any("orientations" in note for note in result.notes)


def bad_orientations(truth: Trajectory, how: str) -> np.ndarray:
    rng, count = np.random.default_rng(9), len(truth)
    rotations = truth.world_from_cam[:, :3, :3]
    match how:
        case "random":
            return Rotation.random(count, rng=rng).as_matrix()
        case "never turning":
            return np.tile(rotations[0], (count, 1, 1))
        case "drifting by half a turn":
            return rotations @ Rotation.from_rotvec(np.outer(np.linspace(0, np.pi, count), [0, 1, 0])).as_matrix()
        case "lost on the way":
            other = rotations[count // 2 :] @ Rotation.random(rng=rng).as_matrix()
            return np.concatenate([rotations[: count // 2], other])
        case "turning half as far":
            rel = Rotation.from_matrix(rotations[0].T @ rotations).as_rotvec()
            return rotations[0] @ Rotation.from_rotvec(0.5 * rel).as_matrix()
        case _:
            walk = np.radians(8.0 * rng.normal(size=(count, 3)).cumsum(axis=0))
            return Rotation.from_rotvec(walk).as_matrix()


@pytest.mark.parametrize(
    "how",
    [
        "random",
        "never turning",
        "drifting by half a turn",
        "lost on the way",
        "turning half as far",
        "a walk of its own",
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_an_estimate_that_is_merely_bad_is_not_called_reordered(how, seed):
    truth = room_walk(seed=seed)
    result = evaluate(estimate_of(turned(truth, bad_orientations(truth, how)), (0.01, 0.5)), truth)
    assert result.orientation_check is not None
    assert result.orientation_check.readings == ()


def test_orientations_that_nothing_explains_are_not_reported_in_silence():
    truth = room_walk()
    result = evaluate(estimate_of(turned(truth, bad_orientations(truth, "random"))), truth)
    assert result.notes[0].startswith("the positions agree and the orientations do not (1")


def test_inverse_orientations_are_called_inverse():
    truth = room_walk(seed=1)
    inverse = turned(truth, truth.world_from_cam[:, :3, :3].transpose(0, 2, 1))
    result = evaluate(estimate_of(truth, (0.01, 0.3)), inverse)
    assert best_reading(result) == ("ground truth", "", "")
    assert "if those of the ground truth are inverse (camera from world)" in result.notes[0]


def test_a_camera_that_hardly_turns_leaves_both_reasons_open():
    truth = room_walk()
    still = Rotation.from_rotvec(np.radians(0.2) * np.random.default_rng(0).normal(size=(len(truth), 3))).as_matrix()
    truth = turned(truth, truth.world_from_cam[0, :3, :3] @ still)
    result = evaluate(estimate_of(truth, (0.005, 0.2)), reordered(truth, 1))
    assert result.orientation_check is not None
    assert result.orientation_check.readings == ()
    assert "look turned by a constant" in result.notes[0]
    assert "w x y z and were read as x y z w: the camera turned too little to tell" in result.notes[0]


@pytest.mark.parametrize("how", ["straight", "wrong"])
def test_positions_that_tell_nothing_leave_the_orientations_unjudged(how):
    truth = room_walk()
    poses = truth.world_from_cam.copy()
    if how == "straight":
        poses[:, :3, 3] = np.outer(np.linspace(0, 9, len(truth)), [1, 0, 0]) + 0.01 * poses[:, :3, 3]
        straight = Trajectory(truth.timestamps_ns, poses)
        assert evaluate(estimate_of(straight), straight).orientation_check is None
    else:
        poses[:, :3, 3] = np.random.default_rng(0).normal(size=(len(truth), 3))
        assert evaluate(Trajectory(truth.timestamps_ns, poses), truth).orientation_check is None


def test_on_a_straight_path_a_large_orientation_error_is_said_to_say_nothing():
    truth = room_walk()
    poses = truth.world_from_cam.copy()
    poses[:, :3, 3] = np.outer(np.linspace(0, 9, len(truth)), [1, 0, 0]) + 0.001 * poses[:, :3, 3]
    straight = Trajectory(truth.timestamps_ns, poses)
    result = evaluate(estimate_of(straight, (0.001, 0.2)), reordered(straight, 1))
    assert result.notes[0].startswith("the positions lie nearly on a line, which leaves the roll about it open")


# --- positions ----------------------------------------------------------------------------------------


def test_left_handed_axes_are_called_mirrored():
    truth = room_walk()
    mirrored = truth.world_from_cam.copy()
    mirrored[:, 1, 3] *= -1.0
    result = evaluate(estimate_of(truth, (0.01, 0.3)), Trajectory(truth.timestamps_ns, mirrored))
    assert [note for note in result.notes if "if the axes of one file are left-handed" in note]


@pytest.mark.parametrize("side", ["estimate", "ground truth"])
def test_inverse_poses_are_called_inverse(side):
    truth = room_walk()
    estimate = estimate_of(truth, (0.005, 0.1))
    inverse = Trajectory(
        truth.timestamps_ns, np.linalg.inv((truth if side == "ground truth" else estimate).world_from_cam)
    )
    result = evaluate(*((estimate, inverse) if side == "ground truth" else (inverse, truth)))
    assert [note for note in result.notes if "if the poses of one file are inverse" in note]


@pytest.mark.parametrize("seed", range(5))
def test_a_path_that_is_merely_wrong_has_no_note(seed):
    truth, rng = room_walk(seed=seed), np.random.default_rng(seed)
    poses = truth.world_from_cam.copy()
    poses[:, :3, 3] = 0.1 * rng.normal(size=(len(truth), 3)).cumsum(axis=0)
    assert evaluate(Trajectory(truth.timestamps_ns, poses), truth).notes == ()


# --- clocks -------------------------------------------------------------------------------------------


def later(trajectory: Trajectory, seconds: float) -> Trajectory:
    return replace(trajectory, timestamps_ns=trajectory.timestamps_ns + round(seconds * 1e9))


def part(trajectory: Trajectory, rows: slice) -> Trajectory:
    return Trajectory(trajectory.timestamps_ns[rows], trajectory.world_from_cam[rows])


@pytest.mark.parametrize("noise", NOISE)
def test_the_offset_between_two_clocks_is_said_when_nothing_matches(noise):
    truth = room_walk()
    estimate = later(part(estimate_of(truth, noise), slice(30, 170)), -1000.0)
    with pytest.raises(
        TrajectoryError, match=r"0 of 140 poses.*with 1000\.000000000 s added to the estimate's times 140"
    ):
        evaluate(estimate, truth)


def test_an_offset_by_which_the_wrong_poses_match_is_said_and_not_applied():
    truth = room_walk()
    estimate = later(part(estimate_of(truth, (0.005, 0.2)), slice(0, 120)), 1.0)
    result = evaluate(estimate, truth)
    assert result.ate_percent > 1.0
    assert [note for note in result.notes if note.startswith("with -0.999999990 s added") or "with -1.0" in note]


def test_the_truth_may_come_faster_than_the_images():
    truth = room_walk(2000)
    estimate = later(part(estimate_of(truth, (0.005, 0.2)), slice(100, 1800, 10)), 77.7)
    with pytest.raises(TrajectoryError, match=r"with -77\.[67][0-9]* s added to the estimate's times 170 poses match"):
        evaluate(estimate, truth)


def test_a_straight_steady_path_fits_at_any_offset_and_none_is_said():
    poses = np.tile(np.eye(4), (100, 1, 1))
    poses[:, 0, 3] = np.arange(100)
    line = Trajectory(STEP_NS * np.arange(100), poses)
    with pytest.raises(TrajectoryError, match="compare the clocks of the two files"):
        evaluate(later(line, 100.0), line)


def test_another_path_has_no_offset():
    with pytest.raises(TrajectoryError, match="compare the clocks of the two files"):
        evaluate(later(room_walk(seed=8), 100.0), room_walk(seed=3))


# --- recorded paths -----------------------------------------------------------------------------------


@pytest.mark.skipif("SLAM_SEQUENCES" not in os.environ, reason="SLAM_SEQUENCES names no folder of sequences")
@pytest.mark.parametrize(
    "name", ["euroc_V1_01_easy", "euroc_MH_01_easy", "7scenes_office_seq01", "tartanair_ocean_P001"]
)
def test_the_order_is_found_on_recorded_paths_and_noise_is_not(name):
    folder = Path(os.environ["SLAM_SEQUENCES"]) / "trajectories"
    truth = read_trajectory(sorted(folder.glob(f"{name}*.txt"))[0]) if list(folder.glob(f"{name}*.txt")) else None
    if truth is None:
        pytest.skip(f"{name} is not in the folder")
    truth = part(truth, slice(0, 4000, 4))
    for noise in NOISE:
        assert evaluate(estimate_of(truth, noise), truth).notes == ()
        assert best_reading(evaluate(estimate_of(truth, noise), reordered(truth, 1)))[1] == "w x y z"

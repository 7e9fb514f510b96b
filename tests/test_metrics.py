import builtins
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from relocalizer.errors import OutputError, TrajectoryError, UserError
from relocalizer.geometry import Similarity, exp_so3
from slam.evaluation.alignment import associate, fit_similarity
from slam.evaluation.metrics import evaluate, relative_error
from slam.evaluation.plot import plot_evaluation
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_trajectory

SECOND = 1_000_000_000
FRAME = SECOND // 10


def path_of(positions: Any, rotations: Any = None, *, step_ns: int = FRAME, start_ns: int = 0) -> Trajectory:
    positions = np.asarray(positions, dtype=np.float64)
    poses = np.tile(np.eye(4), (len(positions), 1, 1))
    poses[:, :3, 3] = positions
    if rotations is not None:
        poses[:, :3, :3] = rotations
    return Trajectory(start_ns + step_ns * np.arange(len(positions)), poses)


def wandering(rng: np.random.Generator, count: int = 120) -> Trajectory:
    turns = Rotation.from_rotvec(rng.normal(scale=0.05, size=(count, 3)).cumsum(axis=0))
    return path_of(rng.normal(size=(count, 3)).cumsum(axis=0), turns.as_matrix())


def disturbed(truth: Trajectory, rng: np.random.Generator, scale: float = 0.37) -> Trajectory:
    """Noise on every pose, seen from another world, in another unit."""
    poses = truth.world_from_cam.copy()
    poses[:, :3, 3] += rng.normal(scale=0.02 * np.ptp(truth.positions), size=(len(truth), 3))
    poses[:, :3, :3] = poses[:, :3, :3] @ Rotation.from_rotvec(rng.normal(scale=0.02, size=(len(truth), 3))).as_matrix()
    elsewhere = Similarity(Rotation.random(rng=rng).as_matrix(), rng.normal(size=3) * 10.0, scale)
    return Trajectory(truth.timestamps_ns, poses).transformed(elsewhere)


SQUARE = [[0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0]]


def test_the_same_path_in_another_world_and_unit_has_no_error() -> None:
    truth = wandering(np.random.default_rng(0))
    elsewhere = Similarity(Rotation.from_rotvec([0.3, 2.0, -1.0]).as_matrix(), np.array([5.0, -7.0, 100.0]), 0.25)
    result = evaluate(truth.transformed(elsewhere), truth)
    assert result.scale == pytest.approx(4.0)
    assert result.ate_sim3.max == pytest.approx(0.0, abs=1e-9)
    assert result.drift_percent == pytest.approx(0.0, abs=1e-9)
    assert result.orientation_deg is not None
    assert result.orientation_deg.rmse == pytest.approx(0.0, abs=1e-5)


def test_a_path_of_half_the_size_is_right_by_sim3_and_wrong_by_se3() -> None:
    result = evaluate(path_of(np.array(SQUARE) / 2), path_of(SQUARE))
    # Corners of the true square are sqrt(2) from its center, of the small one sqrt(2) / 2.
    assert result.scale == pytest.approx(2.0)
    assert result.ate_sim3.rmse == pytest.approx(0.0, abs=1e-12)
    for figure in ("rmse", "mean", "median", "max"):
        assert getattr(result.ate_se3, figure) == pytest.approx(np.sqrt(0.5))


def test_one_point_off_along_the_axis_of_a_cross_leaves_the_known_error() -> None:
    cross = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    moved = cross.copy()
    moved[:2] *= 1.3  # symmetric: the center stays and no rotation helps
    result = evaluate(path_of(moved), path_of(cross))
    assert result.ate_se3.rmse == pytest.approx(0.3 / np.sqrt(3))
    assert result.ate_se3.mean == pytest.approx(0.1)
    assert result.ate_se3.median == pytest.approx(0.0, abs=1e-12)
    assert result.ate_se3.max == pytest.approx(0.3)
    # Least squares: s = sum(a.b) / sum(b.b) = (2 * 1.3 + 4) / (2 * 1.69 + 4).
    assert result.scale == pytest.approx(6.6 / 7.38)


def test_a_constant_turn_of_the_camera_is_the_orientation_error() -> None:
    turned = np.tile(Rotation.from_euler("y", 5, degrees=True).as_matrix(), (4, 1, 1))
    result = evaluate(path_of(SQUARE, turned), path_of(SQUARE))
    assert result.orientation_deg is not None
    assert (result.orientation_deg.median, result.orientation_deg.rmse) == pytest.approx((5.0, 5.0))


def test_a_steady_roll_is_the_relative_error_per_frame_and_per_second() -> None:
    rng = np.random.default_rng(4)
    truth = path_of(rng.normal(size=(31, 3)))
    rolling = Rotation.from_euler("z", 0.5 * np.arange(31)[:, None], degrees=True).as_matrix()
    result = evaluate(path_of(truth.positions, rolling), truth)
    assert (result.rpe_frame.delta, result.rpe_frame.pairs) == ("1 frame", 30)
    assert result.rpe_frame.rotation_deg.median == pytest.approx(0.5)
    assert result.rpe_second is not None
    assert (result.rpe_second.delta, result.rpe_second.pairs) == ("1 s", 21)
    assert result.rpe_second.rotation_deg.max == pytest.approx(5.0)


def test_a_wrong_step_is_a_relative_error_of_its_length_in_one_pair() -> None:
    truth = path_of([[0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0]])
    estimate = path_of([[0, 0, 0], [1, 0, 0], [2, 0, 0.25], [2, 1, 0.25]])
    error = relative_error(estimate, truth, delta_frames=1)
    assert error is not None
    assert (error.translation.max, error.translation.median) == pytest.approx((0.25, 0.0))


def test_drift_is_the_error_of_the_whole_motion_per_path_length() -> None:
    # A square walked twice; in the estimate the last corner is missed. Scale is held near one by the rest.
    truth = path_of(np.tile(SQUARE, (50, 1)))
    missed = truth.positions.copy()
    missed[-1] += [0.0, 0.0, 1.0]
    result = evaluate(path_of(missed), truth)
    assert result.path_length == pytest.approx(398.0)
    assert result.drift_percent == pytest.approx(100 * 1.0 / 398.0, rel=0.01)


def test_a_run_shorter_than_a_second_has_no_error_per_second() -> None:
    result = evaluate(path_of(SQUARE), path_of(SQUARE))
    assert result.rpe_second is None
    assert result.to_dict()["rpe_second"] is None


def test_pairs_a_second_apart_skip_a_gap() -> None:
    truth = path_of(np.random.default_rng(0).normal(size=(30, 3)))
    keep = np.r_[0:10, 25:30]  # nothing from 1.0 s to 2.4 s
    gappy = Trajectory(truth.timestamps_ns[keep], truth.world_from_cam[keep])
    assert relative_error(gappy, gappy, delta_s=1.0) is None
    assert relative_error(gappy, gappy, delta_s=0.5) is not None


@pytest.mark.parametrize(
    "deltas",
    [
        {},
        {"delta_frames": 1, "delta_s": 1.0},
        {"delta_s": -1.0},
        {"delta_frames": 0},
        {"delta_s": 0.0},
        {"delta_frames": -1},
        {"delta_frames": 0, "delta_s": 0.0},
        {"delta_s": np.nan},
        {"delta_s": np.inf},
    ],
)
def test_a_relative_error_needs_one_positive_delta(deltas: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give one of delta_frames and delta_s"):
        relative_error(path_of(SQUARE), path_of(SQUARE), **deltas)


def test_positions_on_one_line_leave_the_orientation_open() -> None:
    line = np.outer(np.arange(20.0), [1.0, 2.0, -0.5])
    result = evaluate(path_of(line * 3), path_of(line))
    assert result.orientation_deg is None
    assert result.ate_sim3.rmse == pytest.approx(0.0, abs=1e-9)
    assert result.scale == pytest.approx(1 / 3)


def test_stamps_pair_with_the_nearest_one_to_one() -> None:
    first, second = associate([0, 100, 200], [5, 98, 104, 190, 500], max_difference_s=20e-9)
    assert (first.tolist(), second.tolist()) == ([0, 1, 2], [0, 1, 3])


def test_a_stamp_taken_by_a_closer_partner_goes_to_nobody_else() -> None:
    first, second = associate([0, 10], [8], max_difference_s=20e-9)
    assert (first.tolist(), second.tolist()) == ([1], [0])


def test_pairs_of_stamps_keep_their_order() -> None:
    # The closest pair is (10, 11); what remains, (13, 8), is close enough but would run backwards.
    first, second = associate([10, 13], [8, 11], max_difference_s=6e-9)
    assert (first.tolist(), second.tolist()) == ([0], [1])


def test_the_largest_difference_is_still_a_match() -> None:
    assert len(associate([0], [20], max_difference_s=20e-9)[0]) == 1
    assert len(associate([0], [21], max_difference_s=20e-9)[0]) == 0


def test_stamps_of_another_clock_do_not_match_and_the_error_shows_both() -> None:
    truth = path_of(SQUARE, start_ns=1_403_636_579 * SECOND)
    with pytest.raises(TrajectoryError) as caught:
        evaluate(path_of(SQUARE), truth)
    assert str(caught.value) == (
        "0 of 4 poses have a ground truth pose within 0.02 s, 3 are needed "
        "(estimate: 0.000000000 to 0.300000000 s; "
        "ground truth: 1403636579.000000000 to 1403636579.300000000 s); "
        "compare the clocks of the two files, or allow a larger difference"
    )


@pytest.mark.parametrize(("factor", "unit"), [(10**9, "nano"), (10**6, "micro"), (1000, "milli")])
def test_times_in_another_unit_are_suspected_when_none_match(factor: int, unit: str) -> None:
    truth = wandering(np.random.default_rng(0), 40)
    wrong = replace(truth, timestamps_ns=truth.timestamps_ns * factor + 10**12)
    for pair, side in (((truth, wrong), "ground truth"), ((wrong, truth), "estimate")):
        with pytest.raises(TrajectoryError, match=rf"times of the {side} in {unit}seconds.*# timestamp\["):
            evaluate(*pair)


def test_that_most_poses_have_no_ground_truth_is_said() -> None:
    truth = wandering(np.random.default_rng(0))
    slow = Trajectory(truth.timestamps_ns[::20], truth.world_from_cam[::20])
    [note] = evaluate(truth, slow).notes
    assert note == (
        "6 of 120 poses of the estimate have a ground truth pose within 0.02 s (it has 6 poses); "
        "the others are not judged"
    )
    assert evaluate(slow, truth).notes == ()


def test_two_matches_are_too_few() -> None:
    with pytest.raises(TrajectoryError, match="2 of 4 poses have a ground truth pose"):
        evaluate(path_of(SQUARE), path_of(SQUARE, start_ns=2 * FRAME))


def test_an_estimate_without_poses_is_an_error() -> None:
    empty = Trajectory(np.zeros(0, np.int64), np.zeros((0, 4, 4)))
    with pytest.raises(TrajectoryError, match=r"0 of 0 poses .* \(estimate: no poses"):
        evaluate(empty, path_of(SQUARE))


@pytest.mark.parametrize("still", ["estimate", "ground truth"])
def test_a_side_that_never_moved_is_an_error(still: str) -> None:
    standing, moving = path_of(np.full((4, 3), 0.1)), path_of(SQUARE)
    sides = (standing, moving) if still == "estimate" else (moving, standing)
    with pytest.raises(TrajectoryError, match=f"all 4 matched positions of the {still} are at one place"):
        evaluate(*sides)


def test_coverage_counts_the_frames_that_should_have_a_pose() -> None:
    truth = wandering(np.random.default_rng(1), 40)
    half = Trajectory(truth.timestamps_ns[20:], truth.world_from_cam[20:])
    result = evaluate(half, truth, expected=truth.timestamps_ns)
    assert (result.covered, result.expected, result.coverage) == (20, 40, 0.5)
    assert result.coverage_of == "frames of the sequence"


def test_a_missing_frame_is_not_covered_by_its_neighbor() -> None:
    truth = path_of(np.random.default_rng(1).normal(size=(10, 3)), step_ns=SECOND // 100)  # 10 ms, below 20 ms
    keep = np.delete(np.arange(10), 4)
    result = evaluate(
        Trajectory(truth.timestamps_ns[keep], truth.world_from_cam[keep]), truth, expected=truth.timestamps_ns
    )
    assert (result.covered, result.expected) == (9, 10)


def test_without_expected_frames_coverage_is_that_of_the_truth_within_the_span() -> None:
    truth = wandering(np.random.default_rng(2), 40)
    keep = np.r_[10:15, 20:30]
    result = evaluate(Trajectory(truth.timestamps_ns[keep], truth.world_from_cam[keep]), truth)
    assert (result.covered, result.expected) == (15, 20)
    assert result.coverage_of == "ground truth poses within the estimate's time span"


def test_ground_truth_that_comes_faster_than_images_is_covered() -> None:
    fast = path_of(np.random.default_rng(3).normal(size=(100, 3)).cumsum(axis=0), step_ns=SECOND // 100)
    result = evaluate(Trajectory(fast.timestamps_ns[::3], fast.world_from_cam[::3]), fast)
    assert (result.matched, result.coverage) == (34, 1.0)


# --- sides without times ------------------------------------------------------------------------------


def test_made_up_times_are_never_matched_with_real_ones() -> None:
    truth = wandering(np.random.default_rng(0))
    untimed = replace(truth, has_times=False)
    for pair, side in (((truth, untimed), "ground truth"), ((untimed, truth), "estimate")):
        with pytest.raises(TrajectoryError, match=rf"the {side} has no times.*give them their times"):
            evaluate(*pair)


def test_two_sides_without_times_belong_together_line_by_line_and_nothing_is_measured_in_seconds() -> None:
    truth = replace(wandering(np.random.default_rng(0)), has_times=False)
    result = evaluate(truth, truth)
    assert (result.matched, result.matched_by, result.rpe_second) == (120, "line number", None)
    assert result.title.startswith("120 poses matched by line number, ")


def test_two_sides_without_times_that_differ_in_length_are_refused() -> None:
    truth = replace(wandering(np.random.default_rng(0)), has_times=False)
    fewer = replace(truth, timestamps_ns=truth.timestamps_ns[:90], world_from_cam=truth.world_from_cam[:90])
    with pytest.raises(TrajectoryError, match=r"neither side has times.*has 90 poses and the ground truth 120"):
        evaluate(fewer, truth)


def test_no_expected_frames_at_all_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no frames are expected"):
        evaluate(path_of(SQUARE), path_of(SQUARE), expected=np.zeros(0, np.int64))


def test_the_title_says_what_was_aligned_and_how() -> None:
    result = evaluate(path_of(np.array(SQUARE) / 2), path_of(SQUARE))
    assert result.title == (
        "4 poses matched within 0.02 s, Umeyama alignment by Sim(3) (scale 2) and by SE(3) (scale 1)"
    )


def test_the_figures_go_through_json() -> None:
    rng = np.random.default_rng(5)
    truth = wandering(rng)
    result = evaluate(disturbed(truth, rng), truth)
    figures = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert figures["ate_sim3"]["rmse"] == result.ate_sim3.rmse
    assert figures["ate_percent"] == pytest.approx(100 * result.ate_sim3.rmse / truth.length)
    assert figures["rpe_second"]["rotation_deg"]["median"] > 0


def test_evaluating_changes_neither_trajectory() -> None:
    rng = np.random.default_rng(6)
    truth = wandering(rng)
    estimate = disturbed(truth, rng)
    before = estimate.world_from_cam.tobytes(), truth.world_from_cam.tobytes()
    evaluate(estimate, truth)
    assert (estimate.world_from_cam.tobytes(), truth.world_from_cam.tobytes()) == before


Evo = Callable[[Trajectory, Trajectory], dict[str, float]]


@pytest.fixture
def evo() -> Evo:
    metrics = pytest.importorskip("evo.core.metrics", reason="evo is a development dependency")
    from evo.core.trajectory import PoseTrajectory3D

    def of(trajectory: Trajectory) -> Any:
        return PoseTrajectory3D(
            poses_se3=list(trajectory.world_from_cam.copy()), timestamps=trajectory.timestamps_ns * 1e-9
        )

    def figures(prefix: str, metric: Any, pair: tuple[Any, Any]) -> dict[str, float]:
        metric.process_data(pair)
        kinds = metrics.StatisticsType
        wanted = {"rmse": kinds.rmse, "mean": kinds.mean, "median": kinds.median, "max": kinds.max}
        return {f"{prefix}.{name}": metric.get_statistic(kind) for name, kind in wanted.items()}

    def run(estimate: Trajectory, truth: Trajectory) -> dict[str, float]:
        relation = metrics.PoseRelation
        rigid, similar = of(estimate), of(estimate)
        rigid.align(of(truth), correct_scale=False)
        scale = similar.align(of(truth), correct_scale=True)[2]
        pair = (of(truth), similar)
        return {
            "scale": scale,
            **figures("ate_se3", metrics.APE(relation.translation_part), (of(truth), rigid)),
            **figures("ate_sim3", metrics.APE(relation.translation_part), pair),
            **figures("orientation_deg", metrics.APE(relation.rotation_angle_deg), pair),
            **figures("rpe_frame.translation", metrics.RPE(relation.translation_part, 1, all_pairs=True), pair),
            **figures("rpe_frame.rotation_deg", metrics.RPE(relation.rotation_angle_deg, 1, all_pairs=True), pair),
            **figures("rpe_second.translation", metrics.RPE(relation.translation_part, 10, all_pairs=True), pair),
            **figures("rpe_second.rotation_deg", metrics.RPE(relation.rotation_angle_deg, 10, all_pairs=True), pair),
        }

    return run


def ours(estimate: Trajectory, truth: Trajectory, names: list[str]) -> dict[str, float]:
    figures = evaluate(estimate, truth).to_dict()

    def at(name: str) -> float:
        value: Any = figures
        for key in name.split("."):
            value = value[key]
        return float(value)

    return {name: at(name) for name in names}


@pytest.mark.parametrize("seed", range(10))
def test_every_figure_equals_evos_on_random_paths(seed: int, evo: Evo) -> None:
    rng = np.random.default_rng(seed)
    truth = wandering(rng)
    estimate = disturbed(truth, rng, scale=float(rng.uniform(0.1, 10.0)))
    theirs = evo(estimate, truth)
    assert ours(estimate, truth, list(theirs)) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.skipif("SLAM_SEQUENCES" not in os.environ, reason="SLAM_SEQUENCES names no folder of sequences")
@pytest.mark.parametrize("name", ["kitti_07", "tum_fr1_xyz", "7scenes_chess_seq01", "tartanair_office_P000"])
def test_every_figure_equals_evos_on_real_paths(name: str, evo: Evo) -> None:
    truth = read_trajectory(Path(os.environ["SLAM_SEQUENCES"]) / "trajectories" / f"{name}.txt")
    truth = path_of(truth.positions, truth.world_from_cam[:, :3, :3])  # ten to the second, as evo counts frames
    estimate = disturbed(truth, np.random.default_rng(0))
    theirs = evo(estimate, truth)
    assert ours(estimate, truth, list(theirs)) == pytest.approx(theirs, rel=1e-9)


def test_a_plot_is_an_image_with_something_on_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(7)
    truth = wandering(rng)
    plot_evaluation(evaluate(disturbed(truth, rng), truth), tmp_path / "plot.png")
    image = cv2.imread(str(tmp_path / "plot.png"))
    assert image is not None
    assert image.shape[0] > 400
    assert image.shape[1] > 800
    assert 0.01 < (image.min(axis=2) < 250).mean() < 0.5


def test_the_same_evaluation_gives_the_same_bytes_of_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = evaluate(path_of(SQUARE), path_of(SQUARE))
    for name in ("a.png", "b.png"):
        plot_evaluation(result, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'reloc3r-slam\[eval\]'"):
        plot_evaluation(evaluate(path_of(SQUARE), path_of(SQUARE)), tmp_path / "plot.png")


def test_a_plot_of_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a plot is written as \.png, \.pdf, \.svg, not '\.txt'"):
        plot_evaluation(evaluate(path_of(SQUARE), path_of(SQUARE)), tmp_path / "plot.txt")


def test_a_plot_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(OutputError, match="cannot be written"):
        plot_evaluation(evaluate(path_of(SQUARE), path_of(SQUARE)), tmp_path / "none" / "plot.png")


def test_a_straight_path_is_turned_by_its_orientations():
    line = np.tile(np.eye(4), (5, 1, 1))
    line[:, 2, 3] = np.arange(5)
    elsewhere = Similarity(exp_so3([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0]), 3.0)  # turned about the path itself
    there = Trajectory(np.arange(5), line).transformed(elsewhere)
    found = fit_similarity(line, there.world_from_cam)
    assert found is not None
    assert found.is_close(elsewhere.inverse())


def test_poses_at_one_place_fix_no_similarity():
    still, line = np.tile(np.eye(4), (5, 1, 1)), np.tile(np.eye(4), (5, 1, 1))
    line[:, 2, 3] = np.arange(5)
    assert fit_similarity(still, line) is None
    assert fit_similarity(line, still) is None

"""Errors along a path: KITTI's relative errors, and the drift of the scale; several trajectories at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from slam.evaluation.metrics import evaluate
from slam.evaluation.path_errors import length_errors, scale_drift
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import write_tum


def drive(count: int = 400, step: float = 1.0, seed: int = 0) -> Trajectory:
    """A winding road."""
    rng = np.random.default_rng(seed)
    heading = np.cumsum(rng.normal(0, 0.03, count))
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.from_euler("y", heading[:, None]).as_matrix()
    poses[:, 0, 3], poses[:, 2, 3] = np.cumsum(step * np.sin(heading)), np.cumsum(step * np.cos(heading))
    return Trajectory(np.arange(count) * 100_000_000, poses)


def disturbed(truth: Trajectory, seed: int = 1) -> Trajectory:
    rng = np.random.default_rng(seed)
    poses = truth.world_from_cam.copy()
    poses[:, :3, 3] += np.cumsum(rng.normal(0, 0.02, (len(truth), 3)), axis=0)
    wobble = Rotation.from_rotvec(np.cumsum(rng.normal(0, 1e-3, (len(truth), 3)), axis=0)).as_matrix()
    poses[:, :3, :3] = poses[:, :3, :3] @ wobble
    return Trajectory(truth.timestamps_ns, poses)


def kittis_own(estimate: Trajectory, truth: Trajectory) -> tuple[int, float, float]:
    """The errors as the development kit's documentation describes them, pair by pair."""
    walked = [0.0]
    for a, b in zip(truth.positions[:-1], truth.positions[1:], strict=True):
        walked.append(walked[-1] + float(np.linalg.norm(b - a)))
    errors = []
    for first in range(0, len(truth), 10):
        for length in (100, 200, 300, 400, 500, 600, 700, 800):
            last = next((k for k in range(first, len(truth)) if walked[k] > walked[first] + length), None)
            if last is None:
                continue
            true = np.linalg.inv(truth.world_from_cam[first]) @ truth.world_from_cam[last]
            own = np.linalg.inv(estimate.world_from_cam[first]) @ estimate.world_from_cam[last]
            off = np.linalg.inv(own) @ true
            angle = np.degrees(np.arccos(np.clip((np.trace(off[:3, :3]) - 1) / 2, -1, 1)))
            errors.append((np.linalg.norm(off[:3, 3]) / length, angle / length))
    return len(errors), 100 * np.mean([t for t, _ in errors]), 100 * np.mean([r for _, r in errors])


def test_errors_by_length_are_kittis():
    truth = drive()
    estimate = disturbed(truth)
    parts, translation, rotation = kittis_own(estimate, truth)
    found = length_errors(estimate, truth)
    assert found.parts == parts > 50
    assert found.translation_percent == pytest.approx(translation, rel=1e-9)
    assert found.rotation_deg_per_100 == pytest.approx(rotation, rel=1e-6)


def test_a_short_path_has_no_errors_by_length():
    assert length_errors(drive(50), drive(50)) is None


def test_the_scale_drifts_by_what_the_steps_shrink():
    truth = drive(1000, seed=2)
    shrinking = np.exp(np.linspace(0, np.log(0.8), len(truth)))
    poses = truth.world_from_cam.copy()
    steps = np.diff(truth.positions, axis=0, prepend=truth.positions[:1]) * shrinking[:, None]
    poses[:, :3, 3] = np.cumsum(steps, axis=0)
    found = evaluate(Trajectory(truth.timestamps_ns, poses), truth)
    drift = scale_drift(found.aligned, found.reference)
    assert drift.change_percent == pytest.approx(-18.0, abs=1.5)  # nine tenths of the way to -20 %
    same = evaluate(truth, truth)
    still = scale_drift(same.aligned, same.reference)
    assert still.change_percent == pytest.approx(0.0, abs=1e-9)
    assert still.spread_percent == pytest.approx(0.0, abs=1e-9)


def test_a_camera_that_does_not_travel_has_no_drift_of_scale():
    truth = drive(3)
    assert scale_drift(truth, truth) is None


# --- slam eval for several ------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three estimates and the ground truth."""
    truth = drive(200)
    paths = [tmp_path / f"run{k}.txt" for k in range(3)]
    for k, path in enumerate(paths):
        write_tum(path, disturbed(truth, k))
    write_tum(tmp_path / "truth.txt", truth)
    return [*paths, tmp_path / "truth.txt"]


def test_several_estimates_have_a_mean_a_median_and_a_spread(slam_command, files):
    ended = slam_command("eval", *files, "--json")
    assert ended.code == 0
    values = json.loads(ended.out)
    errors = [values["estimates"][str(path)]["ATE Sim(3)"] for path in files[:3]]
    one = json.loads(slam_command("eval", files[0], files[3], "--json").out)
    assert errors[0] == one["ate_sim3"]["rmse"]
    spread = values["spread"]
    assert spread["mean"]["ATE Sim(3)"] == pytest.approx(np.mean(errors))
    assert spread["median"]["ATE Sim(3)"] == pytest.approx(np.median(errors))
    assert (spread["smallest"]["ATE Sim(3)"], spread["largest"]["ATE Sim(3)"]) == (min(errors), max(errors))
    assert spread["standard deviation"]["ATE Sim(3)"] == pytest.approx(np.std(errors, ddof=1))
    assert one["scale_drift"]["spread_percent"] > 0
    table = slam_command("eval", *files).out
    assert "median" in table
    assert "scale change, %" in table


def test_a_report_of_one_or_several_estimates_is_one_page(slam_command, files, tmp_path):
    for given in (files, [files[0], files[3]]):
        path = tmp_path / f"{len(given)}.html"
        ended = slam_command("eval", *given, "--html", path)
        assert ended.code == 0
        page = path.read_text()
        assert page.count("<svg") == (4 if len(given) == 4 else 3)
        assert "Position error over time" in page
    assert slam_command("eval", *files, "--html", path).code == 2  # it is there already


def test_an_estimate_that_cannot_be_read_leaves_the_others(slam_command, files, tmp_path):
    ended = slam_command("eval", files[0], tmp_path / "none.txt", files[1], files[3])
    assert ended.code == 2
    assert "none.txt: no such trajectory file" in ended.err
    assert "run1.txt" in ended.out
    assert slam_command("eval", *files, "--plot", tmp_path / "a.png").code == 2


def test_the_worst_of_several_counts_for_the_limit(slam_command, files):
    errors = json.loads(slam_command("eval", *files, "--json").out)["spread"]
    largest = errors["largest"]["ATE Sim(3)"]
    assert slam_command("eval", *files, "--max-ate", largest * 1.01).code == 0
    assert slam_command("eval", *files, "--max-ate", largest * 0.99).code == 1

"""A recorded run against the ground truth of its sequence: all frames, keyframes, live poses, both alignments."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import TrajectoryError
from slam.benchmarks.benchmark_error import BenchmarkError
from slam.evaluation.alignment import MATCHES_NEEDED, associate
from slam.evaluation.metrics import Evaluation, evaluate, position_errors
from slam.evaluation.path_errors import length_errors
from slam.evaluation.pose_files import open_poses
from slam.evaluation.trajectory import Trajectory
from slam.input.dataset_layouts import index_folder
from slam.run.run_folder import KEYFRAMES, ONLINE, TRAJECTORY

TOLERANCE_S = 0.02  # Largest time difference of a pose and its ground truth, as in `slam run`, seconds.
MOST_POINTS = 400  # Points of a path that are kept for the plots.
ALL, KEYFRAME_POSES, LIVE = "all", "keyframes", "online"


def expect_ground_truth(path: Path, truth: Trajectory | None) -> None:
    """Checks, before a run, that it can be evaluated.

    Raises:
        BenchmarkError: there is no ground truth, or fewer than three images have a pose at their time.
    """
    if truth is None:
        notes = unused_ground_truth(path)
        raise BenchmarkError(f"{path}: no ground truth{': ' * bool(notes)}{'; '.join(notes)}")
    index = index_folder(path) if path.is_dir() else None
    if index is None or not index.image_paths:
        return
    _, matched = associate(index.timestamps_ns, truth.timestamps_ns, max_difference_s=TOLERANCE_S)
    if len(matched) < MATCHES_NEEDED:
        raise BenchmarkError(
            f"{path}: {len(matched)} of {len(index.image_paths)} images have a true pose within {TOLERANCE_S:g} s "
            f"(there are {len(truth)} poses), {MATCHES_NEEDED} are needed"
        )


def unused_ground_truth(path: Path) -> list[str]:
    """Why a ground truth that a sequence has cannot be used, in sentences; none for a sequence without one."""
    return [note for note in index_folder(path).notes if "groundtruth" in note] if path.is_dir() else []


def evaluate_run(folder: Path, truth: Trajectory) -> dict[str, Any]:
    """Errors of the trajectories in a run folder, in plain values; `reason` if there are none."""
    poses = open_poses(folder)
    expected = np.array(sorted(poses.frames), dtype=np.int64) if poses.frames else None
    values: dict[str, Any] = {"reason": "", "kitti": None, "plot": None}
    files = {ALL: TRAJECTORY, KEYFRAME_POSES: KEYFRAMES, LIVE: ONLINE}
    for name, file in files.items():
        trajectory = open_poses(folder / file).trajectory
        try:
            found = evaluate(trajectory, truth, max_difference_s=TOLERANCE_S, expected=expected)
        except TrajectoryError as error:
            values[name] = None
            values["reason"] = values["reason"] or str(error)
            continue
        values[name] = found.to_dict()
        if name == ALL:
            along = length_errors(found.aligned, found.reference)
            values["kitti"] = None if along is None else asdict(along)
            values["plot"] = plot_values(found)
    return values


def plot_values(found: Evaluation) -> dict[str, Any]:
    """Both paths from above, and the error over time, at most `MOST_POINTS` points each."""
    reference, aligned = found.reference, found.aligned
    up = int(np.argmin(np.ptp(reference.positions, axis=0)))
    across, along = [axis for axis in range(3) if axis != up]
    rows = _thinned(len(reference))
    errors = position_errors(aligned, reference)
    return {
        "axes": ["xyz"[across], "xyz"[along]],
        "truth": np.round(reference.positions[rows][:, [across, along]], 5).tolist(),
        "estimate": np.round(aligned.positions[rows][:, [across, along]], 5).tolist(),
        "seconds": np.round((reference.timestamps_ns[rows] - reference.timestamps_ns[0]) * 1e-9, 3).tolist(),
        "error": errors[rows].tolist(),
        "quantiles": np.quantile(errors, np.linspace(0, 1, 101)).tolist(),
    }


def _thinned(count: int) -> NDArray[np.intp]:
    return np.arange(0, count, -(-count // MOST_POINTS))

"""Preconditions of comparing two trajectories; errors explain what is missing."""

from __future__ import annotations

import numpy as np

from relocalizer.errors import TrajectoryError
from relocalizer.geometry import FloatArray
from slam.evaluation.alignment import MATCHES_NEEDED
from slam.evaluation.disagreement import find_offset, note_of_units
from slam.evaluation.trajectory import Trajectory, seconds_from_nanoseconds

STANDSTILL = 1e-9  # Largest extent of positions, relative to their magnitude, below which there is no motion.
ONE_LINE = 1e-6  # Ratio of the two largest extents below which positions are collinear.


def expect_times(estimate: Trajectory, truth: Trajectory) -> None:
    """Raises TrajectoryError unless both trajectories have times, or neither has and they have equal lengths."""
    if estimate.has_times != truth.has_times:
        without = "ground truth" if estimate.has_times else "estimate"
        raise TrajectoryError(
            f"the {without} has no times, so its {len(truth if estimate.has_times else estimate)} poses belong to none "
            f"of the other's {len(estimate if estimate.has_times else truth)}; give them their times"
        )
    if not estimate.has_times and len(estimate) != len(truth):
        raise TrajectoryError(
            f"neither side has times, so they belong together line by line, but the estimate has {len(estimate)} poses "
            f"and the ground truth {len(truth)}; give them their times"
        )


def expect_matches(matches: int, estimate: Trajectory, truth: Trajectory, max_difference_s: float) -> None:
    """Raises TrajectoryError with advice if there are too few matches for an alignment."""
    if matches >= MATCHES_NEEDED:
        return
    offset = find_offset(estimate, truth, max_difference_s=max_difference_s)
    advice = note_of_units(estimate, truth) if offset is None else str(offset)
    advice = advice or "compare the clocks of the two files, or allow a larger difference"
    raise TrajectoryError(
        f"{matches} of {len(estimate)} poses have a ground truth pose within {max_difference_s:g} s, "
        f"{MATCHES_NEEDED} are needed (estimate: {_span(estimate)}; ground truth: {_span(truth)}); {advice}"
    )


def _span(trajectory: Trajectory) -> str:
    if len(trajectory) == 0:
        return "no poses"
    first, last = trajectory.timestamps_ns[[0, -1]].tolist()
    return f"{seconds_from_nanoseconds(first)} to {seconds_from_nanoseconds(last)} s"


def expect_motion(trajectory: Trajectory, name: str) -> None:
    """Raises TrajectoryError if all positions are equal."""
    extents = extents_of(trajectory)
    if extents[0] <= STANDSTILL * (1.0 + float(np.abs(trajectory.positions).max())):
        raise TrajectoryError(
            f"all {len(trajectory)} matched positions of the {name} are at one place, "
            "so no alignment and no scale can be found"
        )


def extents_of(trajectory: Trajectory) -> FloatArray:
    """RMS extent of the positions along their three principal axes, largest first."""
    centered = trajectory.positions - trajectory.positions.mean(axis=0)
    return np.asarray(np.linalg.svd(centered, compute_uv=False) / np.sqrt(len(centered)))

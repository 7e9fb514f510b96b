"""Errors along a path: KITTI's relative errors by length, and the drift of the scale.

KITTI: Geiger et al., "Are we ready for autonomous driving? The KITTI vision benchmark suite", 2012, and its odometry
development kit: errors of the motion over parts of 100 to 800 m, begun at every tenth frame, per meter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray
from slam.evaluation.metrics import motion_errors
from slam.evaluation.trajectory import Trajectory

KITTI_LENGTHS = tuple(range(100, 801, 100))  # Of the parts, meters.
KITTI_STEP = 10  # Number of frames from one start to the next.
SCALE_PARTS = 10  # Number of parts of the path, per length of it, over which the scale is compared.


@dataclass(frozen=True, slots=True)
class LengthErrors:
    """KITTI's relative errors.

    Attributes:
        parts: number of parts of the path that were compared.
        translation_percent: mean over the parts of the translation error, percent of the length.
        rotation_deg_per_100: mean rotation error, degrees per 100 units of length.
    """

    parts: int
    translation_percent: float
    rotation_deg_per_100: float


@dataclass(frozen=True, slots=True, eq=False)
class ScaleDrift:
    """The local scale of an aligned estimate along its path; 1 is the scale of the whole.

    Attributes:
        rows: (M,) indices of the poses at which a part ends.
        scale: (M,) length of the estimate's motion over each part, relative to the true one.
        change_percent: change of the scale from the first to the last part, from a line fitted to its logarithm.
        spread_percent: standard deviation of the logarithm, percent.
    """

    rows: NDArray[np.intp]
    scale: FloatArray
    change_percent: float
    spread_percent: float


def length_errors(
    aligned: Trajectory, reference: Trajectory, lengths: Sequence[float] = KITTI_LENGTHS
) -> LengthErrors | None:
    """KITTI's errors of N matched poses, the estimate's after alignment; None if the path is too short for all."""
    starts, ends, spans = _parts(reference, lengths, KITTI_STEP)
    if not len(starts):
        return None
    translation, rotation_deg = motion_errors(aligned, reference, starts, ends)
    return LengthErrors(
        parts=len(starts),
        translation_percent=float(100 * np.mean(translation / spans)),
        rotation_deg_per_100=float(100 * np.mean(rotation_deg / spans)),
    )


def scale_drift(aligned: Trajectory, reference: Trajectory) -> ScaleDrift | None:
    """The local scale of N matched poses over parts of a tenth of the path; None if too few parts move."""
    length = reference.length / SCALE_PARTS
    starts, ends, _ = _parts(reference, (length,), 1)
    true = np.linalg.norm(reference.positions[ends] - reference.positions[starts], axis=1)
    own = np.linalg.norm(aligned.positions[ends] - aligned.positions[starts], axis=1)
    moved = (true > 0.1 * length) & (own > 0)  # The chord of a part that turns back says nothing of the scale.
    if moved.sum() < 3:
        return None
    rows, scale = ends[moved], own[moved] / true[moved]
    logarithm = np.log(scale)
    slope = np.polyfit(rows.astype(np.float64), logarithm, 1)[0]
    return ScaleDrift(
        rows=rows,
        scale=np.asarray(scale),
        change_percent=float(100 * (np.exp(slope * (rows[-1] - rows[0])) - 1)),
        spread_percent=float(100 * np.std(logarithm)),
    )


def _parts(
    reference: Trajectory, lengths: Sequence[float], step: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], FloatArray]:
    """First and last pose of each part, and its nominal length: the last is the first one beyond the length."""
    walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(reference.positions, axis=0), axis=1))])
    starts = np.arange(0, len(walked), step)
    found: list[tuple[int, int, float]] = []
    for length in lengths:
        ends = np.searchsorted(walked, walked[starts] + length, side="right")
        found += [(int(i), int(j), length) for i, j in zip(starts, ends, strict=True) if j < len(walked)]
    if not found:
        return np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0)
    i, j, spans = zip(*sorted(found), strict=True)
    return np.array(i, dtype=np.intp), np.array(j, dtype=np.intp), np.array(spans, dtype=np.float64)

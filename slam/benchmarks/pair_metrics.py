"""Errors and scores of relative poses, as in the published evaluations.

Two conventions exist for the sign of a direction. Reloc3r's own evaluation counts the angle from 0 to 180 degrees
(plain); LoFTR, SuperGlue, NoPoSplat, PoseDiffusion and VGGT take a direction and its opposite for equal (folded). Both
are computed here. A missing or undefined estimate counts as 180 degrees in both.

AUC: Sarlin et al., "SuperGlue", 2020. RRA, RTA and mAA: Wang et al., "PoseDiffusion", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from relocalizer.geometry import FloatArray, direction_angle, rotation_angle
from relocalizer.interfaces import NoEstimate, PairEstimate

MISSING_DEG = 180.0  # Error of a missing estimate, degrees.
AUC_DEG = (5.0, 10.0, 20.0)  # Thresholds of the published tables, degrees.
ACCURACY_DEG, MAA_DEG = 15.0, 30  # Thresholds of RRA and RTA, and of mAA, degrees.


@dataclass(frozen=True, slots=True)
class PairError:
    """Errors of one relative pose, degrees; `plain_deg` and `folded_deg` are those of the direction."""

    rotation_deg: float
    plain_deg: float
    folded_deg: float


def pair_error(estimate: PairEstimate | NoEstimate, i_from_j: FloatArray) -> PairError:
    """The errors of an estimate, given the true pose (4, 4) of camera j in camera i.

    The direction counts as missing if the estimate has none, or if the true cameras are at one place.
    """
    if isinstance(estimate, NoEstimate):
        return PairError(MISSING_DEG, MISSING_DEG, MISSING_DEG)
    rotation_deg = _degrees(rotation_angle(estimate.i_from_j_rotation.T @ i_from_j[:3, :3]))
    baseline, direction = i_from_j[:3, 3], estimate.i_from_j_direction
    if direction is None or not np.linalg.norm(baseline) > 0:
        return PairError(rotation_deg, MISSING_DEG, MISSING_DEG)
    plain_deg = float(np.degrees(direction_angle(direction, baseline)))
    if not np.isfinite(plain_deg):
        return PairError(rotation_deg, MISSING_DEG, MISSING_DEG)
    return PairError(rotation_deg, plain_deg, min(plain_deg, 180.0 - plain_deg))


def _degrees(radians: float) -> float:
    degrees = float(np.degrees(radians))
    return degrees if np.isfinite(degrees) else MISSING_DEG


def pose_auc(errors_deg: ArrayLike, thresholds_deg: Sequence[float] = AUC_DEG) -> list[float]:
    """Area under the recall curve of the pair errors up to each threshold, divided by it; in [0, 1].

    An error equal to a threshold is not below it.

    Raises:
        ValueError: there are no errors.
    """
    errors = np.sort(np.nan_to_num(np.asarray(errors_deg, dtype=np.float64), nan=MISSING_DEG))
    if not len(errors):
        raise ValueError("pose_auc: no errors")
    errors = np.concatenate([[0.0], errors])
    recall = np.arange(len(errors)) / (len(errors) - 1)
    areas = []
    for threshold in thresholds_deg:
        below = max(int(np.searchsorted(errors, threshold)), 1)
        x, y = np.append(errors[:below], threshold), np.append(recall[:below], recall[below - 1])
        areas.append(float(np.trapezoid(y, x)) / threshold)
    return areas


def accuracy(errors_deg: ArrayLike, threshold_deg: float = ACCURACY_DEG) -> float:
    """Fraction of errors below a threshold: RRA of rotations, RTA of directions."""
    return float(np.mean(np.asarray(errors_deg, dtype=np.float64) < threshold_deg))


def mean_average_accuracy(errors_deg: ArrayLike, largest_deg: int = MAA_DEG) -> float:
    """mAA of pair errors, the larger of rotation and direction: the mean of the accuracies at 1, 2, ... degrees.

    As published, from a histogram of bins of one degree, whose last bin includes its upper end.
    """
    errors = np.asarray(errors_deg, dtype=np.float64)
    counts, _ = np.histogram(errors, bins=np.arange(largest_deg + 1))
    return float(np.mean(np.cumsum(counts / len(errors))))

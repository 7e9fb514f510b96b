"""Checks of a pair predictor's outputs, which may not be finite for a network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relocalizer.interfaces import Encoded, NoEstimate, PairEstimate, PosePredictor

UNIT_TOLERANCE = 1e-3  # maximum deviation from 1 of the norm of a unit vector or of a rotation's row


def relate(predictor: PosePredictor, i: Encoded, j: Encoded) -> PairEstimate | NoEstimate:
    """Relative pose i_from_j of two images; an invalid pose is returned as NoEstimate."""
    [estimate] = predictor.relate([(i, j)])
    return checked(estimate)


def checked(estimate: PairEstimate | NoEstimate) -> PairEstimate | NoEstimate:
    """The estimate, or NoEstimate in place of an invalid pose."""
    if isinstance(estimate, NoEstimate) or _is_pose(estimate):
        return estimate
    return NoEstimate("the predictor's answer is no pose with finite sigmas")


def describe(predictor: PosePredictor, encoded: Encoded) -> tuple[NDArray[np.float32], bool]:
    """Unit vector (D,) for place recognition, and whether it is the predictor's.

    It is replaced by (1, 0, ..., 0), which is similar to hardly any place, if the predictor's is not a unit vector.
    """
    descriptor = predictor.describe(encoded)
    if abs(float(np.linalg.norm(descriptor)) - 1.0) < UNIT_TOLERANCE:
        return descriptor, True
    return np.eye(1, descriptor.size, dtype=np.float32)[0], False


def _is_pose(estimate: PairEstimate) -> bool:
    R, direction = estimate.i_from_j_rotation, estimate.i_from_j_direction
    sigmas = estimate.rotation_sigma_rad, estimate.direction_sigma_rad
    is_finite = np.isfinite([estimate.confidence, *sigmas]).all() and min(sigmas) > 0.0
    is_rotation = np.allclose(R @ R.T, np.eye(3), atol=UNIT_TOLERANCE)  # False with NaN
    is_direction = direction is None or abs(float(np.linalg.norm(direction)) - 1.0) < UNIT_TOLERANCE
    return bool(is_finite and is_rotation and is_direction)

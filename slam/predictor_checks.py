"""What a pair predictor answers, checked where it comes in: a network may give what is no number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relocalizer.interfaces import Encoded, NoEstimate, PairEstimate, PosePredictor

UNIT = 1e-3  # by which a unit vector, or a row of a rotation, may be longer or shorter than 1


def relate(predictor: PosePredictor, i: Encoded, j: Encoded) -> PairEstimate | NoEstimate:
    """The pose of camera j seen from camera i; numbers that are no pose are no estimate."""
    [estimate] = predictor.relate([(i, j)])
    if isinstance(estimate, NoEstimate) or _is_pose(estimate):
        return estimate
    return NoEstimate("the predictor's answer is no pose with finite sigmas")


def describe(predictor: PosePredictor, encoded: Encoded) -> tuple[NDArray[np.float32], bool]:
    """Unit vector (D,) for place recognition, and whether it is the predictor's.

    Where the predictor's is no unit vector it is (1, 0, ..., 0), which hardly any place is similar to.
    """
    descriptor = predictor.describe(encoded)
    if abs(float(np.linalg.norm(descriptor)) - 1.0) < UNIT:
        return descriptor, True
    return np.eye(1, descriptor.size, dtype=np.float32)[0], False


def _is_pose(estimate: PairEstimate) -> bool:
    R, direction = estimate.i_from_j_rotation, estimate.i_from_j_direction
    sigmas = estimate.rotation_sigma_rad, estimate.direction_sigma_rad
    known = np.isfinite([estimate.confidence, *sigmas]).all() and min(sigmas) > 0.0
    turns = np.allclose(R @ R.T, np.eye(3), atol=UNIT)  # never with NaN
    points = direction is None or abs(float(np.linalg.norm(direction)) - 1.0) < UNIT
    return bool(known and turns and points)

"""Covariance of edges from the landmarks that they were estimated from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray
from slam.map.landmarks import LandmarkMap
from slam.map.slam_map import SlamMap

COVISIBLE = 15  # number of shared landmarks from which two keyframes count as covisible (as in ORB-SLAM)
UNKNOWN_LOG_SCALE = 0.5  # standard deviation of the log scale of an edge whose scale is not measured
MIN_SIGMA = 1e-5  # minimum standard deviation of the rotation (radians) and of the translation (map units) of an edge
# Correlation of the errors of the landmarks in one image, which share the lens, motion blur and the poses they were
# triangulated from. n landmarks are worth n / (1 + 0.1 (n - 1)) independent ones (docs/experiments.md, "Covariances
# of edges").
CORRELATION = 0.1
# Correlation of the errors of the landmarks of a loop. It is lower: they were triangulated at one end and matched
# individually at the other.
LOOP_CORRELATION = 0.05


def design_effect(count: int, correlation: float) -> float:
    """Ratio of the variance from `count` equally correlated observations to that from independent ones.

    Kish, "Survey Sampling", 1965, section 5.4.
    """
    return 1.0 + correlation * max(count - 1, 0)


def edge_sigmas(information: FloatArray, unit: float, log_scale_sigma: float) -> FloatArray:
    """The sigmas (7,) of an edge from the information (6, 6) of a pose.

    Args:
        information: of rotation (radians) and translation (map units).
        unit: map units per unit of the edge's keyframe i.
    """
    covariance = np.linalg.inv(information + 1e-9 * np.eye(6) * max(float(np.trace(information)), 1.0))
    sigmas = np.sqrt(np.maximum(np.diag(covariance), MIN_SIGMA**2))
    return np.concatenate([sigmas[:3], sigmas[3:] / unit, [max(log_scale_sigma, 1e-3)]])


def relative_depth_sigma(landmarks: LandmarkMap, ids: NDArray[np.int64]) -> FloatArray:
    """Standard deviation (N,) of the depth of landmarks in their anchors, as a fraction of their depth."""
    return np.asarray(landmarks.inverse_depth_sigma[ids] * landmarks.point_in_anchor[ids, 2])


def covisible_enough(slam_map: SlamMap, k: int, keyframe_ids: list[int]) -> set[int]:
    """Keyframes that share at least `COVISIBLE` landmarks with keyframe k, which makes a loop redundant."""
    landmarks = slam_map.landmarks
    tracks = landmarks.observed[k]
    shared = landmarks.shared_with(tracks.ids[landmarks.is_triangulated(tracks.ids)], keyframe_ids)
    return {i for i, count in shared.items() if count >= COVISIBLE}

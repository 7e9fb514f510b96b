"""Uncertainty of edges from the landmarks that they were measured by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray
from slam.map.landmarks import LandmarkMap
from slam.map.slam_map import SlamMap

COVISIBLE = 15  # landmarks shared by keyframes that need no loop between them
UNKNOWN_LOG_SCALE = 0.5
MIN_SIGMA = 1e-5
# Errors of landmarks in one image have much in common: the lens, motion blur, the poses they were placed from.
# Correlated by this much, n of them say as much as n / (1 + 0.1 (n - 1)) independent ones (docs/results.md, "Loops").
CORRELATION = 0.1
# Those of a loop were placed from one end and recognized from the other, one by one, so they have less in common.
LOOP_CORRELATION = 0.05


def design_effect(count: int, correlation: float) -> float:
    """By how much the variance from `count` equally correlated observations exceeds that from independent ones.

    Kish, "Survey Sampling", 1965, section 5.4.
    """
    return 1.0 + correlation * max(count - 1, 0)


def edge_sigmas(information: FloatArray, unit: float, log_scale_sigma: float) -> FloatArray:
    """The seven sigmas of an edge from a pose's (6, 6) information, whose translation is in map units."""
    covariance = np.linalg.inv(information + 1e-9 * np.eye(6) * max(float(np.trace(information)), 1.0))
    sigmas = np.sqrt(np.maximum(np.diag(covariance), MIN_SIGMA**2))
    return np.concatenate([sigmas[:3], sigmas[3:] / unit, [max(log_scale_sigma, 1e-3)]])


def relative_depth_sigma(landmarks: LandmarkMap, ids: NDArray[np.int64]) -> FloatArray:
    """Standard deviation (N,) of the depth of landmarks in their anchors, as a fraction of the depth."""
    return np.asarray(landmarks.inverse_depth_sigma[ids] * landmarks.point_in_anchor[ids, 2])


def covisible_enough(slam_map: SlamMap, k: int, keyframe_ids: list[int]) -> set[int]:
    """Keyframes that share at least `COVISIBLE` landmarks with k: they need no loop between them."""
    landmarks = slam_map.landmarks
    tracks = landmarks.observed[k]
    shared = landmarks.shared_with(tracks.ids[landmarks.is_triangulated(tracks.ids)], keyframe_ids)
    return {i for i, count in shared.items() if count >= COVISIBLE}

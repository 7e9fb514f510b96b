"""Baseline length of an image pair, estimated from landmarks.

A pair of images has no metric baseline. Landmarks with known depth in one image and an observation in the other
constrain it: for a given rotation and direction, each landmark gives one estimate of the length, and these are
combined robustly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray

MAD_TO_SIGMA = 1.4826  # ratio of standard deviation to median absolute deviation of a normal distribution
MAX_SPREAD = 0.2  # largest residual spread of a true pair, on the plane z = 1


@dataclass(frozen=True, slots=True, eq=False)
class LengthFit:
    """Length of a baseline in the units of camera i's landmarks, its standard deviation, and the inliers (N,)."""

    length: float
    sigma: float
    inliers: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class NoLength:
    """The length is unobservable; `reason` is a sentence with the value and the threshold."""

    reason: str


def weighted_median(values: FloatArray, weights: FloatArray) -> float:
    """The smallest value at which the cumulative weight reaches half of the total."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, 0.5 * cumulative[-1])])


def fit_length(
    points_i: FloatArray,
    normalized_j: FloatArray,
    i_from_j_rotation: FloatArray,
    i_from_j_direction: FloatArray,
    *,
    noise: float,
    min_landmarks: int = 8,
    max_relative_sigma: float = 0.5,
) -> LengthFit | NoLength:
    """Robust estimate of the length s of i_from_j's translation s * direction, from landmarks observed in j.

    A landmark X of camera i appears in j along R^T (X - s d). Its observation (u, v) gives two equations linear
    in s. The weighted median of the solutions of the single landmarks initializes iteratively reweighted least
    squares (Tukey).

    Args:
        points_i: (N, 3) landmarks in camera i.
        normalized_j: (N, 2) their observations in j, on the plane z = 1.
        noise: standard deviation of `normalized_j`.
        min_landmarks: minimum number of landmarks, and of inliers.
        max_relative_sigma: maximum standard deviation, as a fraction of the length.
    """
    if len(points_i) < min_landmarks:
        return NoLength(f"{len(points_i)} landmarks shared, {min_landmarks} needed")
    rotated = points_i @ i_from_j_rotation  # R^T X, row-wise
    step = i_from_j_direction @ i_from_j_rotation  # R^T d
    u, v = normalized_j.T
    # (rotated - s step) x (u, v, 1) = 0, divided by the depth so that residuals are in normalized image coordinates.
    depth = np.maximum(rotated[:, 2], 1e-9)
    a = np.stack([step[0] - u * step[2], step[1] - v * step[2]], axis=1) / depth[:, None]
    b = np.stack([rotated[:, 0] - u * rotated[:, 2], rotated[:, 1] - v * rotated[:, 2]], axis=1) / depth[:, None]
    information = (a**2).sum(axis=1)
    usable = (rotated[:, 2] > 0) & (information > 1e-12)
    if usable.sum() < min_landmarks:
        return NoLength(f"{int(usable.sum())} landmarks lie beside the direction of motion, {min_landmarks} needed")
    lengths = np.where(usable, (a * b).sum(axis=1) / np.maximum(information, 1e-12), 0.0)
    length = weighted_median(lengths[usable], np.sqrt(information[usable]))
    weights = usable.astype(np.float64)
    for _ in range(10):
        residuals = np.linalg.norm(b - length * a, axis=1)
        spread = max(noise, MAD_TO_SIGMA * float(np.median(residuals[usable])))
        cut = 4.685 * spread
        weights = np.where(usable & (residuals < cut), (1 - (residuals / cut) ** 2) ** 2, 0.0)
        total = float((weights * information).sum())
        if total <= 0:
            return NoLength("no two landmarks agree on a length")
        length = float((weights[:, None] * a * b).sum()) / total
    if spread > MAX_SPREAD:
        return NoLength(f"landmarks disagree by {spread:.3f} of the focal length (limit {MAX_SPREAD:g})")
    inliers = usable & (np.linalg.norm(b - length * a, axis=1) < 3 * spread)
    sigma = float(spread / np.sqrt(max(total, 1e-300)))
    if int(inliers.sum()) < min_landmarks:
        return NoLength(f"{int(inliers.sum())} landmarks agree on a length, {min_landmarks} needed")
    if not length > 0 or sigma > max_relative_sigma * length:
        return NoLength(
            f"length {length:.4f} +- {sigma:.4f}: not distinguishable from zero (limit {max_relative_sigma:.0%})"
        )
    return LengthFit(length, sigma, inliers)


def fit_relative_scale(depths_i: FloatArray, depths_j: FloatArray) -> tuple[float, float]:
    """Robust estimate of the factor s with depths_i = s * depths_j, and the standard deviation of log s.

    Args:
        depths_i, depths_j: (N,) positive depths of the same points in the same camera, in i's and in j's units;
            N >= 3.
    """
    logs = np.log(depths_i / depths_j)
    center = float(np.median(logs))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(logs - center)))
    # The standard deviation of the median of N normal values is sqrt(pi / 2) times that of the mean.
    return float(np.exp(center)), max(1.2533 * spread / np.sqrt(len(logs)), 1e-4)

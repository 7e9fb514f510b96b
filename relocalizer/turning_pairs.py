"""Pairs of images between which the camera only turns: how well a rotation explains their matched points.

The points of two images of a camera that turns by R are related by the homography K R K^-1, which determines the focal
length (Hartley, "Self-calibration from multiple views with a rotating camera", ECCV 1994). A plane that is seen from
two places gives a homography too, but not this one.
"""

from __future__ import annotations

import numpy as np

from relocalizer.epipolar_fit import PairBatch, undistorted
from relocalizer.geometry import FloatArray
from relocalizer.pair_fits import rotations_of

_FINER, _LEVELS = (
    3,
    3,
)  # ratio of the steps of two searches over the focal length, and number of searches after the first


def turn_spreads(batch: PairBatch, lens: FloatArray, grid: FloatArray) -> FloatArray:
    """Standard deviation (P,) of the distances of the points of each pair from the rotation that explains them best.

    Args:
        lens: its distortion; every pair has the focal length that suits it, so that one that changes does not matter.
        grid: logarithms (G,) of the focal lengths of the first search, ascending.
    """
    half = batch.x.shape[1] // 2
    points = [undistorted(points[:, :half], lens) for points in (batch.x, batch.y)]
    weight = batch.weight[:, :half]
    spreads = _spreads(points, weight, np.tile(grid, (len(batch), 1)))
    best, step = grid[spreads.argmin(axis=1)], float(grid[1] - grid[0])
    for _ in range(_LEVELS):
        step /= _FINER
        tried = best[:, None] + step * np.arange(1 - _FINER, _FINER)
        spreads = _spreads(points, weight, tried)
        best = np.take_along_axis(tried, spreads.argmin(axis=1)[:, None], axis=1)[:, 0]
    return np.asarray(spreads.min(axis=1))


def _spreads(points: list[FloatArray], weight: FloatArray, log_focal: FloatArray) -> FloatArray:
    """Standard deviations (P, G) of points (P, M, 2) of two images at the focal lengths (P, G) of the pairs."""
    pairs, count = log_focal.shape
    focal = np.exp(log_focal).reshape(-1, 1, 1)
    first, second = (
        np.concatenate([np.repeat(p, count, axis=0) / focal, np.ones((pairs * count, p.shape[1], 1))], axis=2)
        for p in points
    )
    weight = np.repeat(weight, count, axis=0)
    turned = first @ rotations_of(first, second, weight).transpose(0, 2, 1)
    distance = focal * (turned[..., :2] / turned[..., 2:] - second[..., :2]) / np.sqrt(2.0)
    both = np.concatenate([distance[..., 0], distance[..., 1]], axis=1)
    return spread(both, np.concatenate([weight, weight], axis=1)).reshape(pairs, count)


def spread(distances: FloatArray, weight: FloatArray) -> FloatArray:
    """Standard deviations (P,) of distances (P, M) of the points whose weight is not zero, from their median."""
    return np.asarray(1.4826 * np.nanmedian(np.where(weight > 0, np.abs(distances), np.nan), axis=1))

"""Geometry of single pairs of images: their fundamental matrix, or their rotation alone."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray

_SMALL = 1e-12  # lower bound of divisors


def fundamental_matrix(x: FloatArray, y: FloatArray, *, max_px: float) -> tuple[FloatArray, NDArray[np.int64]] | None:
    """The fundamental matrix (3, 3) of matched pixels (N, 2) and the indices of its inliers; None without one.

    Args:
        max_px: maximum distance of an inlier from its epipolar lines, pixels.
    """
    try:
        F, mask = cv2.findFundamentalMat(x, y, cv2.USAC_MAGSAC, max_px, 0.999, 2000)
    except cv2.error:  # OpenCV 5 fails on an assertion when every sample is degenerate, as on a plane
        return None
    if F is None or F.shape != (3, 3):
        return None
    return np.asarray(F, dtype=np.float64), np.flatnonzero(mask.ravel())


def rotations_of(first: FloatArray, second: FloatArray, weight: FloatArray) -> FloatArray:
    """Rotations (P, 3, 3), second from first, that best align rays (P, M, 3) (Kabsch), iteratively reweighted."""
    first, second = (v / np.linalg.norm(v, axis=2, keepdims=True) for v in (first, second))
    given, rotation = weight, np.tile(np.eye(3), (len(weight), 1, 1))
    for _ in range(5):
        U, _, Vt = np.linalg.svd((second * weight[..., None]).transpose(0, 2, 1) @ first)
        U[:, :, 2] *= np.sign(np.linalg.det(U @ Vt))[:, None]
        rotation = U @ Vt
        error = np.linalg.norm(second - first @ rotation.transpose(0, 2, 1), axis=2)
        median = np.nanmedian(np.where(given > 0, error, np.nan), axis=1)[:, None]
        weight = given / (1.0 + (error / np.maximum(median, _SMALL)) ** 2)
    return rotation

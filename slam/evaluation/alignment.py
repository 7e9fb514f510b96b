"""Association of trajectories by time, and their alignment by a similarity, Sim(3) (Umeyama 1991)."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike, NDArray

from relocalizer.geometry import FloatArray, Similarity, align_points, nearest_rotation

MATCHES_NEEDED = 3  # Minimum number of matches that determine a similarity.
FLAT = 0.02  # Ratio of a path's two largest extents below which positions do not determine the rotation.
CANDIDATES = 16  # Number of neighbors in time considered on either side when timestamps are matched.


def associate(
    first_ns: ArrayLike, second_ns: ArrayLike, *, max_difference_s: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Match two increasing series of timestamps one to one and in order, closest pairs first.

    Args:
        max_difference_s: maximum difference of a match, seconds.

    Returns:
        Indices of the M matches in the first and in the second series, (M,) each, both increasing.
    """
    first, second = np.asarray(first_ns, dtype=np.int64), np.asarray(second_ns, dtype=np.int64)
    limit = round(max_difference_s * 1e9)
    nearest = np.searchsorted(second, first)
    begin = np.maximum(np.searchsorted(second, first - limit), nearest - CANDIDATES)
    end = np.minimum(np.searchsorted(second, first + limit, side="right"), nearest + CANDIDATES)
    counts = np.maximum(end - begin, 0)
    i = np.repeat(np.arange(len(first)), counts)
    j = np.arange(counts.sum()) + np.repeat(begin - np.cumsum(counts) + counts, counts)
    order = np.lexsort((j, i, np.abs(first[i] - second[j])))
    matched_i: list[int] = []  # Increasing, as is matched_j: pairs never cross.
    matched_j: list[int] = []
    for a, b in zip(i[order].tolist(), j[order].tolist(), strict=True):
        k = bisect_left(matched_i, a)
        a_is_free = k == len(matched_i) or matched_i[k] != a
        in_order = (k == 0 or matched_j[k - 1] < b) and (k == len(matched_j) or b < matched_j[k])
        if a_is_free and in_order:
            matched_i.insert(k, a)
            matched_j.insert(k, b)
    return np.array(matched_i, dtype=np.intp), np.array(matched_j, dtype=np.intp)


def fit_similarity(a_poses: FloatArray, b_poses: FloatArray) -> Similarity | None:
    """a_from_b between matched poses (N, 4, 4); None if they do not determine it.

    From positions (Umeyama) if possible. On a nearly straight path, positions do not determine the roll about the path,
    so the rotation is computed from the orientations.
    """
    if len(a_poses) < 3:
        return None
    a, b = a_poses[:, :3, 3], b_poses[:, :3, 3]
    centered_a, centered_b = a - a.mean(axis=0), b - b.mean(axis=0)
    extents = np.linalg.svd(centered_b, compute_uv=False)
    if extents[0] <= 0 or not centered_a.any():
        return None
    if extents[1] > FLAT * extents[0]:
        return align_points(a, b)
    rotations = a_poses[:, :3, :3] @ b_poses[:, :3, :3].transpose(0, 2, 1)
    rotation = nearest_rotation(rotations.sum(axis=0))
    scale = float((centered_a * (centered_b @ rotation.T)).sum() / (centered_b**2).sum())
    if scale <= 0:
        return None
    return Similarity(rotation, a.mean(axis=0) - scale * rotation @ b.mean(axis=0), scale)

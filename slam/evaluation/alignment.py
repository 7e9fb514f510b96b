"""How far a trajectory is from the truth, with the alignment said aloud.

A monocular trajectory has no scale of its own, so it is aligned to the ground truth by a similarity, Sim(3);
the rigid alignment, SE(3), stands beside it and says how good the scale was. Measures as in Sturm et al.,
"A benchmark for the evaluation of RGB-D SLAM systems", 2012: absolute trajectory error (ATE) and relative
pose error (RPE); alignment by Umeyama 1991.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike, NDArray

from relocalizer.geometry import FloatArray, Similarity, align_points, nearest_rotation

MATCHES_NEEDED = 3  # fewer do not fix a similarity
FLAT = 0.02  # below this ratio of extents a path is too straight for positions alone to fix a rotation
CANDIDATES = 16  # neighbors in time looked at on either side when stamps are matched


def associate(
    first_ns: ArrayLike, second_ns: ArrayLike, *, max_difference_s: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Match two increasing series of stamps one to one and in order, closest pairs first.

    Returns:
        Indices into the first and into the second, (M,) each, both increasing.
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
    matched_i: list[int] = []  # increasing, and so is matched_j: a pair never crosses another
    matched_j: list[int] = []
    for a, b in zip(i[order].tolist(), j[order].tolist(), strict=True):
        place = bisect_left(matched_i, a)
        a_is_free = place == len(matched_i) or matched_i[place] != a
        in_order = (place == 0 or matched_j[place - 1] < b) and (place == len(matched_j) or b < matched_j[place])
        if a_is_free and in_order:
            matched_i.insert(place, a)
            matched_j.insert(place, b)
    return np.array(matched_i, dtype=np.intp), np.array(matched_j, dtype=np.intp)


def fit_similarity(a_poses: FloatArray, b_poses: FloatArray) -> Similarity | None:
    """a_from_b between matched poses (N, 4, 4); None while they do not fix it.

    By positions (Umeyama) where they can; on a nearly straight path the rotation comes from orientations,
    because positions leave the roll about the path open.
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
    turns = a_poses[:, :3, :3] @ b_poses[:, :3, :3].transpose(0, 2, 1)
    rotation = nearest_rotation(turns.sum(axis=0))
    scale = float((centered_a * (centered_b @ rotation.T)).sum() / (centered_b**2).sum())
    if scale <= 0:
        return None
    return Similarity(rotation, a.mean(axis=0) - scale * rotation @ b.mean(axis=0), scale)

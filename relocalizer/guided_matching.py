"""Guided matching under a known pose: landmarks near their projections, features along their epipolar lines.

Matching whole images loses points with similar-looking points elsewhere in the image; within a search region their
match is unambiguous.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.geometry import FloatArray, apply_inverse, skew

Indices = NDArray[np.int64]
LINE_PX = 1.5  # maximum distance of a match from its epipolar line, pixels
_ROWS_AT_A_TIME = 64  # number of features whose distances from all lines are computed at a time, in the cache


def expected_in(points_world: FloatArray, world_from_cam: RigidTransform, camera: Camera) -> tuple[Indices, FloatArray]:
    """Rows (M,), ascending, of the points (N, 3) that project into a camera's image, and their pixels (M, 2)."""
    in_cam = apply_inverse(world_from_cam, points_world)
    front = np.flatnonzero(in_cam[:, 2] > 1e-6)
    pixels = camera.project(in_cam[front])
    inside = camera.contains(pixels)
    return front[inside], pixels[inside]


def similar_nearby(
    pixels: FloatArray,
    descriptors: NDArray[np.float32],
    features: LocalFeatures,
    *,
    radius_px: float,
    min_similarity: float,
    among: Indices | None = None,
) -> tuple[Indices, Indices]:
    """Pairs (rows of the points, indices of features) close in the image with similar descriptors, best first.

    Args:
        pixels: (N, 2) predicted positions of the points; descriptors: (N, 128) their descriptors.
        radius_px: maximum distance of a feature from the predicted position.
        min_similarity: minimum inner product of the two descriptors.
        among: indices of the candidate features; None is all of them.
    """
    among = np.arange(len(features)) if among is None else among
    if len(pixels) == 0 or len(among) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    near = cKDTree(pixels).sparse_distance_matrix(cKDTree(features.pixels[among]), radius_px, output_type="ndarray")
    near = near[np.lexsort((near["j"], near["i"]))]
    rows, columns = near["i"].astype(np.int64), among[near["j"]]
    similarity = np.einsum("nd,nd->n", descriptors[rows], features.descriptors[columns])
    enough = np.flatnonzero(similarity > min_similarity)
    order = enough[np.argsort(-similarity[enough], kind="stable")]
    return rows[order], columns[order]


def match_along_lines(
    a: LocalFeatures,
    b: LocalFeatures,
    camera_a: Camera,
    camera_b: Camera,
    a_from_b_rotation: FloatArray,
    a_from_b_direction: FloatArray,
    *,
    ratio: float,
    min_similarity: float,
    band_px: float = LINE_PX,
) -> Indices:
    """Mutual nearest neighbors (K, 2) among features close to each other's epipolar lines, ascending in a.

    Most similar-looking features lie off the epipolar lines. The ratio test compares only features on the lines, so
    it passes two to three times as many matches as without a pose.

    Args:
        a_from_b_direction: (3,) direction from camera a to camera b, of any nonzero length.
        ratio: maximum ratio of the distances to the nearest and the second nearest descriptor on the line.
        min_similarity: minimum inner product of the two descriptors.
        band_px: maximum Sampson distance (Hartley and Zisserman, 2nd edition, equation 11.9).
    """
    if len(a) == 0 or len(b) == 0:
        return np.zeros((0, 2), np.int64)
    essential = skew(a_from_b_direction) @ a_from_b_rotation
    fundamental = np.linalg.inv(camera_a.matrix).T @ essential @ np.linalg.inv(camera_b.matrix)
    rows, columns = _near_lines(a.pixels, b.pixels, fundamental, band_px)
    # Few features lie near a line, so these products alone take less time than a product of all descriptors.
    similarity = np.einsum("nd,nd->n", a.descriptors[rows], b.descriptors[columns])
    best = _clear_best(rows, similarity, ratio, min_similarity)
    best = best[np.isin(best, _clear_best(columns, similarity, ratio, min_similarity), assume_unique=True)]
    return np.stack([rows[best], columns[best]], axis=1)


def _near_lines(
    pixels_a: NDArray[np.float32], pixels_b: NDArray[np.float32], fundamental: FloatArray, band_px: float
) -> tuple[Indices, Indices]:
    """Pairs (rows of a, rows of b), ascending, of pixels (N, 2) and (M, 2) within a band of their epipolar lines.

    Args:
        fundamental: (3, 3), with x_a . fundamental x_b = 0 for the two pixels of a point.
    """
    x_a, x_b = (np.hstack([pixels, np.ones((len(pixels), 1))]) for pixels in (pixels_a, pixels_b))
    # In single precision, which takes half the time, a distance from a line is off by a thousandth of a pixel at most.
    lines_a, lines_b = (x_b @ fundamental.T).astype(np.float32), (x_a @ fundamental).astype(np.float32)
    x_a = x_a.astype(np.float32)
    gradient_a, gradient_b = ((lines[:, :2] ** 2).sum(axis=1) for lines in (lines_a, lines_b))
    rows, columns = [], []
    for start in range(0, len(x_a), _ROWS_AT_A_TIME):
        block = slice(start, start + _ROWS_AT_A_TIME)
        squared = x_a[block] @ lines_a.T
        squared *= squared
        limit = gradient_b[block, None] + gradient_a
        limit *= band_px**2
        i, j = np.divmod(np.flatnonzero(squared < limit), len(x_b))
        rows.append(start + i)
        columns.append(j)
    return np.concatenate(rows), np.concatenate(columns)


def _clear_best(group: Indices, similarity: NDArray[np.float32], ratio: float, min_similarity: float) -> Indices:
    """Of pairs (N,) in groups, the indices of the most similar ones that pass the threshold and the ratio test.

    Args:
        group: number of the group of each pair; its first pair is chosen of equally similar ones.
    """
    order = np.lexsort((-similarity, group))
    is_first = np.diff(group[order], prepend=-1) != 0
    first = np.flatnonzero(is_first)
    best = similarity[order[first]]
    is_alone = np.append(is_first[1:], True)[first]
    # The most different descriptor there can be stands for the second best one where there is none.
    second = np.where(is_alone, np.float32(-1.0), similarity[order[np.minimum(first + 1, len(order) - 1)]])
    # The squared distance of unit vectors is 2 - 2 s.
    clear = (best > min_similarity) & (1.0 - best < ratio * ratio * (1.0 - second))
    return order[first[clear]]


def one_to_one(rows: Indices, columns: Indices) -> tuple[Indices, Indices]:
    """One-to-one subset of pairs sorted best first: the best pair of each row, then of these that of each column."""
    kept = first_of_each(rows)
    kept = kept[first_of_each(columns[kept])]
    return rows[kept], columns[kept]


def first_of_each(values: Indices) -> Indices:
    """Ascending indices of the first occurrence of each value."""
    return np.sort(np.unique(values, return_index=True)[1])

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
    x_a, x_b = (np.hstack([f.pixels, np.ones((len(f), 1))]) for f in (a, b))
    lines_a, lines_b = x_b @ fundamental.T, x_a @ fundamental
    squared_gradient = (lines_b[:, :2] ** 2).sum(axis=1)[:, None] + (lines_a[:, :2] ** 2).sum(axis=1)
    near = (x_a @ lines_a.T) ** 2 < band_px**2 * squared_gradient
    similarity = np.where(near, a.descriptors @ b.descriptors.T, np.float32(-1.0))
    best_b, clear_a = _clear_best(similarity, ratio, min_similarity)
    best_a, clear_b = _clear_best(similarity.T, ratio, min_similarity)
    rows = np.arange(len(a))
    kept = clear_a & (best_a[best_b] == rows) & clear_b[best_b]
    return np.stack([rows[kept], best_b[kept]], axis=1)


def _clear_best(
    similarity: NDArray[np.float32], ratio: float, min_similarity: float
) -> tuple[Indices, NDArray[np.bool_]]:
    """Per row: the most similar column, and whether it passes the similarity threshold and the ratio test."""
    rows = np.arange(len(similarity))
    best = similarity.argmax(axis=1)
    first = similarity[rows, best]
    others = similarity.copy()
    others[rows, best] = -1.0
    # The squared distance of unit vectors is 2 - 2 s.
    return best, (first > min_similarity) & (1.0 - first < ratio * ratio * (1.0 - others.max(axis=1)))


def one_to_one(rows: Indices, columns: Indices) -> tuple[Indices, Indices]:
    """One-to-one subset of pairs sorted best first: the best pair of each row, then of these that of each column."""
    kept = first_of_each(rows)
    kept = kept[first_of_each(columns[kept])]
    return rows[kept], columns[kept]


def first_of_each(values: Indices) -> Indices:
    """Ascending indices of the first occurrence of each value."""
    return np.sort(np.unique(values, return_index=True)[1])

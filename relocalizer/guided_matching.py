"""Points looked for in an image where a pose says that they should be: known ones around their place, others along
their epipolar lines.

Matching whole images misses what looks alike elsewhere in them; near the right place there is one candidate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.geometry import FloatArray, skew

Indices = NDArray[np.int64]
LINE_PX = 1.5  # a point's partner lies this near to its epipolar line


def expected_in(points_world: FloatArray, world_from_cam: RigidTransform, camera: Camera) -> tuple[Indices, FloatArray]:
    """Which of the points (N, 3) a camera should see, as rows in order, and at which pixels (M, 2)."""
    in_cam = np.asarray(world_from_cam.inv().apply(points_world)).reshape(-1, 3)
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
    """Pairs (rows of the points, indices of features) near each other that look alike, the most similar first.

    Args:
        pixels: (N, 2) where the points should be; descriptors: (N, 128) how they look.
        among: indices of the features that may be taken; all of them when left out.
    """
    among = np.arange(len(features)) if among is None else among
    if len(pixels) == 0 or len(among) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    near = cKDTree(features.pixels[among]).query_ball_point(pixels, radius_px, return_sorted=True)
    rows = np.repeat(np.arange(len(pixels)), [len(n) for n in near])
    columns = among[np.array([c for n in near for c in n], dtype=np.int64)]
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
    """Mutual nearest neighbors (K, 2) among the features near each other's epipolar lines, rising in a.

    Of what looks alike all over two images most lies off the lines, so that the test against the second nearest,
    which is made among those on them alone, passes two to three times as many as without a pose.

    Args:
        a_from_b_direction: (3,) where camera b stands, of any length but zero.
        ratio: a match's distance must be below this share of the distance to the second nearest on the line.
        band_px: distance from the lines, to first order (Hartley and Zisserman, 2nd edition, equation 11.9).
    """
    if len(a) == 0 or len(b) == 0:
        return np.zeros((0, 2), np.int64)
    essential = skew(a_from_b_direction) @ a_from_b_rotation
    fundamental = np.linalg.inv(camera_a.matrix).T @ essential @ np.linalg.inv(camera_b.matrix)
    x_a, x_b = (np.hstack([f.pixels, np.ones((len(f), 1))]) for f in (a, b))
    lines_a, lines_b = x_b @ fundamental.T, x_a @ fundamental
    steepness = (lines_b[:, :2] ** 2).sum(axis=1)[:, None] + (lines_a[:, :2] ** 2).sum(axis=1)
    near = (x_a @ lines_a.T) ** 2 < band_px**2 * steepness
    similarity = np.where(near, a.descriptors @ b.descriptors.T, np.float32(-1.0))
    best_b, clear_a = _clear_best(similarity, ratio, min_similarity)
    best_a, clear_b = _clear_best(similarity.T, ratio, min_similarity)
    rows = np.arange(len(a))
    kept = clear_a & (best_a[best_b] == rows) & clear_b[best_b]
    return np.stack([rows[kept], best_b[kept]], axis=1)


def _clear_best(similarity: NDArray[np.float32], ratio: float, least: float) -> tuple[Indices, NDArray[np.bool_]]:
    """Per row: the most similar column, and whether it is similar enough and clearly more so than the next."""
    rows = np.arange(len(similarity))
    best = similarity.argmax(axis=1)
    first = similarity[rows, best]
    others = similarity.copy()
    others[rows, best] = -1.0
    # Between unit vectors the squared distance is 2 - 2 s.
    return best, (first > least) & (1.0 - first < ratio * ratio * (1.0 - others.max(axis=1)))


def one_to_one(rows: Indices, columns: Indices) -> tuple[Indices, Indices]:
    """Of pairs, the best first, each row's best, and of those each column's best."""
    kept = first_of_each(rows)
    kept = kept[first_of_each(columns[kept])]
    return rows[kept], columns[kept]


def first_of_each(values: Indices) -> Indices:
    """Indices, in order, at which a value stands for the first time."""
    return np.sort(np.unique(values, return_index=True)[1])

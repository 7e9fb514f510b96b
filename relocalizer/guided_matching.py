"""Known points looked for in a picture around where a pose says that they should be.

Matching whole pictures misses what looks alike elsewhere in them; near the right place there is one candidate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import RigidTransform

from relocalizer.features import LocalFeatures
from relocalizer.geometry import FloatArray
from relocalizer.images import Camera

Indices = NDArray[np.int64]


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


def one_to_one(rows: Indices, columns: Indices) -> tuple[Indices, Indices]:
    """Of pairs, the best first, each row's best, and of those each column's best."""
    kept = first_of_each(rows)
    kept = kept[first_of_each(columns[kept])]
    return rows[kept], columns[kept]


def first_of_each(values: Indices) -> Indices:
    """Indices, in order, at which a value stands for the first time."""
    return np.sort(np.unique(values, return_index=True)[1])

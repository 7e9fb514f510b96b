"""Which views make a pair: by landmarks that both see, otherwise by index gap and overlap of their frusta."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray
from relocalizer.training.pair_data import Ids

GAPS = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30)  # index gaps of candidate pairs without landmarks
LEAST_OVERLAP = 0.25  # minimum share of an image that the other one sees
MIN_SHARED = 15  # minimum number of common landmarks
LEAST_BASELINE = 0.02  # minimum baseline of a pair with a direction, as a share of the scene depth
GRID = 8  # points per side of the grid that is projected from one frustum to the other


@dataclass(frozen=True, slots=True)
class PairRule:
    """How many partners a view gets at most, spread evenly from the most to the least overlap."""

    partners: int = 12


def pairs_by_covisibility(landmarks_of: Sequence[Ids], rule: PairRule) -> Ids:
    """Pairs (P, 2), i < j, of views that see common landmarks.

    Args:
        landmarks_of: ids of the landmarks that each view sees.
    """
    count = len(landmarks_of)
    known, columns = np.unique(np.concatenate([*landmarks_of, np.zeros(0, np.int64)]), return_inverse=True)
    rows = np.repeat(np.arange(count), [len(ids) for ids in landmarks_of])
    sees = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(count, len(known)))
    shared = sparse.triu(sees @ sees.T, 1).tocoo()
    seen = np.array([len(ids) for ids in landmarks_of])
    enough = shared.data >= MIN_SHARED
    pairs = np.stack([shared.row, shared.col], axis=1)[enough].astype(np.int64)
    return _spread(pairs, shared.data[enough] / seen[pairs].min(axis=1), rule)


def pairs_by_frustum(cameras: Sequence[Camera], world_from_cam: FloatArray, depth: float, rule: PairRule) -> Ids:
    """Pairs (P, 2), i < j, of views within the index gaps whose frusta overlap at the scene depth.

    Args:
        world_from_cam: (N, 4, 4), in the order in which they were taken.
        depth: assumed depth of the scene.
    """
    pairs = [(i, i + gap) for gap in GAPS for i in range(len(cameras) - gap)]

    def overlap(a: int, b: int) -> float:
        return frustum_overlap(cameras[a], world_from_cam[a], cameras[b], world_from_cam[b], depth)

    overlaps = np.array([min(overlap(i, j), overlap(j, i)) for i, j in pairs])
    enough = overlaps >= LEAST_OVERLAP
    return _spread(np.array(pairs, np.int64).reshape(-1, 2)[enough], overlaps[enough], rule)


def frustum_overlap(
    camera_a: Camera, world_from_a: FloatArray, camera_b: Camera, world_from_b: FloatArray, depth: float
) -> float:
    """Share of image a, at a depth, that image b sees."""
    u, v = np.meshgrid(np.linspace(0, camera_a.width - 1, GRID), np.linspace(0, camera_a.height - 1, GRID))
    rays = np.stack([(u - camera_a.cx) / camera_a.fx, (v - camera_a.cy) / camera_a.fy, np.ones_like(u)], axis=2)
    points = depth * rays.reshape(-1, 3) @ world_from_a[:3, :3].T + (world_from_a[:3, 3] - world_from_b[:3, 3])
    in_b = points @ world_from_b[:3, :3]
    front = in_b[in_b[:, 2] > 1e-6 * depth]
    return float(camera_b.contains(camera_b.project(front)).sum() / len(points)) if len(front) else 0.0


def assumed_depth(centers: FloatArray) -> float:
    """Depth of a scene of which nothing but the camera centers (N, 3) is known: their extent."""
    distances = np.linalg.norm(centers - np.median(centers, axis=0), axis=1)
    return float(max(np.percentile(distances, 90), 1e-9))


def with_direction(centers: FloatArray, pairs: Ids, depth: float | FloatArray) -> NDArray[np.bool_]:
    """Whether the baseline of each pair (P, 2) is long enough for its direction to be known.

    Args:
        centers: (N, 3) camera centers.
        depth: scene depth, of all or of each view (N,).
    """
    of_view = np.broadcast_to(np.asarray(depth, float), (len(centers),))
    baseline = np.linalg.norm(centers[pairs[:, 0]] - centers[pairs[:, 1]], axis=1)
    return np.asarray(baseline > LEAST_BASELINE * of_view[pairs].min(axis=1))


def _spread(pairs: Ids, overlaps: FloatArray, rule: PairRule) -> Ids:
    """Of each view's pairs at most `partners`, evenly over the ranks of their overlaps."""
    chosen = np.zeros(len(pairs), bool)
    ends = np.concatenate([pairs[:, 0], pairs[:, 1]])
    numbers = np.tile(np.arange(len(pairs)), 2)
    for view in np.unique(ends):
        of_view = numbers[ends == view]
        ranked = of_view[np.lexsort((of_view, -overlaps[of_view]))]
        ranks = np.linspace(0, len(ranked) - 1, min(rule.partners, len(ranked))).round().astype(int)
        chosen[ranked[ranks]] = True
    return pairs[chosen][np.lexsort(pairs[chosen].T[::-1])]

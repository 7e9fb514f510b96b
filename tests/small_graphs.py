"""Keyframe graphs small enough to know by hand: keyframes that show nothing, poses in a plane, edges as stated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.geometry import FloatArray, Similarity, exp_so3
from slam.loop_closing.edge_paths import OdometryTree
from slam.map.frames import Keyframe
from slam.map.keyframe_graph import Edge, EdgeKind, KeyframeGraph

CAMERA = Camera(width=8, height=6, fx=5.0, fy=5.0, cx=3.5, cy=2.5)
ODOMETRY, LOOP = EdgeKind.ODOMETRY, EdgeKind.LOOP


def keyframe(k: int) -> Keyframe:
    features = LocalFeatures(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32), np.zeros(0, np.float32))
    return Keyframe(
        id=k,
        frame_index=k,
        timestamp_ns=k,
        camera=CAMERA,
        encoded=None,
        descriptor=np.ones(1, np.float32),
        features=features,
    )


def at(x: float, y: float = 0.0, angle: float = 0.0, scale: float = 1.0) -> Similarity:
    """In the plane z = 0, turned about z (radians)."""
    return Similarity(exp_so3([0.0, 0.0, angle]), np.array([x, y, 0.0]), scale)


def small(d: FloatArray) -> Similarity:
    """The similarity of a small (rotation, translation, log scale)."""
    return Similarity(exp_so3(d[:3]), d[3:6], float(np.exp(d[6])))


def some_similarity(rng: np.random.Generator, size: float = 1.0) -> Similarity:
    """Rotation (radians), translation and logarithm of the scale with standard deviations of `size` each."""
    return Similarity(exp_so3(size * rng.normal(size=3)), size * rng.normal(size=3), float(np.exp(size * rng.normal())))


def circle(count: int = 40, laps: float = 2.0, radius: float = 3.0) -> list[Similarity]:
    """Poses around a circle, `laps` times, looking along it."""
    angles = np.linspace(0, 2 * np.pi * laps, count, endpoint=False)
    return [at(radius * np.cos(a), radius * np.sin(a), a + np.pi / 2) for a in angles]


def edge(
    i: int, j: int, i_from_j: Similarity, kind: EdgeKind = ODOMETRY, sigma: ArrayLike = 0.01, inliers: int = 0
) -> Edge:
    return Edge(i=i, j=j, i_from_j=i_from_j, sigmas=np.broadcast_to(sigma, 7), kind=kind, inliers=inliers)


def true_edge(poses: Sequence[Similarity], i: int, j: int, kind: EdgeKind = ODOMETRY, sigma: ArrayLike = 0.01) -> Edge:
    return edge(i, j, poses[i].inverse() @ poses[j], kind, sigma)


def graph_of(poses: Iterable[Similarity], edges: Iterable[Edge] = ()) -> KeyframeGraph:
    graph = KeyframeGraph()
    for k, pose in enumerate(poses):
        graph.add_keyframe(keyframe(k), pose)
    for one in edges:
        graph.set_edge(one)
    return graph


def odometry_of(graph: KeyframeGraph) -> OdometryTree:
    odometry = OdometryTree()
    odometry.follow(graph)
    return odometry

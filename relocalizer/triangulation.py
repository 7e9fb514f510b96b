"""Two-view triangulation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.geometry import FloatArray, rotation_matrix, translation_of


@dataclass(frozen=True, slots=True, eq=False)
class Triangulation:
    """Triangulated points.

    Attributes:
        points_i: (N, 3) in camera i.
        parallax_rad: (N,) angle between the rays.
        good: (N,) whether the point passes the depth, reprojection and parallax tests.
    """

    points_i: FloatArray
    parallax_rad: FloatArray
    good: NDArray[np.bool_]


def triangulate(
    normalized_i: FloatArray,
    normalized_j: FloatArray,
    i_from_j: RigidTransform,
    *,
    noise: float,
    min_parallax_rad: float,
) -> Triangulation:
    """Triangulate points from two views by the midpoint of their rays, weighted by inverse depth.

    Good points lie in front of both cameras, reproject within 3 `noise` in both, and have a parallax of at least
    `min_parallax_rad`. (Lee and Civera, "Triangulation: why optimize?", BMVC 2019, equations 10-11.)

    Args:
        normalized_i, normalized_j: (N, 2) on the plane z = 1.
        i_from_j: pose of camera j in camera i; the points have the unit of its translation.
        noise: standard deviation of the normalized coordinates.
    """
    R, t = rotation_matrix(i_from_j), translation_of(i_from_j)
    ones = np.ones((len(normalized_i), 1))
    ray_i, ray_j_own = np.hstack([normalized_i, ones]), np.hstack([normalized_j, ones])
    ray_j = ray_j_own @ R.T
    f_i = ray_i / np.linalg.norm(ray_i, axis=1, keepdims=True)
    f_j = ray_j / np.linalg.norm(ray_j, axis=1, keepdims=True)
    cross = np.cross(f_i, f_j)
    normal_i, normal_j = np.cross(t, f_i), np.cross(t, f_j)
    p = np.maximum(np.linalg.norm(cross, axis=1), 1e-12)
    q, r = np.linalg.norm(normal_i, axis=1), np.linalg.norm(normal_j, axis=1)
    meet = ((normal_i * cross).sum(axis=1) > 0) & ((normal_j * cross).sum(axis=1) > 0)  # the rays meet in front
    depth_i, depth_j = r / p, q / p  # along the unit rays, from the sine rule
    on_i, on_j = depth_i[:, None] * f_i, t + depth_j[:, None] * f_j
    weight_i = (q / np.maximum(q + r, 1e-12))[:, None]
    points = weight_i * on_i + (1 - weight_i) * on_j
    parallax = np.arctan2(p, (f_i * f_j).sum(axis=1))
    in_j = (points - t) @ R
    front = meet & (points[:, 2] > 1e-6) & (in_j[:, 2] > 1e-6)
    z_i, z_j = np.where(front, points[:, 2], 1.0)[:, None], np.where(front, in_j[:, 2], 1.0)[:, None]
    error_i = np.linalg.norm(points[:, :2] / z_i - normalized_i, axis=1)
    error_j = np.linalg.norm(in_j[:, :2] / z_j - normalized_j, axis=1)
    good = front & (error_i < 3 * noise) & (error_j < 3 * noise) & (parallax >= min_parallax_rad)
    return Triangulation(points, parallax, good)


def depths_in(points_world: FloatArray, world_from_cam: RigidTransform) -> FloatArray:
    """Depths (N,) of points along the optical axis, map units."""
    z_axis = rotation_matrix(world_from_cam)[:, 2]
    return np.asarray((points_world - translation_of(world_from_cam)) @ z_axis)

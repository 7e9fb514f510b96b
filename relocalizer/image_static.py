"""Image-static points: overlays, objects fixed to the camera, or the whole view of a camera at rest.

Text on a display, a logo, a car's hood or dirt on a windshield is static in the image while the scene moves, and
contradicts every camera motion. Scene points can be static in the image too: near a zero of the optical flow (in the
direction of travel, or on the axis that the camera circles), where the surrounding points hardly move either; and at a
large distance without rotation of the camera, where a point at infinity would not move either.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from relocalizer.camera import Camera
from relocalizer.features import CELLS
from relocalizer.geometry import FloatArray
from relocalizer.two_view import BoolArray, Matches, find_motion

STILL_PX = 1.0  # maximum displacement of an image-static point, pixels
FLOW_PX = 12.0  # minimum displacement of the moving points around an image-static point, pixels
NEIGHBORS = 8  # number of moving points that are checked around an image-static point
MOVING = 0.7  # minimum fraction of these neighbors that moved by FLOW_PX
TURNED_PX = 3.0  # minimum displacement of a point at infinity at the same pixel, pixels
AGREEING = 0.5  # minimum fraction of the moving points that are inliers of one camera motion
EPIPOLAR_PX = 1.5  # maximum distance of an inlier of that motion from its epipolar lines, pixels
# Fraction of the image's cells above which the static part means that the camera rests and the rest moves by itself.
MOST = 0.6
SHAKE_PX = 4.0  # maximum common displacement of the image by vibration of a camera on a tripod, pixels
RESTING_PX = 1.5  # maximum displacement of a static point relative to the common displacement, pixels


def standing_still(matches: Matches) -> BoolArray:
    """Mask (N,) of the matches that are static in the image although the scene around them moved.

    All False when the cameras differ, when the camera itself rests, or when the rotation of the camera cannot be
    estimated from the moving points, because then static points may belong to the scene.
    """
    nothing = np.zeros(len(matches), bool)
    if matches.camera_i != matches.camera_j:
        return nothing
    flow = matches.pixels_j - matches.pixels_i
    still = np.linalg.norm(flow, axis=1) < STILL_PX
    if not still.any() or share_of_image(matches.pixels_j, still, matches.camera_j) >= MOST:
        return nothing
    static = nothing.copy()
    static[still] = _is_amid_flow(matches.pixels_i[still], matches.pixels_i[~still], flow[~still])
    if not static.any():
        return nothing
    motion = find_motion(matches.subset(~still), EPIPOLAR_PX)
    if motion is None or float(motion.inliers.mean()) < AGREEING:
        return nothing
    return np.asarray(static & (_rotation_flow_px(matches, motion.rotation) > TURNED_PX))


def resting(before: NDArray[np.floating], now: NDArray[np.floating], camera: Camera) -> tuple[float, FloatArray]:
    """The static fraction of the image between two views, and the displacement of each point relative to it.

    A small common displacement of the image is vibration of the tripod and does not count as motion.

    Args:
        before, now: (N, 2) pixels of the same points.

    Returns:
        The fraction of the image's occupied cells, 0 to 1, and the displacements (N,) in pixels.
    """
    flow = np.asarray(now, dtype=np.float64) - before
    if len(flow) == 0:
        return 0.0, np.zeros(0)
    cell = _cells(now, camera)
    typical = np.median(np.column_stack([_medians_of(axis, cell) for axis in flow.T]), axis=0)
    if float(np.linalg.norm(typical)) > SHAKE_PX:
        return 0.0, np.asarray(np.linalg.norm(flow, axis=1))
    moved = np.asarray(np.linalg.norm(flow - typical, axis=1))
    return share_of_image(now, moved < RESTING_PX, camera), moved


def _medians_of(values: FloatArray, cell: NDArray[np.int64]) -> FloatArray:
    """Median of the values (N,) of each occupied cell, in order of the cells (N,)."""
    order = np.lexsort((values, cell))
    starts = np.flatnonzero(np.diff(cell[order], prepend=-1))
    counts = np.diff(starts, append=len(cell))
    return np.asarray((values[order[starts + (counts - 1) // 2]] + values[order[starts + counts // 2]]) / 2.0)


def share_of_image(pixels: NDArray[np.floating], chosen: BoolArray, camera: Camera) -> float:
    """Fraction, 0 to 1, of the image covered by the chosen among points (N, 2); each occupied cell counts equally.

    A fraction of the points would depend on texture, for example on that of an object crossing the image.
    """
    if len(pixels) == 0:
        return 0.0
    _, cell = np.unique(_cells(pixels, camera), return_inverse=True)
    return float(np.mean(np.bincount(cell, weights=chosen) / np.bincount(cell)))


def _cells(pixels: NDArray[np.floating], camera: Camera) -> NDArray[np.int64]:
    """Index (N,) of the image cell of each pixel."""
    cell = np.floor(pixels / [camera.width, camera.height] * CELLS).astype(np.int64)
    x, y = np.clip(cell, 0, np.array(CELLS) - 1).T
    return np.asarray(y * CELLS[0] + x)


def _is_amid_flow(pixels: FloatArray, moving: FloatArray, flow: FloatArray) -> BoolArray:
    """Mask (N,) of the pixels (N, 2) whose nearest moving points (M, 2), with flow (M, 2), moved by FLOW_PX."""
    if len(moving) < NEIGHBORS:
        return np.zeros(len(pixels), bool)
    _, nearest = cKDTree(moving).query(pixels, k=NEIGHBORS)
    far = np.linalg.norm(flow, axis=1) >= FLOW_PX
    return np.asarray(far[nearest].mean(axis=1) >= MOVING)


def _rotation_flow_px(matches: Matches, i_from_j_rotation: FloatArray) -> FloatArray:
    """Displacements (N,) from i to j of points at infinity at the pixels of i, pixels."""
    rays = matches.rays_i @ i_from_j_rotation
    ahead = rays[:, 2] > 1e-6
    moved = np.full(len(rays), np.inf)
    moved[ahead] = np.linalg.norm(matches.camera_j.project(rays[ahead]) - matches.pixels_i[ahead], axis=1)
    return moved

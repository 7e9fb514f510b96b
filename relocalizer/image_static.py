"""Points that stand still in the image: drawn over it or fixed to the camera, or the whole view of one that rests.

Text on a display, a logo, a car's bonnet or dirt on a windscreen stays where it is in the image while the world moves,
and contradicts every motion of the camera. A point of the world may stay as well: where the flow of the image has a
zero (in the direction of travel, on the axis that the camera circles), but there its surroundings hardly move either;
and when it is far away and the camera does not turn, but then a far point at its place would not have moved.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from relocalizer.camera import Camera
from relocalizer.features import CELLS
from relocalizer.geometry import FloatArray
from relocalizer.two_view import BoolArray, Matches, find_motion

STILL_PX = 1.0  # a point that stands still is found this near to where it was
FLOW_PX = 12.0  # so far its surroundings must have moved
NEIGHBORS = 8  # moving points that are its surroundings
MOVING = 0.7  # of them that must have moved so far
TURNED_PX = 3.0  # so far a point at infinity must have moved
AGREEING = 0.5  # of the moving points, that one motion of the camera must explain
EPIPOLAR_PX = 1.5
# Of the image's cells: where more of it stands still than this, the camera does, and what moves is something else.
MOST = 0.6
SHAKE_PX = 4.0  # a camera on a tripod may tremble by this
RESTING_PX = 1.5  # a point of a camera that rests is found this near to where it should be


def standing_still(matches: Matches) -> BoolArray:
    """Which matches (N,) stand still in the image although the world at their place moved.

    None do when the cameras differ, when the camera itself stands still, or when the moving points do not tell how the
    camera turned: then nothing says that they are no world.
    """
    nothing = np.zeros(len(matches), bool)
    if matches.camera_i != matches.camera_j:
        return nothing
    flow = matches.pixels_j - matches.pixels_i
    still = np.linalg.norm(flow, axis=1) < STILL_PX
    if not still.any() or share_of_image(matches.pixels_j, still, matches.camera_j) >= MOST:
        return nothing
    found = nothing.copy()
    found[still] = _is_amid_flow(matches.pixels_i[still], matches.pixels_i[~still], flow[~still])
    if not found.any():
        return nothing
    motion = find_motion(matches.subset(~still), EPIPOLAR_PX)
    if motion is None or float(motion.agrees.mean()) < AGREEING:
        return nothing
    return np.asarray(found & (_turned_px(matches, motion.rotation) > TURNED_PX))


def resting(before: NDArray[np.floating], now: NDArray[np.floating], camera: Camera) -> tuple[float, FloatArray]:
    """How much of the image stands still between two views, and how far each point moved against that.

    A camera on a tripod trembles: what most of the image does together is no motion while it is small.

    Args:
        before, now: (N, 2) pixels of the same points.

    Returns:
        The share, 0 to 1, of the image's occupied cells, and (N,) pixels.
    """
    flow = np.asarray(now, dtype=np.float64) - before
    if len(flow) == 0:
        return 0.0, np.zeros(0)
    cell = _cells(now, camera)
    typical = np.median([np.median(flow[cell == c], axis=0) for c in np.unique(cell)], axis=0)
    if float(np.linalg.norm(typical)) > SHAKE_PX:
        return 0.0, np.asarray(np.linalg.norm(flow, axis=1))
    moved = np.asarray(np.linalg.norm(flow - typical, axis=1))
    return share_of_image(now, moved < RESTING_PX, camera), moved


def share_of_image(pixels: NDArray[np.floating], chosen: BoolArray, camera: Camera) -> float:
    """How much of the image the chosen of some points (N, 2) are, 0 to 1: every cell that holds points counts alike.

    Counting points instead would count texture: and something that crosses the image carries points along.
    """
    if len(pixels) == 0:
        return 0.0
    _, cell = np.unique(_cells(pixels, camera), return_inverse=True)
    return float(np.mean(np.bincount(cell, weights=chosen) / np.bincount(cell)))


def _cells(pixels: NDArray[np.floating], camera: Camera) -> NDArray[np.int64]:
    """The number (N,) of the cell of the image that each pixel lies in."""
    cell = np.floor(pixels / [camera.width, camera.height] * CELLS).astype(np.int64)
    x, y = np.clip(cell, 0, np.array(CELLS) - 1).T
    return np.asarray(y * CELLS[0] + x)


def _is_amid_flow(pixels: FloatArray, moving: FloatArray, flow: FloatArray) -> BoolArray:
    """Around which pixels (N, 2) the nearest moving points (M, 2), whose flow (M, 2) is known, moved far."""
    if len(moving) < NEIGHBORS:
        return np.zeros(len(pixels), bool)
    _, nearest = cKDTree(moving).query(pixels, k=NEIGHBORS)
    far = np.linalg.norm(flow, axis=1) >= FLOW_PX
    return np.asarray(far[nearest].mean(axis=1) >= MOVING)


def _turned_px(matches: Matches, i_from_j_rotation: FloatArray) -> FloatArray:
    """How far (N,) points at infinity at the pixels of i lie from them in j."""
    rays = matches.rays_i @ i_from_j_rotation
    ahead = rays[:, 2] > 1e-6
    moved = np.full(len(rays), np.inf)
    moved[ahead] = np.linalg.norm(matches.camera_j.project(rays[ahead]) - matches.pixels_i[ahead], axis=1)
    return moved

"""The view of a trajectory from above: which directions of the world are right, ahead and up on paper."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray

LEAST_AGREEMENT = 0.5  # minimum length of the mean up axis of the cameras; below it their up axes contradict each other
REACH = 2.0  # distance from a path up to which landmarks are contained, relative to the size of the path
MIDDLE = (5.0, 95.0)  # percentiles of landmark coordinates that a view has to contain
POINT = 1e-9  # size below which what is shown is a single point


def top_view_axes(world_from_cam: FloatArray) -> FloatArray:
    """(2, 3): the directions of the world that point right and ahead in the view from above.

    Up is the mean of the cameras' up axes, because a single camera does not measure gravity and cameras are mostly held
    upright. Where these disagree, as of a camera that looks straight down, it is the direction in which the positions
    vary least. Right is the right axis of the first camera.

    Args:
        world_from_cam: (N, 4, 4) poses, at least one.
    """
    up = _up(world_from_cam)
    first = world_from_cam[0, :3, :3]
    for axis in (first[:, 0], first[:, 1], first[:, 2]):  # one of three orthogonal axes is not parallel to `up`
        right = axis - (axis @ up) * up
        if (length := np.linalg.norm(right)) > 0.1:
            break
    right = right / length
    return np.stack([right, np.cross(up, right)])


def _up(world_from_cam: FloatArray) -> FloatArray:
    """Unit vector (3,) away from the ground, in the world."""
    mean = -world_from_cam[:, :3, 1].mean(axis=0)
    if np.linalg.norm(mean) >= LEAST_AGREEMENT:
        return np.asarray(mean / np.linalg.norm(mean))
    centered = world_from_cam[:, :3, 3] - world_from_cam[:, :3, 3].mean(axis=0)
    normal = np.linalg.svd(np.vstack([centered, np.zeros((3, 3))]), full_matrices=False)[2][2]
    looking_down = -world_from_cam[:, :3, 2].mean(axis=0)
    return np.asarray(normal if normal @ (mean + looking_down) >= 0 else -normal)


def extent(path: FloatArray, landmarks: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Lower and upper corner (2,) of a view of a path (N, 2) and of the landmarks (M, 2) around it.

    All of the path is contained. Of the landmarks the farthest ones are not, as these are the least accurate, nor those
    farther from the path than `REACH` times its size, so that it takes at least a fifth of the view.
    """
    low, high = path.min(axis=0), path.max(axis=0)
    size = float((high - low).max())
    if len(landmarks):
        reach = REACH * size if size > POINT else np.inf
        near, far = np.percentile(landmarks, MIDDLE, axis=0)
        low, high = np.minimum(low, np.maximum(near, low - reach)), np.maximum(high, np.minimum(far, high + reach))
    side = float((high - low).max())
    margin = 0.05 * side if side > POINT else 0.5
    return low - margin, high + margin


def thinned(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` of the rows (N,), evenly spaced."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]

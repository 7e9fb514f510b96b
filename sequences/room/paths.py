"""Camera paths: handheld motion through way points, at an even image speed, with the sway of a walking person."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.interpolate import CubicSpline

from .raster import Floats

Waypoint = tuple[float, float, float, float, float]  # camera x, y, z in meters; yaw and pitch of the view in degrees

# Yaw counts from east to north. The loop turns once around the room, always looking across it, and ends by seeing
# its first second again from a hand's breadth aside.
LOOP: Sequence[Waypoint] = (
    (1.75, 1.55, 1.50, 38, -9),
    (2.05, 1.30, 1.46, 62, -10),
    (2.55, 1.05, 1.52, 88, -8),
    (3.25, 1.10, 1.60, 112, -10),
    (3.95, 1.40, 1.56, 136, -12),
    (4.55, 1.85, 1.48, 160, -9),
    (4.80, 2.50, 1.52, 184, -10),
    (4.60, 3.10, 1.60, 208, -13),
    (4.05, 3.60, 1.58, 232, -11),
    (3.30, 3.85, 1.50, 256, -9),
    (2.55, 3.80, 1.44, 280, -11),
    (1.95, 3.45, 1.50, 304, -12),
    (1.55, 2.90, 1.56, 328, -10),
    (1.45, 2.30, 1.52, 352, -9),
    (1.52, 1.85, 1.50, 376, -10),
    (1.68, 1.62, 1.53, 396, -9),
    (1.93, 1.45, 1.49, 414, -9),
    (2.20, 1.28, 1.50, 432, -10),
)
# Another day: lower and higher, nearer to things, in the other direction of turn.
REVISIT: Sequence[Waypoint] = (
    (3.75, 1.25, 1.12, 148, -3),
    (3.35, 1.45, 1.22, 128, -4),
    (3.00, 1.70, 1.38, 108, -7),
    (2.70, 1.65, 1.58, 88, -11),
    (2.45, 1.45, 1.78, 66, -16),
    (2.15, 1.60, 1.88, 44, -18),
    (1.75, 1.85, 1.82, 22, -17),
    (1.50, 2.35, 1.70, 2, -14),
)

TURN_M = 2.5  # a meter of travel moves the image about as much as 1 / TURN_M radians of turning
DENSE = 4000


def handheld(waypoints: Sequence[Waypoint], frames: int, rng: np.random.Generator, *, turn_m: float = TURN_M) -> Floats:
    """Poses world_from_cam (frames, 4, 4), OpenCV camera axes, in the room's frame.

    A cubic spline runs through the way points; its parameter is stretched so that the image moves evenly; slow
    sines of a few millimetres and tenths of a degree make it a hand. `turn_m`: what is as far away as the things around
    the path is, meters.
    """
    points = np.array(waypoints)
    spline = CubicSpline(np.arange(len(points)), points)
    dense = np.linspace(0, len(points) - 1, DENSE)
    values = spline(dense)
    travel = np.linalg.norm(np.diff(values[:, :3], axis=0), axis=1) / turn_m
    turning = np.linalg.norm(np.radians(np.diff(values[:, 3:], axis=0)), axis=1)
    cost = np.concatenate([[0], np.cumsum(np.hypot(travel, turning))])
    even = np.interp(np.linspace(0, cost[-1], frames), cost, dense)
    path = spline(even)
    seconds = np.arange(frames) / 30
    sway = np.stack([_sway(seconds, size, rng) for size in (0.012, 0.012, 0.014, 0.5, 0.45, 1.1)], axis=1)
    path = path + sway[:, :5]
    return np.stack([_looking(p[:3], np.radians([*p[3:], r])) for p, r in zip(path, sway[:, 5], strict=True)])


def _sway(seconds: Floats, size: float, rng: np.random.Generator) -> Floats:
    """A sum of three slow sines with random frequencies and phases, of amplitude about `size`."""
    hertz, phase = rng.uniform((0.25, 0.6, 1.0), (0.5, 0.9, 1.4)), rng.uniform(0, 2 * np.pi, 3)
    weight = np.array([1.0, 0.5, 0.22])
    return np.asarray(size * (weight * np.sin(2 * np.pi * hertz * seconds[:, None] + phase)).sum(axis=1))


def _looking(center: Floats, angles: Floats) -> Floats:
    """world_from_cam of a camera at `center` with yaw, pitch (up is positive) and roll `angles`, radians."""
    yaw, pitch, roll = angles
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    down = np.cross(forward, right)
    pose = np.eye(4)
    pose[:3, 0] = np.cos(roll) * right + np.sin(roll) * down
    pose[:3, 1] = np.cos(roll) * down - np.sin(roll) * right
    pose[:3, 2], pose[:3, 3] = forward, center
    return pose

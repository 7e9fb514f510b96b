"""Paths of the camera through the places, as functions of time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from room.paths import LOOP, Waypoint, handheld
from room.raster import Floats
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline

from stress_world.places import BLOCK_M, COLUMNS, ROWS, STREET_M

RATE_HZ = 30  # at which paths are given; between, they are splines
SECONDS = 12.0  # of a clip


class Path:
    """A smooth path through poses at `RATE_HZ`."""

    def __init__(self, poses: Floats) -> None:
        """`poses`: world_from_cam (N, 4, 4)."""
        times = np.arange(len(poses)) / RATE_HZ
        self.seconds = float(times[-1])
        self._positions = CubicSpline(times, poses[:, :3, 3])
        self._rotations = RotationSpline(times, Rotation.from_matrix(poses[:, :3, :3]))

    def at(self, time_s: float) -> Floats:
        """world_from_cam (4, 4) at a time, held before the first and after the last."""
        time_s = min(max(time_s, 0.0), self.seconds)
        pose = np.eye(4)
        pose[:3, :3] = self._rotations(time_s).as_matrix()
        pose[:3, 3] = self._positions(time_s)
        return pose


def _frames(seconds: float) -> int:
    return round(seconds * RATE_HZ) + 1


def loop(rng: np.random.Generator) -> Path:
    """Once around the room, as in the bundled sequence; the end sees the beginning again."""
    return Path(handheld(LOOP, _frames(SECONDS), rng))


def loop_twice(rng: np.random.Generator) -> Path:
    """Twice around the room, the second time a little aside."""
    again = [(x + 0.12, y - 0.08, z + 0.06, yaw + 360, pitch) for x, y, z, yaw, pitch in LOOP[:-3]]
    return Path(handheld([*LOOP[:-3], *again], _frames(1.7 * SECONDS), rng))


def shaken_loop(rng: np.random.Generator) -> Path:
    """The loop with a trembling hand: 4 to 8 Hz, a third of a degree."""
    poses = handheld(LOOP, _frames(SECONDS), rng)
    times = np.arange(len(poses)) / RATE_HZ
    waves = [
        sum(np.sin(2 * np.pi * hertz * times + rng.uniform(0, 6.28)) for hertz in rng.uniform(4, 8, 3))
        for _ in range(3)
    ]
    trembling = Rotation.from_rotvec(np.radians(0.33) * np.stack(waves, axis=1))
    poses[:, :3, :3] = poses[:, :3, :3] @ trembling.as_matrix()
    return Path(poses)


def swinging_loop(rng: np.random.Generator) -> Path:
    """The loop with swings to the side and back: 50 degrees, at up to 170 degrees a second."""
    poses = handheld(LOOP, _frames(SECONDS), rng)
    times = np.arange(len(poses)) / RATE_HZ
    swing = np.zeros(len(poses))
    for start in (2.0, 4.5, 7.0, 9.5):
        phase = np.clip((times - start) / 0.95, 0, 1)
        swing += np.radians(50) * np.sin(np.pi * phase) ** 2 * (-1 if start in (4.5, 9.5) else 1)
    poses[:, :3, :3] = Rotation.from_rotvec(swing[:, None] * [0, 0, 1]).as_matrix() @ poses[:, :3, :3]
    return Path(poses)


def loop_with_turn(rng: np.random.Generator) -> Path:
    """A third of the loop, one full turn about the camera's own center at 72 degrees a second, and the rest."""
    poses = handheld(LOOP, _frames(SECONDS), rng)
    stop = len(poses) // 3
    share = np.linspace(0, 1, _frames(5.0))[1:]
    turning = _turned(poses[stop], 2 * np.pi * share**2 * (3 - 2 * share))
    return Path(np.concatenate([poses[: stop + 1], turning, poses[stop + 1 :]]))


def loop_after_look(rng: np.random.Generator) -> Path:
    """A look of 100 degrees to the side and back within three seconds, without a step, and then the loop."""
    poses = handheld(LOOP, _frames(SECONDS), rng)
    angle = np.radians(100) * np.sin(np.pi * np.linspace(0, 1, _frames(3.0))) ** 2
    return Path(np.concatenate([_turned(poses[0], angle), poses[1:]]))


def walk_after_turn(rng: np.random.Generator) -> Path:
    """A full turn in place within five seconds, and then a walk across the room."""
    points = [(2.0 + 0.35 * k, 1.6 + 0.2 * k, 1.5, 38 + 1.5 * k, -9.0) for k in range(7)]
    poses = handheld(points, _frames(6.0), rng)
    share = np.linspace(0, 1, _frames(5.0))
    return Path(np.concatenate([_turned(poses[0], 2 * np.pi * share**2 * (3 - 2 * share)), poses[1:]]))


def backward(rng: np.random.Generator) -> Path:
    """Backwards away from a wall, which fills the image at first."""
    points = [(4.6 - 0.28 * k, 2.5 + 0.1 * np.sin(0.7 * k), 1.5, 10 * np.sin(0.6 * k), -8.0) for k in range(13)]
    return Path(handheld(points, _frames(SECONDS), rng))


def _turned(pose: Floats, angle: Floats) -> Floats:
    """Poses (N, 4, 4) of a camera that turns about the vertical through its center, radians (N,)."""
    poses = np.repeat(pose[None], len(angle), axis=0)
    poses[:, :3, :3] = Rotation.from_rotvec(angle[:, None] * [0, 0, 1]).as_matrix() @ poses[:, :3, :3]
    return poses


def from_the_wall(rng: np.random.Generator) -> Path:
    """Two seconds along the north wall, which fills the image, and then back and once half around the room."""
    start: Sequence[Waypoint] = [
        (1.6, 3.75, 1.5, 90, 0), (2.1, 3.7, 1.55, 90, 0), (2.6, 3.75, 1.5, 91, 0), (3.0, 3.6, 1.5, 95, -2),
        (3.3, 3.1, 1.5, 102, -5), (3.5, 2.5, 1.5, 112, -8),
    ]  # fmt: skip
    return Path(handheld([*start, *LOOP[4:13]], _frames(SECONDS), rng))


def straight_on(rng: np.random.Generator) -> Path:
    """Straight along the corridor."""
    points = [(1.0 + 1.5 * k, 1.1 + 0.05 * np.sin(k), 1.5, 2.0 * np.sin(1.7 * k), 0.0) for k in range(10)]
    return Path(handheld(points, _frames(SECONDS), rng))


FLOOR_WALK = (  # cells (column, row) of the floor; rooms are even, and walked once around
    (0, 0), (1, 0), (1, 1), (1, 2), (0, 2), (0, 1), (0, 0), (0, 1), (1, 1), (2, 1), (2, 0), (3, 0), (4, 0), (4, 1),
    (3, 1), (3, 2), (4, 2), (4, 3), (3, 3), (3, 4), (4, 4), (4, 3), (3, 3), (2, 3), (2, 4), (1, 4), (1, 3), (0, 3),
    (0, 4), (0, 3), (0, 2), (1, 2), (1, 1), (2, 1), (2, 2), (3, 2), (3, 1), (2, 1), (1, 1), (1, 0), (0, 0),
)  # fmt: skip


def through_the_floor(rng: np.random.Generator) -> Path:
    """Through the rooms and corridors, 5,000 frames: around rooms, around blocks of rooms, around the whole floor."""
    centers = [np.array([sum(COLUMNS[:i]) + COLUMNS[i] / 2, sum(ROWS[:j]) + ROWS[j] / 2]) for i, j in FLOOR_WALK]
    spots: list[np.ndarray] = []
    for center, (i, j) in zip(centers, FLOOR_WALK, strict=True):
        angles = np.radians([0, 90, 180, 270]) if i % 2 == 0 and j % 2 == 0 else []
        spots += [
            center,
            *(center + np.array([1.5 * np.cos(a), 1.2 * np.sin(a)]) for a in angles),
            *([center] * (len(angles) > 0)),
        ]
    return Path(handheld(_ahead(_denser(spots, 0.8), 1.5, -6), _frames(5000 / RATE_HZ - 1 / RATE_HZ), rng))


def around_the_blocks(rng: np.random.Generator) -> Path:
    """Along the middle of the streets, 5,000 frames: around one block, the other, and both."""
    xs = [STREET_M / 2 + k * (BLOCK_M[0] + STREET_M) for k in range(3)]
    ys = [STREET_M / 2, 1.5 * STREET_M + BLOCK_M[1]]
    corners = [
        (0, 0),
        (1, 0),
        (1, 1),
        (0, 1),
        (0, 0),
        (1, 0),
        (2, 0),
        (2, 1),
        (1, 1),
        (1, 0),
        (2, 0),
        (2, 1),
        (0, 1),
        (0, 0),
        (1, 0),
    ]
    spots = [np.array([xs[i], ys[j]]) for i, j in corners]
    return Path(handheld(_ahead(_denser(spots, 7.0), 1.6, 0), _frames(5000 / RATE_HZ - 1 / RATE_HZ), rng, turn_m=12.0))


def _denser(spots: Sequence[np.ndarray], step_m: float) -> Floats:
    """(N, 2) points at most a step apart along a polyline, its corners rounded."""
    points = [spots[0]]
    for a, b in pairwise(spots):
        count = int(np.ceil(np.linalg.norm(b - a) / step_m))
        points += [a + (b - a) * (k + 1) / count for k in range(count)]
    dense = np.array(points)
    dense[1:-1] = (dense[:-2] + 2 * dense[1:-1] + dense[2:]) / 4
    return dense


def _ahead(points: Floats, height: float, pitch: float) -> list[Waypoint]:
    """Way points of a camera that looks where it goes."""
    headings = np.diff(points, axis=0, append=2 * points[-1:] - points[-2:-1])
    yaws = np.degrees(np.unwrap(np.arctan2(headings[:, 1], headings[:, 0])))
    return [(float(x), float(y), height, float(yaw), pitch) for (x, y), yaw in zip(points, yaws, strict=True)]

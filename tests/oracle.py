"""A world whose truth is known: points in a room, a camera path, and stand-ins for everything that sees pictures.

The whole `Slam` runs on it in seconds. Pictures are blank but for their frame index, written in the first pixels;
the tracker and the predictor read it and answer from the truth plus a stated noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import RigidTransform

from relocalizer.features import LocalFeatures
from relocalizer.geometry import exp_so3, rigid, rotation_matrix, stack_matrices, translation_of
from relocalizer.images import Camera, Image
from relocalizer.interfaces import NoEstimate, PairEstimate, View
from slam.frames import Frame
from slam.trajectory import Trajectory

CAMERA = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)
FRAME_NS = 33_333_333


def look_along(centre: NDArray[np.float64], forward: NDArray[np.float64]) -> RigidTransform:
    """world_from_cam of a level camera at `centre` (world z up) looking along `forward`."""
    z = forward / np.linalg.norm(forward)
    x = np.cross(z, [0.0, 0.0, 1.0])
    x /= np.linalg.norm(x)
    return rigid(np.stack([x, np.cross(z, x), z], axis=1), centre)


def room_path(frames: int = 240, turns: float = 1.15) -> list[RigidTransform]:
    """Around an ellipse in a room, looking outward and a little ahead, so that the last part sees the first again."""
    poses = []
    for s in np.linspace(0.0, 2 * np.pi * turns, frames):
        centre = np.array([1.2 * np.cos(s), 0.9 * np.sin(s), 1.4 + 0.1 * np.sin(3 * s)])
        outward = np.array([np.cos(s + 0.5), np.sin(s + 0.5), 0.05 * np.sin(2 * s)])
        poses.append(look_along(centre, outward))
    return poses


def room_points(rng: np.random.Generator, count: int = 4000) -> NDArray[np.float64]:
    """Points (N, 3) on and in front of the walls of a 6 x 5 x 3 room."""
    points = rng.uniform([-3, -2.5, 0], [3, 2.5, 3], (count, 3))
    wall = rng.integers(0, 4, count)
    inset = rng.uniform(0.0, 0.6, count)
    points[wall == 0, 0] = 3 - inset[wall == 0]
    points[wall == 1, 0] = -3 + inset[wall == 1]
    points[wall == 2, 1] = 2.5 - inset[wall == 2]
    points[wall == 3, 1] = -2.5 + inset[wall == 3]
    return points


@dataclass(eq=False)
class OracleWorld:
    """Poses, points and the pixel noise; `blind` frames see nothing at all."""

    poses: Sequence[RigidTransform]
    points: NDArray[np.float64]
    pixel_noise: float = 0.3
    seed: int = 0
    blind: frozenset[int] = frozenset()
    max_depth: float = 20.0
    camera: Camera = CAMERA
    descriptors: NDArray[np.float32] = field(init=False)
    _cache: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        raw = np.random.default_rng(self.seed).normal(size=(len(self.points), 128))
        self.descriptors = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)

    def visible(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Which points frame `index` sees, and where (noisy, the same at every call)."""
        if index not in self._cache:
            in_cam = np.asarray(self.poses[index].inv().apply(self.points))
            near = np.flatnonzero((in_cam[:, 2] > 0.1) & (in_cam[:, 2] < self.max_depth))
            pixels = self.camera.project(in_cam[near])
            inside = self.camera.contains(pixels, margin=2)
            rng = np.random.default_rng((self.seed, index))
            noisy = pixels[inside] + rng.normal(0, self.pixel_noise, (int(inside.sum()), 2))
            seen = near[inside] if index not in self.blind else np.zeros(0, np.int64)
            self._cache[index] = seen, noisy[: len(seen)].astype(np.float32)
        return self._cache[index]

    def frames(self) -> Iterator[Frame]:
        for index in range(len(self.poses)):
            yield self.frame(index)

    def frame(self, index: int) -> Frame:
        image = np.zeros((self.camera.height, self.camera.width, 3), np.uint8)
        image[0, :4, :] = np.frombuffer(np.uint32(index).tobytes(), np.uint8)[:, None]
        return Frame(index=index, timestamp_ns=index * FRAME_NS, image=image, camera=self.camera)

    @property
    def ground_truth(self) -> Trajectory:
        times = np.arange(len(self.poses), dtype=np.int64) * FRAME_NS
        return Trajectory(times, stack_matrices(self.poses))


def index_of(image: Image) -> int:
    """The frame index a picture (grey or RGB) carries."""
    first = image[0, :4] if image.ndim == 2 else image[0, :4, 0]
    return int(np.frombuffer(np.ascontiguousarray(first).tobytes(), np.uint32)[0])


class OracleTracker:
    """Follows points by knowing which they are; detects the points in view, with noisy descriptors."""

    def __init__(self, world: OracleWorld, *, max_features: int = 800, descriptor_noise: float = 0.02) -> None:
        self._world = world
        self._max_features = max_features
        self._descriptor_noise = descriptor_noise

    def gray(self, image: Image) -> Image:
        return np.ascontiguousarray(image[:, :, 0])

    def detect(self, gray: Image) -> LocalFeatures:
        index = index_of(gray)
        seen, pixels = self._world.visible(index)
        rng = np.random.default_rng((self._world.seed, 1, index))
        chosen = rng.permutation(len(seen))[: self._max_features]
        noisy = self._world.descriptors[seen[chosen]] + rng.normal(0, self._descriptor_noise, (len(chosen), 128))
        unit = noisy / np.maximum(np.linalg.norm(noisy, axis=1, keepdims=True), 1e-9)
        return LocalFeatures(pixels[chosen], unit.astype(np.float32), np.full(len(chosen), 5.0, np.float32))

    def follow(
        self, before: Image, after: Image, pixels: NDArray[np.float32], guess: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        seen, places = self._world.visible(index_of(before))
        seen_after, places_after = self._world.visible(index_of(after))
        if len(seen) == 0 or len(seen_after) == 0 or len(pixels) == 0:
            return pixels.copy(), np.zeros(len(pixels), bool)
        distance, nearest = cKDTree(places).query(pixels)
        where = np.full(len(self._world.points), -1, np.int64)
        where[seen_after] = np.arange(len(seen_after))
        row = where[seen[nearest]]
        return places_after[row], (row >= 0) & (distance < 1e-3)

    def sharpness(self, gray: Image) -> float:
        return 1.0


@dataclass(frozen=True)
class OracleEncoded:
    index: int


class OraclePredictor:
    """Ground truth plus stated noise, in the place of a pair network.

    Args:
        rotation_sigma_deg, direction_sigma_deg: noise per axis of each answer.
        outlier_rate: share of the answers that are random, with full confidence.
        min_baseline: below this share of the room the direction is unknown.
    """

    name = "oracle"

    def __init__(
        self,
        world: OracleWorld,
        *,
        rotation_sigma_deg: float = 0.5,
        direction_sigma_deg: float = 3.0,
        outlier_rate: float = 0.0,
        min_baseline: float = 0.01,
    ) -> None:
        self._world = world
        self._rotation_sigma = float(np.radians(rotation_sigma_deg))
        self._direction_sigma = float(np.radians(direction_sigma_deg))
        self._outlier_rate = outlier_rate
        self._min_baseline = min_baseline
        rng = np.random.default_rng((world.seed, 7))
        self._waves = rng.normal(size=(256, 6)) * np.array([0.8, 0.8, 0.8, 1.5, 1.5, 1.5])
        self._phases = rng.uniform(0, 2 * np.pi, 256)

    def encode(self, views: Sequence[View]) -> list[OracleEncoded]:
        return [OracleEncoded(index_of(view.image)) for view in views]

    def relate(self, pairs: Sequence[tuple[OracleEncoded, OracleEncoded]]) -> list[PairEstimate | NoEstimate]:
        return [self._relate(i.index, j.index) for i, j in pairs]

    def describe(self, encoded: OracleEncoded) -> NDArray[np.float32]:
        """Random Fourier features of the pose: near in place and direction means near as a descriptor."""
        pose = self._world.poses[encoded.index]
        place = np.concatenate([translation_of(pose), rotation_matrix(pose)[:, 2]])
        wave = np.cos(self._waves @ place + self._phases)
        return np.asarray(wave / np.linalg.norm(wave), dtype=np.float32)

    def _relate(self, i: int, j: int) -> PairEstimate | NoEstimate:
        if {i, j} & self._world.blind:
            return NoEstimate("0 matches, 20 needed")
        if i > j:
            answer = self._relate(j, i)
            return answer.reversed() if isinstance(answer, PairEstimate) else answer
        rng = np.random.default_rng((self._world.seed, 2, i, j))
        i_from_j = self._world.poses[i].inv() * self._world.poses[j]
        R, t = rotation_matrix(i_from_j), translation_of(i_from_j)
        if rng.random() < self._outlier_rate:
            R, t = exp_so3(rng.normal(0, 1.0, 3)), rng.normal(0, 1.0, 3)
        noisy_R = R @ exp_so3(rng.normal(0, self._rotation_sigma, 3))
        unknown = bool(np.linalg.norm(t) < self._min_baseline)
        direction = t / max(np.linalg.norm(t), 1e-12) + rng.normal(0, self._direction_sigma, 3)
        return PairEstimate(
            i_from_j_rotation=noisy_R,
            i_from_j_direction=None if unknown else direction / np.linalg.norm(direction),
            confidence=0.9,
            rotation_sigma_rad=max(self._rotation_sigma, 1e-6),
            direction_sigma_rad=np.pi if unknown else max(self._direction_sigma, 1e-6),
            direction_unknown="no baseline" if unknown else "",
        )

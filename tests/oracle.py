"""A synthetic world with ground truth: points in a room, a camera path, and fakes of everything that reads images.

The whole `Slam` runs on it in seconds. Images are blank but for their frame index, a row of squares in the corner;
the tracker and the predictor read it and return the ground truth plus a given noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import RigidTransform, Rotation

from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.geometry import exp_so3, rigid, rotation_matrix, stack_matrices, translation_of
from relocalizer.images import Image
from relocalizer.interfaces import CalibratedImage, NoEstimate, PairEstimate
from slam.evaluation.trajectory import Trajectory
from slam.map.frames import Frame

CAMERA = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)
FRAME_NS = 33_333_333
INDEX_BITS, BIT_PX = 15, 16  # number and size of the squares that encode an image's index
FACING_DEG = 50.0  # about as far as local features are recognized from the side


def look_along(center: NDArray[np.float64], forward: NDArray[np.float64]) -> RigidTransform:
    """world_from_cam of a level camera at `center` (world z up) looking along `forward`."""
    z = forward / np.linalg.norm(forward)
    x = np.cross(z, [0.0, 0.0, 1.0])
    x /= np.linalg.norm(x)
    return rigid(np.stack([x, np.cross(z, x), z], axis=1), center)


def room_path(frames: int = 240, turns: float = 1.15) -> list[RigidTransform]:
    """Around an ellipse in a room, looking outward and a little ahead, so that the last part revisits the first."""
    poses = []
    for s in np.linspace(0.0, 2 * np.pi * turns, frames):
        center = np.array([1.2 * np.cos(s), 0.9 * np.sin(s), 1.4 + 0.1 * np.sin(3 * s)])
        outward = np.array([np.cos(s + 0.5), np.sin(s + 0.5), 0.05 * np.sin(2 * s)])
        poses.append(look_along(center, outward))
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


def faces(center: NDArray[np.float64], points: NDArray[np.float64], facing: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points (N, 3) show their front to a camera at `center`."""
    sight = center - points
    towards = np.einsum("ij,ij->i", sight, facing)
    return np.asarray(towards > np.cos(np.radians(FACING_DEG)) * np.linalg.norm(sight, axis=1), dtype=bool)


@dataclass(eq=False)
class OracleWorld:
    """Poses, points and the pixel noise; `blind` frames observe no point.

    With `facing` (N, 3), unit vectors, a point is seen only from within `FACING_DEG` of its own, as a patch of a
    surface is recognized.
    """

    poses: Sequence[RigidTransform]
    points: NDArray[np.float64]
    pixel_noise: float = 0.3
    seed: int = 0
    blind: frozenset[int] = frozenset()
    max_depth: float = 20.0
    camera: Camera = CAMERA
    facing: NDArray[np.float64] | None = None
    descriptors: NDArray[np.float32] = field(init=False)
    _cache: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        raw = np.random.default_rng(self.seed).normal(size=(len(self.points), 128))
        self.descriptors = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)

    def visible(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids and pixels of the points visible in frame `index` (with noise, the same at every call)."""
        if index not in self._cache:
            in_cam = np.asarray(self.poses[index].inv().apply(self.points))
            near = np.flatnonzero((in_cam[:, 2] > 0.1) & (in_cam[:, 2] < self.max_depth))
            if self.facing is not None:
                near = near[faces(translation_of(self.poses[index]), self.points[near], self.facing[near])]
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
        bits = (index >> np.arange(INDEX_BITS)) & 1
        image[:BIT_PX, : INDEX_BITS * BIT_PX] = np.repeat(255 * bits, BIT_PX)[:, None].astype(np.uint8)
        return Frame(index=index, timestamp_ns=index * FRAME_NS, image=image, camera=self.camera)

    @property
    def ground_truth(self) -> Trajectory:
        times = np.arange(len(self.poses), dtype=np.int64) * FRAME_NS
        return Trajectory(times, stack_matrices(self.poses))


def surroundings(
    poses: Sequence[RigidTransform],
    camera: Camera,
    rng: np.random.Generator,
    *,
    nearest: float,
    farthest: float,
    count: int = 700,
    every: int = 10,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points (N, 3) for a world around any camera path, and which way each faces (N, 3).

    Every tenth pose is given what it lacks to see `count` of them: anywhere in the image, at depths from
    `nearest` to `farthest` and as likely in any octave, facing that pose. No two are closer than a twentieth of
    `nearest`, and none is so near to the path that a camera would run into it.
    """
    path = cKDTree(np.array([translation_of(pose) for pose in poses]))
    points, facing = np.zeros((0, 3)), np.zeros((0, 3))
    for pose in poses[::every]:
        center = translation_of(pose)
        in_cam = np.asarray(pose.inv().apply(points)).reshape(-1, 3)
        seen = (in_cam[:, 2] > 0) & (in_cam[:, 2] < farthest) & faces(center, points, facing)
        lacking = count - int(camera.contains(camera.project(in_cam[seen]), margin=2).sum())
        if lacking <= 0:
            continue
        pixels = rng.uniform([0, 0], [camera.width - 1, camera.height - 1], (lacking, 2))
        depth = np.exp(rng.uniform(np.log(nearest), np.log(farthest), lacking))
        new = np.asarray(pose.apply(depth[:, None] * np.column_stack([camera.normalized(pixels), np.ones(lacking)])))
        new = new[path.query(new)[0] > 0.5 * nearest]
        sight = center - new
        points = np.concatenate([points, new])
        facing = np.concatenate([facing, sight / np.linalg.norm(sight, axis=1, keepdims=True)])
    _, first = np.unique(np.floor(points / (0.05 * nearest)), axis=0, return_index=True)
    return points[np.sort(first)], facing[np.sort(first)]


def index_of(image: Image) -> int:
    """The frame index an image (gray or RGB) carries, as a row of black and white squares that survives JPEG."""
    row = image[BIT_PX // 2, BIT_PX // 2 : INDEX_BITS * BIT_PX : BIT_PX]
    bits = (row if row.ndim == 1 else row[:, 0]) > 127
    return int(bits @ (1 << np.arange(INDEX_BITS)))


class OracleTracker:
    """Follows points by their true ids; detects the points in view, with noisy descriptors."""

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

    def follow_warped(
        self,
        before: Image,
        after: Image,
        pixels: NDArray[np.float32],
        guess: NDArray[np.float32],
        after_from_before: NDArray[np.float64],
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return self.follow(before, after, pixels, guess)

    def sharpness(self, gray: Image) -> float:
        return 1.0


@dataclass(frozen=True)
class OracleEncoded:
    index: int


@dataclass(frozen=True, kw_only=True)
class ErrorModel:
    """Errors of a pair network over many pairs: most estimates fine, some coarse, a few of them outliers.

    The direction errs by a Gaussian on each of the two axes across it, the rotation by one on each of three axes;
    a pair that is hard is hard in both. An estimate does not indicate its kind.

    Args:
        fine_deg, coarse_deg: standard deviations of the direction per axis.
        fine_share: share of the fine ones among the answers that are no outliers.
        outlier_rate: share of the answers that are any rotation and any direction.
        rotation_share: standard deviation of the rotation as a share of the direction's.
    """

    fine_deg: float
    coarse_deg: float
    fine_share: float
    outlier_rate: float
    rotation_share: float

    def answer(
        self, rng: np.random.Generator, rotation: NDArray[np.float64], direction: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A rotation (3, 3) and a unit direction (3,) with the errors of the network."""
        if rng.random() < self.outlier_rate:
            anywhere = rng.normal(size=3)
            return Rotation.random(rng=rng).as_matrix(), anywhere / np.linalg.norm(anywhere)
        sigma = float(np.radians(self.fine_deg if rng.random() < self.fine_share else self.coarse_deg))
        turn = rng.normal(0.0, sigma, 3)
        across = turn - (turn @ direction) * direction  # turning about the direction itself does not move it
        return rotation @ exp_so3(rng.normal(0.0, self.rotation_share * sigma, 3)), exp_so3(across) @ direction

    @property
    def direction_sigma_rad(self) -> float:
        """Root mean square per axis of the direction errors that are no outliers."""
        mean = self.fine_share * self.fine_deg**2 + (1 - self.fine_share) * self.coarse_deg**2
        return float(np.radians(np.sqrt(mean)))

    @property
    def rotation_sigma_rad(self) -> float:
        return self.rotation_share * self.direction_sigma_rad


# Fitted to ScanNet1500's AUC@5/10/20 by docs/experiments/oracle_trajectories.py --fit. Two numbers are taken from
# other published results: the outliers from CO3Dv2's RRA@15 of 95.8, the share of the rotation from 7-Scenes'
# median rotation errors (1.02 and 1.26 degrees), which the model's medians, 1.0 and 1.2, come to.
RELOC3R = {
    512: ErrorModel(fine_deg=2.19, coarse_deg=7.2, fine_share=0.766, outlier_rate=0.04, rotation_share=0.25),
    224: ErrorModel(fine_deg=2.52, coarse_deg=8.2, fine_share=0.73, outlier_rate=0.04, rotation_share=0.25),
}


class OraclePredictor:
    """Ground truth plus given noise, in place of a pair network.

    Args:
        rotation_sigma_deg, direction_sigma_deg: noise per axis of each answer.
        outlier_rate: share of the answers that are random, with full confidence.
        min_baseline: below this share of the room the direction is unknown.
        errors: when given, these decide the answers and their sigmas instead of the three above.
        place_unit: how far apart places look different, in units of a room's size.
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
        errors: ErrorModel | None = None,
        place_unit: float = 1.0,
    ) -> None:
        self._world = world
        self._errors = errors
        self._rotation_sigma = float(np.radians(rotation_sigma_deg))
        self._direction_sigma = float(np.radians(direction_sigma_deg))
        self._outlier_rate = outlier_rate
        self._min_baseline = min_baseline
        rng = np.random.default_rng((world.seed, 7))
        self._waves = rng.normal(size=(256, 6)) * np.array([0.8, 0.8, 0.8, 1.5, 1.5, 1.5])
        self._waves[:, :3] /= place_unit
        self._phases = rng.uniform(0, 2 * np.pi, 256)

    def encode(self, views: Sequence[CalibratedImage]) -> list[OracleEncoded]:
        return [OracleEncoded(index_of(view.image)) for view in views]

    def relate(self, pairs: Sequence[tuple[OracleEncoded, OracleEncoded]]) -> list[PairEstimate | NoEstimate]:
        return [self._relate(i.index, j.index) for i, j in pairs]

    def describe(self, encoded: OracleEncoded) -> NDArray[np.float32]:
        """Random Fourier features of the pose: poses near in position and direction have similar descriptors."""
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
        if self._errors is not None:
            return self._answer(self._errors, rng, R, t)
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

    def _answer(
        self, errors: ErrorModel, rng: np.random.Generator, R: NDArray[np.float64], t: NDArray[np.float64]
    ) -> PairEstimate:
        length = float(np.linalg.norm(t))
        unknown = length < self._min_baseline
        noisy_R, direction = errors.answer(rng, R, t / length if length > 0 else np.array([0.0, 0.0, 1.0]))
        return PairEstimate(
            i_from_j_rotation=noisy_R,
            i_from_j_direction=None if unknown else direction,
            confidence=0.9,
            rotation_sigma_rad=errors.rotation_sigma_rad,
            direction_sigma_rad=np.pi if unknown else errors.direction_sigma_rad,
            direction_unknown="no baseline" if unknown else "",
        )

"""A map of a synthetic world, built by the real `Mapper` from keyframes at poses that the test chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from oracle import OraclePredictor, OracleTracker, OracleWorld, room_path, room_points
from scipy.spatial.transform import RigidTransform

from relocalizer.geometry import Similarity, rotation_angle, rotation_matrix, translation_of
from relocalizer.images import Image
from slam.config.schema import SlamConfig
from slam.events import Event
from slam.map.frames import FrameObservation
from slam.map.tracks import Tracks
from slam.mapping.bundle import BundleAdjuster
from slam.mapping.mapper import Mapper
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster


def room(frames: int = 240, turns: float = 1.15, *, count: int = 2500, noise: float = 0.3) -> OracleWorld:
    points = room_points(np.random.default_rng(3), count)
    return OracleWorld(room_path(frames, turns), points, pixel_noise=noise)


@dataclass(eq=False)
class MapBuilder:
    """Inserts frames of a world as keyframes; tracks are followed from each to the next."""

    world: OracleWorld
    mapper: Mapper
    tracker: OracleTracker
    predictor: OraclePredictor

    def seen(self, index: int, tracks: Tracks | None = None) -> FrameObservation:
        frame = self.world.frame(index)
        gray = self.tracker.gray(frame.image)
        return FrameObservation(frame, self.tracker.detect(gray), tracks or Tracks.none())

    def gray_of(self, k: int) -> Image:
        """The gray image keyframe k was made of."""
        return self.tracker.gray(self.world.frame(self.mapper.map.graph.keyframes[k].frame_index).image)

    def followed(self, index: int) -> Tracks:
        """The newest keyframe's tracks, in frame `index`."""
        k = self.mapper.map.graph.last_id
        if k < 0:
            return Tracks.none()
        before = self.mapper.map.landmarks.observed[k]
        gray = self.tracker.gray(self.world.frame(index).image)
        pixels, found = self.tracker.follow(self.gray_of(k), gray, before.pixels, before.pixels)
        return Tracks(before.ids, pixels).where(found)

    def add(self, index: int, *, pose: Similarity | None = None, segment: int = 0, follow: bool = True) -> int:
        """Insert frame `index` as a keyframe, at its true pose by default; its id."""
        seen = self.seen(index)
        tracks = self.followed(index) if follow else Tracks.none()
        pose = pose or Similarity.from_rigid(self.world.poses[index])
        return self.mapper.insert(seen, tracks, pose, segment).id


def build(
    world: OracleWorld,
    indices: Sequence[int] = (),
    *,
    config: SlamConfig | None = None,
    pose: Callable[[int], Similarity] | None = None,
    predictor: OraclePredictor | None = None,
    adjuster: BundleAdjuster | None = None,
    emit: Callable[[Event], None] = lambda event: None,
    **noise: float,
) -> MapBuilder:
    """A map with keyframes at frames `indices`, at their true poses or at `pose(index)`."""
    predictor, tracker = predictor or OraclePredictor(world, **noise), OracleTracker(world)
    mapper = Mapper(config or SlamConfig(), predictor, adjuster or SchurBundleAdjuster(), emit)
    builder = MapBuilder(world, mapper, tracker, predictor)
    for index in indices:
        builder.add(index, pose=pose(index) if pose else None)
    return builder


def refined_walk(keyframes: int, step: int) -> MapBuilder:
    """Keyframes at their true poses, `step` frames apart in the room, refined once."""
    builder = build(room(), range(0, keyframes * step, step), rotation_sigma_deg=0.3, direction_sigma_deg=2.0)
    builder.mapper.adjustment.local_bundle_adjustment(keyframes - 1)
    return builder


def pose_error(pose: RigidTransform, builder: MapBuilder, index: int) -> tuple[float, float]:
    """Error (degrees, meters) of a pose of frame `index`."""
    between = builder.world.poses[index].inv() * pose
    degrees = np.degrees(rotation_angle(rotation_matrix(between)))
    return float(degrees), float(np.linalg.norm(translation_of(between)))

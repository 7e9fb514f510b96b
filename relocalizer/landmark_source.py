"""Interface of a map that an image is localized in: a live map of SLAM, or a stored one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.geometry import FloatArray, Similarity

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TrackedFeatures:
    """Local features of a keyframe, and the landmark (N,) of each; -1 for a feature without one."""

    features: LocalFeatures
    landmark: Ids


class LandmarkSource(Protocol):
    """Keyframes and landmarks, each named by a number. Lengths are in map units.

    In a live map a landmark may be a track that is not triangulated yet; only triangulated ones have a point.
    """

    def camera_of(self, keyframe: int) -> Camera:
        """The pinhole camera of a keyframe."""
        ...

    def pose_of(self, keyframe: int) -> Similarity:
        """world_from_keyframe."""
        ...

    def tracked_features(self, keyframe: int) -> TrackedFeatures:
        """The local features of a keyframe, with their landmarks."""
        ...

    def observed_landmarks(self, keyframes: Sequence[int]) -> Ids:
        """The triangulated landmarks that any of these keyframes observes, ascending."""
        ...

    def observers(self, landmarks: Ids, count: int) -> list[int]:
        """Up to `count` keyframes that observe the most of these landmarks (N,), in descending order."""
        ...

    def is_triangulated(self, landmarks: Ids) -> NDArray[np.bool_]:
        """Which of these landmarks (N,) have a point."""
        ...

    def points_world(self, landmarks: Ids) -> FloatArray:
        """Points (N, 3) of triangulated landmarks."""
        ...

    def depth_sigma_world(self, landmarks: Ids) -> FloatArray:
        """One standard deviation of each landmark along the ray it was triangulated from, as a vector (N, 3)."""
        ...

    def descriptors(self, landmarks: Ids) -> NDArray[np.float32]:
        """Unit descriptors (N, 128)."""
        ...

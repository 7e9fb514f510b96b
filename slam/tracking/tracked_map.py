"""What tracking reads of the map: the map itself, or a copy while another thread changes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, Similarity
from relocalizer.images import Image
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks


class TrackedMap(Protocol):
    """The landmarks that frames are tracked by; `SlamMap` is one."""

    def is_triangulated(self, landmarks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these tracks (N,) are landmarks."""
        ...

    def points_world(self, landmarks: NDArray[np.int64]) -> FloatArray:
        """Points (N, 3) of landmarks, map units."""
        ...

    def with_current_ids(self, tracks: Tracks) -> Tracks:
        """The tracks under their current ids, which change when landmarks are fused."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class MapSnapshot:
    """The landmarks among the tracks of one frame, as they were at that frame.

    Attributes:
        ids: (N,) ascending.
        points: (N, 3), map units.
    """

    ids: NDArray[np.int64]
    points: FloatArray

    @staticmethod
    def of(slam_map: SlamMap, tracks: Tracks) -> MapSnapshot:
        """The landmarks among the tracks of the newest frame."""
        ids = np.sort(tracks.ids[slam_map.is_triangulated(tracks.ids)])
        return MapSnapshot(ids, slam_map.points_world(ids))

    def is_triangulated(self, landmarks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """As `TrackedMap.is_triangulated`; a track that began later is no landmark."""
        return np.isin(landmarks, self.ids)

    def points_world(self, landmarks: NDArray[np.int64]) -> FloatArray:
        """As `TrackedMap.points_world`, for landmarks of the snapshot."""
        return self.points[np.searchsorted(self.ids, landmarks)]

    def with_current_ids(self, tracks: Tracks) -> Tracks:
        """The tracks themselves: no landmarks are fused in a snapshot."""
        return tracks


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReferenceView:
    """The keyframe with which later frames are compared, to decide whether one of them becomes a keyframe.

    Attributes:
        world_from_keyframe: its pose, map units.
        landmarks: the landmarks that it observes.
        without_depth: the points that it observes and that are not triangulated.
    """

    frame_index: int
    camera: Camera
    world_from_keyframe: RigidTransform
    landmarks: Tracks
    without_depth: Tracks


def reference_view(slam_map: SlamMap, k: int) -> ReferenceView:
    """Keyframe k of a map as the reference of later frames."""
    keyframe, observed = slam_map.graph.keyframes[k], slam_map.landmarks.observed[k]
    is_landmark = slam_map.is_triangulated(observed.ids)
    return ReferenceView(
        frame_index=keyframe.frame_index,
        camera=keyframe.camera,
        world_from_keyframe=slam_map.pose_of(k).rigid,
        landmarks=observed.where(is_landmark),
        without_depth=observed.where(~is_landmark),
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DepartedFrame:
    """The frame from which on tracking uses a snapshot, because it is inserted as a keyframe in another thread.

    Attributes:
        view: what later frames are compared with.
        world_from_keyframe: its pose in the snapshot.
        tracks: all its tracks, landmarks or not.
    """

    view: ReferenceView
    gray: Image
    world_from_keyframe: Similarity
    tracks: Tracks

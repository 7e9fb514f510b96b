"""Tells the observers what happened: the values of the map at that moment, never the map itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.errors import UserError
from relocalizer.images import Image
from relocalizer.triangulation import depths_in
from slam.events import (
    Event,
    FrameProcessed,
    GraphOptimized,
    Initialized,
    KeyframeAdded,
    LandmarksUpdated,
    Observer,
    Relocalized,
    RunFinished,
    ScaleUnobservable,
    TrackingLost,
)
from slam.map.frames import Frame, InitialPair, Keyframe
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks
from slam.relocalization.frame_relocalizer import RelocalizedFrame
from slam.result import SlamResult
from slam.tracking.frame_tracker import FrameTracker
from slam.tracking.tracking_state import TrackingStateMachine

logger = logging.getLogger(__name__)

MAX_KEYFRAMES_FULL_UPDATE = (
    200  # keyframes up to which all landmarks are told after each; telling takes as long as there are many
)


@dataclass(frozen=True, slots=True, eq=False)
class DroppedObserver:
    """An observer that raised: its name, the event it was told of, and what it raised."""

    name: str
    event: str
    error: Exception


class EventPublisher:
    """Makes events of what stands in the map, and hands them to every observer in order.

    The system does not depend on who listens: an observer that raises is dropped, and a warning says so once.

    Attributes:
        dropped: observers that raised, in order.
    """

    def __init__(self, observers: Sequence[Observer], slam_map: SlamMap) -> None:
        self._observers = list(observers)
        self._map = slam_map
        self.dropped: list[DroppedObserver] = []

    def publish(self, event: Event) -> None:
        for observer in tuple(self._observers):
            try:
                observer(event)
            except Exception as error:
                self._drop(observer, event, error)

    def _drop(self, observer: Observer, event: Event, error: Exception) -> None:
        self._observers = [other for other in self._observers if other is not observer]
        name = getattr(observer, "__qualname__", type(observer).__name__)
        self.dropped.append(DroppedObserver(name, type(event).__name__, error))
        internal = None if isinstance(error, UserError) else error  # what a person can fix needs no traceback
        logger.warning("%s hears no more of this run: %s", name, error, exc_info=internal)

    def keyframe(self, keyframe: Keyframe, reason: str, image: Image) -> None:
        pose = self._map.graph.world_from_keyframe[keyframe.id]
        self.publish(KeyframeAdded(keyframe=keyframe, world_from_keyframe=pose, reason=reason, image=image))

    def initialized(self, pair: InitialPair) -> None:
        indices = (pair.first.frame.index, pair.second.frame.index)
        landmarks = len(self._map.landmarks.landmark_ids())
        self.publish(Initialized(frame_indices=indices, landmarks=landmarks, parallax_deg=pair.parallax_deg))

    def scale_unobservable(self, frame: Frame, reason: str) -> None:
        self.publish(ScaleUnobservable(frame_index=frame.index, reason=reason))

    def lost(self, frame: Frame, reason: str) -> None:
        self.publish(TrackingLost(frame_index=frame.index, timestamp_ns=frame.timestamp_ns, reason=reason))

    def relocalized(self, found: RelocalizedFrame, frames_lost: int) -> None:
        frame = found.observation.frame
        self.publish(
            Relocalized(
                frame_index=frame.index,
                timestamp_ns=frame.timestamp_ns,
                keyframe_id=found.keyframe_id,
                inliers=len(found.landmarks),
                frames_lost=frames_lost,
            )
        )

    def landmarks_after(self, k: int, frame_index: int) -> None:
        """Tell of the landmarks when keyframe k has come: always in a small map, ever more seldom as it grows."""
        if k % (1 + len(self._map.graph.keyframes) // MAX_KEYFRAMES_FULL_UPDATE) == 0:
            self.landmarks(frame_index)

    def landmarks(self, frame_index: int) -> None:
        landmarks = self._map.landmarks
        ids = landmarks.landmark_ids()
        points = landmarks.points_world(ids, self._map.graph)
        self.publish(
            LandmarksUpdated(frame_index=frame_index, ids=ids, points_world=points, colors=landmarks.color[ids])
        )

    def graph(self, frame_index: int, before: float, after: float, cause: str) -> None:
        self.publish(
            GraphOptimized(
                frame_index=frame_index,
                world_from_keyframe=dict(self._map.graph.world_from_keyframe),
                error_before=before,
                error_after=after,
                cause=cause,
            )
        )

    def frame(
        self, frame: Frame, where: TrackingStateMachine, seen: FrameTracker, stage_ms: Mapping[str, float]
    ) -> None:
        """Tell of a frame that has been dealt with: where it was seen to be, and by what."""
        pose, agreeing = seen.pose if where.is_tracking else None, seen.inlier_tracks
        self.publish(
            FrameProcessed(
                frame=frame,
                state=where.state,
                reason=where.reason,
                world_from_cam=pose,
                keyframe_id=where.keyframe_id,
                pixels=seen.tracks.pixels,
                track_ids=seen.tracks.ids,
                is_inlier=np.isin(seen.tracks.ids, agreeing.ids),
                depth=self._median_depth(agreeing, pose),
                stage_ms=dict(stage_ms),
                overlay_share=seen.overlay_share,
                camera_rests=seen.is_resting,
            )
        )

    def _median_depth(self, seen: Tracks, pose: RigidTransform | None) -> float:
        if pose is None or not len(seen):
            return np.nan
        points = self._map.landmarks.points_world(seen.ids, self._map.graph)
        return float(np.median(depths_in(points, pose)))

    def finished(self, result: SlamResult, *, interrupted: bool) -> None:
        self.publish(
            RunFinished(
                timestamps_ns=result.trajectory.timestamps_ns,
                frame_indices=result.frame_indices,
                world_from_cam=result.trajectory.world_from_cam,
                interrupted=interrupted,
            )
        )

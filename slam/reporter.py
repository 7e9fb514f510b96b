"""Tells the observers what happened: the values of the map at that moment, never the map itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.images import Image
from relocalizer.triangulation import depths_in
from slam.events import (
    Event,
    FrameProcessed,
    GraphOptimised,
    KeyframeAdded,
    LandmarksUpdated,
    Observer,
    PlacedLater,
    TrackingState,
)
from slam.frames import Frame, Keyframe
from slam.mapping import Mapper
from slam.recognition import Recognised
from slam.tracks import Tracks

TOLD_ALWAYS = 200  # keyframes up to which all landmarks are told after each; telling takes as long as there are many


class Reporter:
    """Makes events of what stands in the map, and hands them to every observer in order."""

    def __init__(self, observers: Sequence[Observer], mapper: Mapper) -> None:
        self._observers = tuple(observers)
        self._mapper = mapper

    def emit(self, event: Event) -> None:
        for observer in self._observers:
            observer(event)

    def keyframe(self, keyframe: Keyframe, reason: str, image: Image) -> None:
        pose = self._mapper.graph.world_from_keyframe[keyframe.id]
        self.emit(KeyframeAdded(keyframe=keyframe, world_from_keyframe=pose, reason=reason, image=image))

    def placed_later(self, found: Recognised) -> None:
        frame = found.seen.frame
        self.emit(
            PlacedLater(
                frame_index=frame.index,
                timestamp_ns=frame.timestamp_ns,
                keyframe_id=found.keyframe_id,
                inliers=len(found.landmarks),
            )
        )

    def landmarks_after(self, k: int, frame_index: int) -> None:
        """Tell of the landmarks when keyframe k has come: always in a small map, ever more seldom as it grows."""
        if k % (1 + len(self._mapper.graph.keyframes) // TOLD_ALWAYS) == 0:
            self.landmarks(frame_index)

    def landmarks(self, frame_index: int) -> None:
        landmarks = self._mapper.landmarks
        ids = landmarks.placed_ids()
        points = landmarks.points_world(ids, self._mapper.graph)
        self.emit(
            LandmarksUpdated(frame_index=frame_index, ids=ids, points_world=points, colours=landmarks.colour[ids])
        )

    def graph(self, frame_index: int, before: float, after: float, cause: str) -> None:
        self.emit(
            GraphOptimised(
                frame_index=frame_index,
                world_from_keyframe=dict(self._mapper.graph.world_from_keyframe),
                error_before=before,
                error_after=after,
                cause=cause,
            )
        )

    def frame(
        self,
        frame: Frame,
        *,
        state: TrackingState,
        reason: str,
        pose: RigidTransform | None,
        keyframe_id: int,
        tracks: Tracks,
        agreeing: Tracks,
        stage_ms: Mapping[str, float],
    ) -> None:
        """`agreeing` are the landmarks the pose rests on, a part of `tracks`."""
        depth = np.nan
        if pose is not None and len(agreeing):
            points = self._mapper.landmarks.points_world(agreeing.ids, self._mapper.graph)
            depth = float(np.median(depths_in(points, pose)))
        self.emit(
            FrameProcessed(
                frame=frame,
                state=state,
                reason=reason,
                world_from_cam=pose,
                keyframe_id=keyframe_id,
                pixels=tracks.pixels,
                track_ids=tracks.ids,
                is_inlier=np.isin(tracks.ids, agreeing.ids),
                depth=depth,
                stage_ms=dict(stage_ms),
            )
        )

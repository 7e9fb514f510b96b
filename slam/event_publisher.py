"""Publication of events to the observers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.errors import UserError
from relocalizer.geometry import FloatArray, apply_inverse
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
    PairRelated,
    RelocalizationTried,
    Relocalized,
    RunFinished,
    ScaleUnobservable,
    TrackingLost,
)
from slam.map.edge_residuals import residuals_of
from slam.map.frames import Frame, InitialPair, Keyframe, PoseNotFound
from slam.map.image_points import MatchedPoints, TrackedPoints
from slam.map.slam_map import SlamMap
from slam.map.tracks import among
from slam.process_memory import peak_memory_mb
from slam.relocalization.frame_relocalizer import FrameRelocalizer, RelocalizedFrame
from slam.result import SlamResult
from slam.tracking.frame_tracker import FrameTracker
from slam.tracking.tracking_state import TrackingStateMachine

logger = logging.getLogger(__name__)

# Maximum number of keyframes up to which `LandmarksUpdated` follows every new keyframe. Its cost is proportional to the
# number of landmarks, so it is published less often in larger maps.
MAX_KEYFRAMES_FULL_UPDATE = 200


# Where the current thread collects its events; None in a thread that passes them to the observers.
_collected: ContextVar[list[Event] | None] = ContextVar("collected events", default=None)


@dataclass(frozen=True, slots=True, eq=False)
class DroppedObserver:
    """An observer that raised an exception.

    Attributes:
        name: qualified name of the observer.
        event: class name of the event.
        error: the exception.
    """

    name: str
    event: str
    error: Exception


class EventPublisher:
    """Builds events from the current map, and passes them to every observer in order.

    An event contains values of the map, never the map itself. An observer that raises is dropped with one warning, so
    the system does not depend on its observers.

    Attributes:
        dropped: observers that raised, in order.
    """

    def __init__(self, observers: Sequence[Observer], slam_map: SlamMap) -> None:
        self._observers = list(observers)
        self._map = slam_map
        self.dropped: list[DroppedObserver] = []

    def publish(self, event: Event) -> None:
        """Pass an event to every observer, or collect it inside of `collecting`."""
        collected = _collected.get()
        if collected is not None:
            collected.append(event)
            return
        for observer in tuple(self._observers):
            try:
                observer(event)
            except Exception as error:
                self._drop(observer, event, error)

    @contextmanager
    def collecting(self, events: list[Event]) -> Iterator[None]:
        """Append the events that this thread publishes in this block to `events`, for another thread to publish."""
        token = _collected.set(events)
        try:
            yield
        finally:
            _collected.reset(token)

    def _drop(self, observer: Observer, event: Event, error: Exception) -> None:
        self._observers = [other for other in self._observers if other is not observer]
        name = getattr(observer, "__qualname__", type(observer).__name__)
        self.dropped.append(DroppedObserver(name, type(event).__name__, error))
        internal = None if isinstance(error, UserError) else error  # an error that the user can fix needs no traceback
        logger.warning("%s raised an error and receives no further events: %s", name, error, exc_info=internal)

    def keyframe_added(self, keyframe: Keyframe, reason: str, image: Image) -> None:
        """Publish `KeyframeAdded`."""
        pose = self._map.graph.world_from_keyframe[keyframe.id]
        self.publish(KeyframeAdded(keyframe=keyframe, world_from_keyframe=pose, reason=reason, image=image))

    def initialized(self, pair: InitialPair, i: int, j: int) -> None:
        """Publish `Initialized`, and the pair estimate of its keyframes i and j."""
        indices = (pair.first.frame.index, pair.second.frame.index)
        landmarks = len(self._map.landmarks.landmark_ids())
        self.publish(Initialized(frame_indices=indices, landmarks=landmarks, parallax_deg=pair.parallax_deg))
        self.publish(PairRelated(frame_index=indices[1], i=i, j=j, purpose="initialization", estimate=pair.estimate))

    def scale_unobservable(self, frame: Frame, reason: str) -> None:
        """Publish `ScaleUnobservable`."""
        self.publish(ScaleUnobservable(frame_index=frame.index, reason=reason))

    def tracking_lost(self, frame: Frame, reason: str) -> None:
        """Publish `TrackingLost`."""
        self.publish(TrackingLost(frame_index=frame.index, timestamp_ns=frame.timestamp_ns, reason=reason))

    def relocalization_tried(
        self, frame: Frame, relocalizer: FrameRelocalizer, found: RelocalizedFrame | PoseNotFound
    ) -> None:
        """Publish `RelocalizationTried`."""
        self.publish(
            RelocalizationTried(
                frame_index=frame.index,
                timestamp_ns=frame.timestamp_ns,
                keyframe_id=found.keyframe_id if isinstance(found, RelocalizedFrame) else -1,
                attempts=tuple(relocalizer.attempts),
                matches=relocalizer.matched_points(found)
                if isinstance(found, RelocalizedFrame)
                else MatchedPoints.none(),
                world_from_cam=found.world_from_cam if isinstance(found, RelocalizedFrame) else None,
            )
        )

    def relocalized(self, found: RelocalizedFrame, frames_lost: int) -> None:
        """Publish `Relocalized`."""
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

    def landmarks_updated_after_keyframe(self, k: int, frame_index: int) -> None:
        """Publish `LandmarksUpdated` after keyframe k was added: always in a small map, less often in larger ones."""
        if k % (1 + len(self._map.graph.keyframes) // MAX_KEYFRAMES_FULL_UPDATE) == 0:
            self.landmarks_updated(frame_index)

    def landmarks_updated(self, frame_index: int) -> None:
        """Publish `LandmarksUpdated`."""
        landmarks = self._map.landmarks
        ids = landmarks.landmark_ids()
        self.publish(
            LandmarksUpdated(
                frame_index=frame_index,
                ids=ids,
                points_world=landmarks.points_world(ids, self._map.graph),
                colors=landmarks.color[ids],
                depth_sigmas=landmarks.depth_sigma_world(ids, self._map.graph),
            )
        )

    def graph_optimized(self, frame_index: int, before: float, after: float, cause: str) -> None:
        """Publish `GraphOptimized`."""
        self.publish(
            GraphOptimized(
                frame_index=frame_index,
                world_from_keyframe=dict(self._map.graph.world_from_keyframe),
                error_before=before,
                error_after=after,
                cause=cause,
                after=residuals_of(self._map.graph),
            )
        )

    def frame_processed(
        self,
        frame: Frame,
        state: TrackingStateMachine,
        tracker: FrameTracker,
        stage_ms: Mapping[str, float],
        *,
        is_keyframe: bool = False,
    ) -> None:
        """Publish `FrameProcessed`."""
        pose, inliers = tracker.pose if state.is_tracking else None, tracker.inlier_tracks
        landmarks, is_inlier = tracker.points_world(inliers.ids), among(tracker.tracks.ids, inliers.ids)
        points = _tracked_points(frame, tracker, pose, landmarks, is_inlier)
        residuals = points.residuals_px[points.is_inlier]
        measurement = replace(
            tracker.meter.measurement,
            landmarks=len(inliers) + len(tracker.outlier_tracks),
            residual_px=float(f"{np.median(residuals):.4g}") if len(residuals) else np.nan,
            memory_mb=float(round(peak_memory_mb())),
        )
        self.publish(
            FrameProcessed(
                frame=frame,
                state=state.state,
                reason=state.reason,
                world_from_cam=pose,
                keyframe_id=state.keyframe_id,
                pixels=tracker.tracks.pixels,
                track_ids=tracker.tracks.ids,
                is_inlier=is_inlier,
                depth=np.nan if pose is None or not len(inliers) else float(np.median(depths_in(landmarks, pose))),
                stage_ms=dict(stage_ms),
                overlay_share=tracker.overlay_share,
                moving_share=tracker.moving_objects.share_of(len(tracker.tracks)),
                camera_rests=tracker.is_resting,
                measurement=measurement,
                keyframe_criteria=tracker.keyframe_policy.criteria,
                points=points.thinned(),
                is_keyframe=is_keyframe,
            )
        )

    def run_finished(self, result: SlamResult, *, interrupted: bool) -> None:
        """Publish `RunFinished`."""
        self.publish(
            RunFinished(
                timestamps_ns=result.trajectory.timestamps_ns,
                frame_indices=result.frame_indices,
                world_from_cam=result.trajectory.world_from_cam,
                interrupted=interrupted,
            )
        )


def _tracked_points(
    frame: Frame,
    tracker: FrameTracker,
    pose: RigidTransform | None,
    landmarks: FloatArray,
    of_landmark: NDArray[np.bool_],
) -> TrackedPoints:
    """The tracks of the newest frame and its outliers, with the reprojections of its inlier landmarks.

    Args:
        landmarks: (N, 3), the inlier landmarks of the frame, map units.
        of_landmark: mask of the tracks of the newest frame that are these landmarks.
    """
    tracks = tracker.tracks.joined(tracker.outlier_tracks)
    reprojected = np.full((len(tracks), 2), np.nan, np.float32)
    is_inlier = np.zeros(len(tracks), bool)
    if pose is not None and len(landmarks):
        rows, inliers = np.flatnonzero(of_landmark), tracker.inlier_tracks.ids
        order = np.argsort(inliers)
        in_cam = apply_inverse(pose, landmarks[order[np.searchsorted(inliers, tracks.ids[rows], sorter=order)]])
        ahead = in_cam[:, 2] > 1e-9
        reprojected[rows[ahead]] = frame.camera.project(in_cam[ahead])
        is_inlier[rows[ahead]] = True
    return TrackedPoints(tracks.pixels, reprojected, tracker.meter.ages_of(tracks.ids), is_inlier)

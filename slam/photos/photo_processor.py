"""Collection of photos without an order, which are mapped together when the last one is read."""

from __future__ import annotations

from dataclasses import replace

from relocalizer.interfaces import PosePredictor
from slam.components.modules import Modules
from slam.config.schema import SlamConfig
from slam.map.frames import Frame, FrameObservation
from slam.photos.photo_mapper import Photo, PhotoMapper
from slam.photos.view_graph import PhotoFeatures, build_view_graph
from slam.progress import Progress, no_progress
from slam.relocalization.deferred import StoredFrame
from slam.relocalization.frame_relocalizer import RelocalizedFrame
from slam.result import FrameResult
from slam.stopwatch import Stopwatch
from slam.tracking.tracking_state import TrackingStateMachine


class PhotoProcessor:
    """Takes the place of `FrameProcessor` for photos: no photo is followed from another one, and none has a live pose.

    Attributes:
        state: the tracking state; it stays `initializing`.
    """

    def __init__(self, config: SlamConfig, modules: Modules, predictor: PosePredictor) -> None:
        self._modules = modules
        self._predictor = predictor
        self._mapper = PhotoMapper(config, modules)
        self._ratio = config.predictor.geometric.match_ratio
        self._photos: list[Photo] = []
        self.state = TrackingStateMachine(restart_after=None)
        modules.log.live = False

    def process(self, frame: Frame) -> FrameResult:
        """Extract what is needed of a photo, and store it."""
        watch, tracker = Stopwatch(), self._modules.frame_tracker
        with watch("features"):
            tracker.track(frame)
            observation = tracker.extract(frame)
        with watch("predictor"):
            observation.descriptor(self._predictor)  # encodes the image too, while it is there
        with watch("keep for later"):
            without_image = replace(observation, frame=frame.without_image())
            self._photos.append(Photo(without_image, StoredFrame.of(frame)))
        self.state.set_waiting("photos are mapped when all of them are read")
        self._modules.events.frame_processed(frame, self.state, tracker, watch.stage_ms)
        return FrameResult(
            frame_index=frame.index,
            timestamp_ns=frame.timestamp_ns,
            state=self.state.state,
            reason=self.state.reason,
            world_from_cam=None,
            keyframe_id=-1,
        )

    def map_photos(self, on_progress: Progress = no_progress) -> None:
        """Map all photos; those that get no pose are stored for deferred relocalization."""
        views = build_view_graph(
            [self._features_of(photo.observation) for photo in self._photos],
            self._predictor,
            ratio=self._ratio,
            on_progress=on_progress,
        )
        for photo in self._mapper.map_photos(self._photos, views, on_progress):
            self._modules.deferred.keep(photo.stored.frame())
        self._photos = []

    def overlapping(self, k: int) -> list[int]:
        """The keyframes of other segments whose photos may overlap with that of keyframe k, the likeliest first."""
        return self._mapper.overlapping(k)

    def _features_of(self, observation: FrameObservation) -> PhotoFeatures:
        descriptor, _ = observation.descriptor(self._predictor)
        return PhotoFeatures(observation.features, observation.encoded(self._predictor), descriptor)

    def continue_from(self, found: RelocalizedFrame, reason: str) -> None:
        """Insert a photo that was relocalized in the finished map; every photo becomes a keyframe."""
        self._mapper.insert(found, reason or f"recognized {len(found.landmarks)} landmarks")

"""Processing of one keyframe: insertion, odometry edges, local bundle adjustment and loop closing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relocalizer.geometry import Similarity
from slam.components.modules import Modules
from slam.config.schema import SlamConfig
from slam.map.frames import Frame, FrameObservation, InitialPair, Keyframe
from slam.map.tracks import Tracks
from slam.stopwatch import Stopwatch


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class NewKeyframe:
    """A frame that is to be inserted as a keyframe.

    Attributes:
        observe: computes its observation.
        tracks: the tracks that were followed into it.
        world_from_keyframe: its pose, with the scale of its reference keyframe.
        segment: the segment that it becomes part of.
        reason: why it is inserted, a sentence.
    """

    frame: Frame
    observe: Callable[[], FrameObservation]
    tracks: Tracks
    world_from_keyframe: Similarity
    segment: int
    reason: str


class KeyframeProcessor:
    """Inserts keyframes into the map; the counterpart of ORB-SLAM's threads for local mapping and loop closing.

    Only the map, the solvers and the place recognition are used: none of the state of tracking.
    """

    def __init__(self, config: SlamConfig, modules: Modules) -> None:
        self._config = config
        self._map = modules.map
        self._images = modules.images
        self._events = modules.events
        self._mapper = modules.mapper
        self._odometry_edges = modules.odometry_edges
        self._loop_detector = modules.loop_detector
        self._loop_closer = modules.loop_closer

    def begin_segment(self, pair: InitialPair, watch: Stopwatch) -> tuple[Keyframe, Keyframe]:
        """Insert the first two keyframes of a segment with their landmarks; the second one is not linked yet."""
        with watch("map"):
            a, b = self._mapper.begin_segment(pair)
            self._images.store(a.id, pair.first.frame.image)
            self._images.store(b.id, pair.second.frame.image)
        self._events.initialized(pair, a.id, b.id)
        self._events.keyframe_added(a, "first of the first pair", pair.first.frame.image)
        self._loop_detector.add(a.id)
        return a, b

    def insert(self, new: NewKeyframe, watch: Stopwatch) -> Keyframe:
        """Insert a keyframe: landmarks, odometry edges to covisible keyframes, local bundle adjustment, its loops."""
        with watch("features"):
            observation = new.observe()
        with watch("map"):
            keyframe = self._mapper.insert(observation, new.tracks, new.world_from_keyframe, new.segment)
            self._images.store(keyframe.id, new.frame.image)
        with watch("predictor"):
            self._odometry_edges.relate_to_covisible(keyframe.id)
        with watch("refine"):
            self._mapper.adjustment.local_bundle_adjustment(keyframe.id)
        self.link(new.frame, keyframe, new.reason, watch)
        return keyframe

    def link(self, frame: Frame, keyframe: Keyframe, reason: str, watch: Stopwatch) -> None:
        """Add the odometry edges of a new keyframe, and close its loops."""
        k = keyframe.id
        self._events.keyframe_added(keyframe, reason, frame.image)
        with watch("link"):
            self._odometry_edges.check_parallax(k, 0.5 * self._config.landmarks.min_parallax_deg)
            self._odometry_edges.add_odometry_edges(k, self._config.bundle_adjustment.window)
            closed = self._loop_closer.close_loops(k)
            self._loop_detector.add(k)
        if closed:
            with watch("refine"):
                self._mapper.adjustment.local_bundle_adjustment(k)

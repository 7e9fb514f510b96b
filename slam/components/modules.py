"""Creation of the modules of the system: the classes that process frames and change the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slam.components.assembly import Components
from slam.config.schema import SlamConfig
from slam.event_publisher import EventPublisher
from slam.events import Observer
from slam.loop_closing.loop_closer import LoopCloser
from slam.loop_closing.loop_detector import LoopDetector
from slam.loop_closing.loop_verifier import LoopVerifier
from slam.loop_closing.odometry_edges import OdometryEdges
from slam.map.frame_log import FrameLog
from slam.map.keyframe_images import KeyframeImages
from slam.map.slam_map import SlamMap
from slam.mapping.mapper import Mapper
from slam.relocalization.deferred import DeferredRelocalizer
from slam.relocalization.frame_relocalizer import FrameRelocalizer
from slam.tracking.frame_tracker import FrameTracker
from slam.tracking.initializer import Initializer
from slam.tracking.local_map import LocalMap
from slam.tracking.rotation_only import RotationOnlyTracker


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Modules:
    """The modules of one system, all over the same map."""

    map: SlamMap
    log: FrameLog
    images: KeyframeImages
    events: EventPublisher
    frame_tracker: FrameTracker
    initializer: Initializer
    rotation_only: RotationOnlyTracker
    local_map: LocalMap
    mapper: Mapper
    odometry_edges: OdometryEdges
    loop_detector: LoopDetector
    loop_closer: LoopCloser
    relocalizer: FrameRelocalizer
    deferred: DeferredRelocalizer


def build_modules(
    config: SlamConfig, components: Components, observers: Sequence[Observer], images: KeyframeImages
) -> Modules:
    """The modules over an empty map.

    Args:
        observers: receive every event, in order.
        images: stores the images of the keyframes.
    """
    predictor, retriever, loops = components.predictor, components.retriever, config.loop_closing
    mapper = Mapper(config, predictor, components.adjuster, lambda event: events.publish(event))
    slam_map, log = mapper.map, FrameLog()
    events = EventPublisher(observers, slam_map)
    publish = events.publish
    frame_tracker = FrameTracker(config, components.tracker, slam_map)
    relocalizer = FrameRelocalizer(config.relocalization, slam_map, predictor, retriever)
    detector, verifier = LoopDetector(loops, slam_map, retriever), LoopVerifier(loops, slam_map, predictor, publish)
    return Modules(
        map=slam_map,
        log=log,
        images=images,
        events=events,
        frame_tracker=frame_tracker,
        initializer=Initializer(config, slam_map, frame_tracker, predictor),
        rotation_only=RotationOnlyTracker(config, slam_map, frame_tracker),
        local_map=LocalMap(config, slam_map, images, frame_tracker),
        mapper=mapper,
        odometry_edges=OdometryEdges(loops, mapper, predictor, publish, noise_px=config.tracks.noise_px),
        loop_detector=detector,
        loop_closer=LoopCloser(loops, mapper, detector, verifier, components.optimizer, publish),
        relocalizer=relocalizer,
        deferred=DeferredRelocalizer(config.tracking.look_back, log, frame_tracker, relocalizer, publish),
    )

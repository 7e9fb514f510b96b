"""What is computed of a frame is computed once, however many parts of the system need it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from oracle import OracleEncoded, OraclePredictor, OracleTracker, OracleWorld, index_of, room_path, room_points

from relocalizer.features import LocalFeatures
from relocalizer.images import Image
from relocalizer.interfaces import CalibratedImage
from relocalizer.retrieval import FaissRetriever
from slam.components.assembly import Components
from slam.config.schema import SlamConfig
from slam.events import Event, KeyframeAdded, Relocalized, TrackingLost
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster
from slam.system import Slam


class CountingTracker(OracleTracker):
    def __init__(self, world: OracleWorld) -> None:
        super().__init__(world)
        self.detected: Counter[int] = Counter()

    def detect(self, gray: Image) -> LocalFeatures:
        self.detected[index_of(gray)] += 1
        return super().detect(gray)


class CountingPredictor(OraclePredictor):
    def __init__(self, world: OracleWorld) -> None:
        super().__init__(world)
        self.encoded: Counter[int] = Counter()
        self.described: Counter[int] = Counter()

    def encode(self, views: Sequence[CalibratedImage]) -> list[OracleEncoded]:
        self.encoded.update(index_of(view.image) for view in views)
        return super().encode(views)

    def describe(self, encoded: OracleEncoded):
        self.described[encoded.index] += 1
        return super().describe(encoded)


def test_features_encoding_and_descriptor_of_a_frame_are_computed_once_also_when_it_is_lost_and_found_again():
    points = room_points(np.random.default_rng(3), 4000)
    world = OracleWorld(room_path(), points, pixel_noise=0.3, blind=frozenset(range(150, 158)))
    tracker, predictor, events = CountingTracker(world), CountingPredictor(world), list[Event]()
    components = Components(
        predictor=predictor,
        tracker=tracker,
        retriever=FaissRetriever(),
        optimizer=GtsamOptimizer(),
        adjuster=SchurBundleAdjuster(),
    )
    slam = Slam(SlamConfig(), components, observers=[events.append])
    for frame in world.frames():
        slam.step(frame)
    kinds = Counter(type(event) for event in events)
    assert kinds[TrackingLost] > 0
    assert kinds[Relocalized] > 0
    assert kinds[KeyframeAdded] > 10
    for counts in (tracker.detected, predictor.encoded, predictor.described):
        assert len(counts) > 10
        assert set(counts.values()) == {1}

"""The mapping back end: keyframe insertion, landmark fusion and bundle adjustment over one map."""

from __future__ import annotations

from collections.abc import Callable

from relocalizer.geometry import Similarity
from relocalizer.interfaces import NoEstimate, PairEstimate, PosePredictor
from slam.config.schema import SlamConfig
from slam.events import Event
from slam.map.frames import FrameObservation, InitialPair, Keyframe
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks
from slam.mapping.bundle import (
    BundleAdjuster,
)
from slam.mapping.bundle_adjustment import BundleAdjustment
from slam.mapping.keyframe_insertion import KeyframeInserter
from slam.mapping.landmark_fusion import LandmarkFusion

PRIOR_CONFIDENCE = 0.5  # of a pair estimate, the chance that it is right


class Mapper:
    """Extends the map by keyframes and keeps it consistent.

    Attributes:
        map: the map, for whoever only asks.
        fusion, adjustment: the parts of the back end that others call by themselves.
    """

    def __init__(
        self,
        config: SlamConfig,
        predictor: PosePredictor,
        adjuster: BundleAdjuster,
        publish: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._config = config
        self.map = SlamMap()
        self.fusion = LandmarkFusion(config.landmarks, self.map)
        self.adjustment = BundleAdjustment(config, self.map, self.fusion, adjuster, publish)
        self._inserter = KeyframeInserter(config, predictor, self.map, self.fusion, publish)

    def begin_segment(self, pair: InitialPair) -> tuple[Keyframe, Keyframe]:
        """Insert the initial pair as the first two keyframes of a segment of its own; the first is its origin."""
        first, second = pair.first, pair.second
        segment = 1 + max(self.map.graph.segment_of.values(), default=-1)
        a = self.insert(first, first.tracks, Similarity.identity(), segment)
        b = self.insert(second, second.tracks, Similarity.from_rigid(pair.first_from_second), segment)
        self.remember_pair(a.id, b.id, pair.estimate)
        self.adjustment.local_bundle_adjustment(b.id)
        return a, b

    def insert(self, observation: FrameObservation, tracks: Tracks, pose: Similarity, segment: int) -> Keyframe:
        """Make a frame a keyframe at `pose`, observing `tracks`; landmarks are found again and new tracks begun."""
        return self._inserter.insert(observation, tracks, pose, segment)

    def remember_pair(self, i: int, j: int, estimate: PairEstimate | NoEstimate) -> None:
        """Keep a pair estimate that is more likely right than wrong, as a prior of bundle adjustment."""
        if isinstance(estimate, NoEstimate) or estimate.confidence < PRIOR_CONFIDENCE:
            return
        if self._config.bundle_adjustment.pair_priors:
            self.map.add_pair(i, j, estimate)

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
from slam.mapping.bundle import BundleAdjuster
from slam.mapping.bundle_adjustment import BundleAdjustment
from slam.mapping.keyframe_insertion import KeyframeInserter
from slam.mapping.landmark_fusion import LandmarkFusion

PRIOR_CONFIDENCE = 0.5  # minimum confidence (probability of being correct) of a pair estimate used as a prior


class Mapper:
    """Local mapping, in ORB-SLAM's terms: extends the map by keyframes and refines it.

    Attributes:
        map: the map.
        fusion: landmark search and fusion, which loop closing uses too.
        adjustment: local and global bundle adjustment.
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
        """Insert the initial pair as the first two keyframes of a new segment; the first one is its origin."""
        first, second = pair.first, pair.second
        segment = self.map.next_segment
        a = self.insert(first, first.tracks, Similarity.identity(), segment)
        b = self.insert(second, second.tracks, Similarity.from_rigid(pair.first_from_second), segment)
        self.remember_pair(a.id, b.id, pair.estimate)
        self.adjustment.local_bundle_adjustment(b.id)
        return a, b

    def insert(self, observation: FrameObservation, tracks: Tracks, pose: Similarity, segment: int) -> Keyframe:
        """Insert a frame as a keyframe at `pose`, observing `tracks`; known landmarks are searched for in it."""
        return self._inserter.insert(observation, tracks, pose, segment)

    def remember_pair(self, i: int, j: int, estimate: PairEstimate | NoEstimate) -> None:
        """Store a pair estimate as a prior of bundle adjustment if it is more likely correct than not."""
        if isinstance(estimate, NoEstimate) or estimate.confidence < PRIOR_CONFIDENCE:
            return
        if self._config.bundle_adjustment.pair_priors:
            self.map.pairs.add(i, j, estimate)

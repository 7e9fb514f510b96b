"""A frame that could not be followed, recognised: after a wide step, and after a loss."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.spatial.transform import RigidTransform

from relocalizer.features import LocalFeatures
from relocalizer.images import Camera
from relocalizer.interfaces import Encoded, NoEstimate, PairEstimate, PosePredictor, Retriever, View
from slam.config import RelocalizationConfig
from slam.frames import Seen
from slam.front_end import NotLocated
from slam.localization import Localised, NotLocalised, localise, match_keyframes
from slam.mapping import Mapper
from slam.tracks import Tracks

RELATIVES = 3
MIN_FIRST_MATCHES = 8


@dataclass(frozen=True, slots=True, eq=False)
class Recognised:
    """A pose found from keyframe `keyframe_id` and its relatives.

    Attributes:
        landmarks: those that agree with the pose.
        tracks: all tracks to go on with: the agreeing landmarks, and recognised points without a place yet.
    """

    seen: Seen
    world_from_cam: RigidTransform
    keyframe_id: int
    landmarks: Tracks
    tracks: Tracks


class Recogniser:
    """Tries the active keyframe first, then the places that look most alike."""

    def __init__(
        self, config: RelocalizationConfig, mapper: Mapper, predictor: PosePredictor, retriever: Retriever
    ) -> None:
        self._config = config
        self._mapper = mapper
        self._predictor = predictor
        self._retriever = retriever

    def recognise(self, seen: Seen, active: int) -> Recognised | NotLocated:
        """The frame's pose from landmarks of remembered keyframes, or why none agrees."""
        [encoded] = self._predictor.encode([View(seen.frame.image, seen.frame.camera, seen.features)])
        reason = "no keyframe to compare with"
        for c in self._candidates(encoded, active):
            outcome = self._try(seen, encoded, c)
            if isinstance(outcome, Recognised):
                return outcome
            reason = outcome.reason
        return NotLocated(reason)

    def _candidates(self, encoded: Encoded, active: int) -> list[int]:
        found = self._retriever.query(self._predictor.describe(encoded), self._config.candidates, frozenset([active]))
        return [active, *(c.key for c in found)]

    def _try(self, seen: Seen, encoded: Encoded, c: int) -> Recognised | NotLocated:
        refused = too_few_points(seen.features, c, self._mapper, min_inliers=self._config.min_inliers)
        if refused is not None:
            return NotLocated(refused.reason)
        [estimate] = self._predictor.relate([(self._mapper.graph.keyframes[c].encoded, encoded)])
        outcome = recognise_place(
            seen.features,
            seen.frame.camera,
            c,
            estimate,
            self._mapper,
            min_inliers=self._config.min_inliers,
            min_confirming=self._config.min_confirming,
        )
        if not isinstance(outcome, Localised):
            return NotLocated(outcome.reason)
        agreeing = outcome.matches.tracks
        return Recognised(seen, outcome.fit.world_from_cam, c, agreeing, agreeing.joined(outcome.unplaced))


def too_few_points(features: LocalFeatures, c: int, mapper: Mapper, *, min_inliers: int) -> NotLocalised | None:
    """Why a picture cannot show the place of keyframe c, by c's own points; None when it may.

    Milliseconds, where a network takes long to relate the two: to be asked first, since most candidates are wrong.
    """
    matches = match_keyframes(features, [c], mapper.graph, mapper.landmarks)
    enough = max(MIN_FIRST_MATCHES, min_inliers // 2)
    if len(matches.tracks) < enough:
        return NotLocalised(f"{len(matches.tracks)} points of keyframe {c} recognised, {enough} needed")
    return None


def recognise_place(
    features: LocalFeatures,
    camera: Camera,
    c: int,
    estimate: PairEstimate | NoEstimate,
    mapper: Mapper,
    *,
    min_inliers: int,
    min_confirming: int | None = None,
) -> Localised | NotLocalised:
    """The pose of a picture that may show the place of keyframe c, from c's landmarks and its relatives'.

    The relatives are matched only when c itself shows that the place may be right: most candidates are wrong.
    """
    refused = too_few_points(features, c, mapper, min_inliers=min_inliers)
    if refused is not None:
        return refused
    graph, landmarks = mapper.graph, mapper.landmarks
    matches = match_keyframes(features, [c, *mapper.related(c, RELATIVES)], graph, landmarks)
    return localise(
        matches,
        camera,
        landmarks,
        graph,
        reference=c,
        estimate=estimate,
        min_inliers=min_inliers,
        min_confirming=min_confirming,
    )

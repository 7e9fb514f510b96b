"""A frame that could not be followed, recognised: after a wide step, and after a loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.features import LocalFeatures
from relocalizer.images import Camera
from relocalizer.interfaces import Encoded, NoEstimate, PairEstimate, PosePredictor, Retriever, View
from slam.config import RelocalizationConfig
from slam.frames import Seen
from slam.front_end import NotLocated
from slam.localization import Localised, NotLocalised, confirms, localise, look_closer, match_keyframes, occupied_cells
from slam.mapping import Mapper
from slam.tracks import Tracks

RELATIVES = 3
AROUND = 20  # keyframes that see the same as the one recognised, whose landmarks are looked for
MIN_HYPOTHESIS = 8  # landmarks that agree with a pose worth a closer look
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
        first = recognise_place(
            seen.features,
            seen.frame.camera,
            c,
            estimate,
            self._mapper,
            min_inliers=min(MIN_HYPOTHESIS, self._config.min_confirming),
            relatives=self._config.relatives,
            search_too=True,
        )
        if not isinstance(first, Localised):
            return NotLocated(first.reason)
        return self._judge(seen, c, self._look_closer(seen, c, first), estimate)

    def _look_closer(self, seen: Seen, c: int, first: Localised) -> Localised:
        graph, landmarks = self._mapper.graph, self._mapper.landmarks
        around = [c, *self._mapper.related(c, AROUND)]
        ids = np.unique(np.concatenate([landmarks.observed[k].ids for k in around]))
        return look_closer(
            first,
            seen.features,
            seen.frame.camera,
            ids[landmarks.has_place(ids)],
            landmarks,
            graph,
            radius_px=self._config.search_radius_px,
            min_similarity=self._config.min_similarity,
        )

    def _judge(
        self, seen: Seen, c: int, found: Localised, estimate: PairEstimate | NoEstimate
    ) -> Recognised | NotLocated:
        """A false pose is worse than none: enough landmarks, most of those recognised, and an estimate where few."""
        config, pose = self._config, found.fit.world_from_cam
        confirmed = confirms(estimate, self._mapper.graph.world_from_keyframe[c], pose)
        needed = config.min_confirming if confirmed else config.min_inliers
        agreeing = found.matches.tracks
        if len(agreeing) < needed or found.share < config.min_share:
            return NotLocated(
                f"{len(agreeing)} of {len(found.fit.inliers)} landmarks around keyframe {c} agree, "
                f"{needed} and {config.min_share:.0%} needed"
            )
        cells = occupied_cells(agreeing.pixels, seen.frame.camera)
        if cells < config.min_cells and not confirmed:
            return NotLocated(
                f"{len(agreeing)} landmarks around keyframe {c} agree, but in {cells} cells of the picture, "
                f"{config.min_cells} needed"
            )
        return Recognised(seen, pose, c, agreeing, agreeing.joined(found.unplaced))


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
    relatives: int = RELATIVES,
    search_too: bool = False,
) -> Localised | NotLocalised:
    """The pose of a picture that may show the place of keyframe c, from c's landmarks and its relatives'.

    The relatives are matched only when c itself shows that the place may be right: most candidates are wrong.
    """
    refused = too_few_points(features, c, mapper, min_inliers=min_inliers)
    if refused is not None:
        return refused
    graph, landmarks = mapper.graph, mapper.landmarks
    matches = match_keyframes(features, [c, *mapper.related(c, relatives)], graph, landmarks)
    return localise(
        matches,
        camera,
        landmarks,
        graph,
        reference=c,
        estimate=estimate,
        min_inliers=min_inliers,
        min_confirming=min_confirming,
        search_too=search_too,
    )

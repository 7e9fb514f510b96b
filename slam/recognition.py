"""A frame that could not be followed, recognised: after a wide step, and after a loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.features import LocalFeatures, occupied_cells
from relocalizer.images import Camera
from relocalizer.interfaces import Encoded, NoEstimate, PairEstimate, PosePredictor, Retriever, View
from slam.config import RelocalizationConfig
from slam.frames import Seen
from slam.front_end import NotLocated
from slam.localization import Localised, NotLocalised, confirms, localise, look_closer, match_keyframes
from slam.mapping import Mapper
from slam.tracks import Tracks

RELATIVES = 3
AROUND = 20  # keyframes that see the same as the one recognised, whose landmarks are looked for
CHANCE = 1 / 3  # of the landmarks found near where a wrong pose puts them agree with it, once it is fitted to them
MIN_POINTS = 12  # of a keyframe, recognised before more is tried
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


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """What a picture shows of the place of keyframe `keyframe_id`, and whether a confident pair estimate agrees."""

    keyframe_id: int
    found: Localised
    confirmed: bool

    def is_enough(self, landmarks: int) -> bool:
        return len(self.found.matches.tracks) >= landmarks

    @property
    def reason(self) -> str:
        return f"{len(self.found.matches.tracks)} landmarks around keyframe {self.keyframe_id} agree"


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
        if len(seen.features) < MIN_POINTS:
            return NotLocated(f"{len(seen.features)} points in the picture, {MIN_POINTS} needed")
        [encoded] = self._predictor.encode([View(seen.frame.image, seen.frame.camera, seen.features)])
        found = self._retriever.query(self._predictor.describe(encoded), self._config.candidates, frozenset([active]))
        reason = "no keyframe to compare with"
        for c in [active, *(candidate.key for candidate in found)]:
            outcome = self._try(seen.features, seen.frame.camera, encoded, c)
            if isinstance(outcome, Place):
                landmarks = outcome.found.matches.tracks
                pose, tracks = outcome.found.fit.world_from_cam, landmarks.joined(outcome.found.unplaced)
                return Recognised(seen, pose, c, landmarks, tracks)
            reason = outcome.reason
        return NotLocated(reason)

    def recognise_elsewhere(self, k: int, *, min_inliers: int) -> Place | NotLocated:
        """Keyframe k, recognised by an older one of another segment, by at least so many landmarks."""
        graph = self._mapper.graph
        keyframe = graph.keyframes[k]
        excluded = frozenset(self._mapper.segment_keyframes(k)) | {i for i in graph.keyframes if i >= k}
        reason = "no keyframe to compare with"
        for candidate in self._retriever.query(keyframe.descriptor, self._config.candidates, excluded):
            outcome = self._try(keyframe.features, keyframe.camera, keyframe.encoded, candidate.key)
            if isinstance(outcome, Place) and outcome.is_enough(min_inliers):
                return outcome
            reason = outcome.reason
        return NotLocated(reason)

    def share_seen(self, found: Recognised) -> float:
        """How much of what the keyframe saw, by which a picture was recognised, the picture sees: 0 to 1."""
        landmarks = self._mapper.landmarks
        ids = landmarks.observed[found.keyframe_id].ids
        ids = ids[landmarks.has_place(ids)]
        return float(np.isin(ids, found.landmarks.ids).sum()) / max(len(ids), 1)

    def _try(self, features: LocalFeatures, camera: Camera, encoded: Encoded, c: int) -> Place | NotLocated:
        refused = too_few_points(features, c, self._mapper, min_inliers=2 * MIN_POINTS)
        if refused is not None:
            return NotLocated(refused.reason)
        [estimate] = self._predictor.relate([(self._mapper.graph.keyframes[c].encoded, encoded)])
        first = recognise_place(
            features,
            camera,
            c,
            estimate,
            self._mapper,
            min_inliers=min(MIN_HYPOTHESIS, self._config.min_confirming),
            relatives=self._config.relatives,
            search_too=True,
        )
        if not isinstance(first, Localised):
            return NotLocated(first.reason)
        found = self._look_closer(features, camera, c, first)
        pose_c = self._mapper.graph.world_from_keyframe[c]
        return self._judge(Place(c, found, confirms(estimate, pose_c, found.fit.world_from_cam)), camera)

    def _look_closer(self, features: LocalFeatures, camera: Camera, c: int, first: Localised) -> Localised:
        graph, landmarks = self._mapper.graph, self._mapper.landmarks
        around = [c, *self._mapper.related(c, AROUND)]
        ids = np.unique(np.concatenate([landmarks.observed[k].ids for k in around]))
        return look_closer(
            first,
            features,
            camera,
            ids[landmarks.has_place(ids)],
            landmarks,
            graph,
            radius_px=self._config.search_radius_px,
            min_similarity=self._config.min_similarity,
        )

    def _judge(self, place: Place, camera: Camera) -> Place | NotLocated:
        """A false pose is worse than none: enough landmarks, most of those recognised, and an estimate where few."""
        config, found = self._config, place.found
        needed = config.min_confirming if place.confirmed else config.min_inliers
        share = needed_share(len(found.fit.inliers), config.min_share)
        if not place.is_enough(needed) or found.share < share:
            count = f"{len(found.matches.tracks)} of {len(found.fit.inliers)} landmarks"
            return NotLocated(f"{count} around keyframe {place.keyframe_id} agree, {needed} and {share:.0%} needed")
        cells = occupied_cells(found.matches.tracks.pixels, camera)
        if cells < config.min_cells and not place.confirmed:
            return NotLocated(
                f"{len(found.matches.tracks)} landmarks around keyframe {place.keyframe_id} agree, but in {cells} "
                f"cells of the picture, {config.min_cells} needed"
            )
        return place


def needed_share(recognised: int, most: float) -> float:
    """Share of the landmarks recognised that must agree: two deviations over chance, and never more than `most`.

    In a map that is still crooked fewer agree at the right place than in a refined one, but those are many.
    """
    deviation = float(np.sqrt(CHANCE * (1 - CHANCE) / max(recognised, 1)))
    return min(most, CHANCE + 2 * deviation)


def too_few_points(features: LocalFeatures, c: int, mapper: Mapper, *, min_inliers: int) -> NotLocalised | None:
    """Why a picture cannot show the place of keyframe c, by c's own points; None when it may.

    Milliseconds, where a network takes long to relate the two: to be asked first, since most candidates are wrong.
    """
    matches = match_keyframes(features, [c], mapper.graph, mapper.landmarks)
    enough = max(MIN_FIRST_MATCHES, min_inliers // 2)
    if len(matches.tracks) < enough:
        recognised = len(matches.tracks)
        return NotLocalised(f"{recognised} points of keyframe {c} recognised, {enough} needed", recognised)
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

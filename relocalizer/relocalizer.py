"""Where was this image taken? Images located in a map: a pose and how sure it is, or why there is none.

retrieve similar keyframes -> relate them to the image in one batch -> average what they say -> refine over the
landmarks they share with it, where the map has landmarks and the image a camera. A wrong pose is worse than none,
so a pose has to pass several tests that fail independently, and every refusal has its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.absolute_pose import PoseFit, optimize_pose, pose_information, search_pose
from relocalizer.averaging import AveragedPose, RelativePoseObservation, average_pose
from relocalizer.camera import Camera
from relocalizer.confidence import AveragedEvidence, LandmarkEvidence
from relocalizer.config import RelocalizerConfig
from relocalizer.features import CELLS, LocalFeatures, detect_features, match_features, occupied_cells
from relocalizer.geometry import FloatArray, rotation_angle, rotation_matrix, translation_of
from relocalizer.guided_matching import expected_in, one_to_one, similar_nearby
from relocalizer.images import to_gray
from relocalizer.interfaces import CalibratedImage, Encoded, NoEstimate, PairEstimate, PosePredictor, Retriever
from relocalizer.maps.map_index import CACHED_KEYFRAMES, MapIndex
from relocalizer.maps.reference_map import Ids, ReferenceMap, check_predictor, features_of, restore_encoding
from relocalizer.retrieval import FaissRetriever

BOUND_M, BOUND_DEPTHS, BOUND_DEG = 0.25, 0.1, 5.0
SEPARATION_RAD = float(np.radians(5.0))

How = Literal["landmarks", "averaged"]


@dataclass(frozen=True, slots=True)
class ErrorBound:
    """What a confidence is about: a pose is right when it is off by less than both of these.

    Attributes:
        distance: in `units`, 'meters' or 'map units', those of the segment that the pose is in.
    """

    distance: float
    angle_rad: float
    units: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Relocalization:
    """An image located in a map.

    Attributes:
        world_from_cam: its pose, in the world and the units of its segment.
        segment: of the map, in whose world the pose is.
        covariance: (6, 6) of a left perturbation (rotation, translation) of cam_from_world.
        confidence: probability that the pose is within `bound`.
        inliers: landmarks that agree with the pose; 0 when it was averaged.
        views: ids of the keyframes that it rests on.
        how: 'landmarks' when refined on them, 'averaged' when the pair estimates are all there is.
        evidence: what the confidence is made of.
    """

    world_from_cam: RigidTransform
    segment: int
    covariance: FloatArray
    confidence: float
    bound: ErrorBound
    inliers: int
    views: tuple[int, ...]
    how: How
    evidence: LandmarkEvidence | AveragedEvidence


@dataclass(frozen=True, slots=True)
class NotFound:
    """The image's place is not known; `reason` is a sentence with the number and the threshold."""

    reason: str


@dataclass(frozen=True, slots=True)
class _TooFew:
    """Landmarks say nothing here, neither for a pose nor against one; `reason` as in `NotFound`."""

    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class _Query:
    """An image being located; without `features` there is no camera to use them with."""

    camera: Camera | None
    features: LocalFeatures | None
    encoded: Encoded
    candidates: list[int]


@dataclass(frozen=True, slots=True, eq=False)
class _Matches:
    """Features of the image and landmarks they may be: `feature` and `landmark` rows, `view` the keyframe's, (N,)."""

    feature: Ids
    landmark: Ids
    view: Ids

    def __len__(self) -> int:
        return len(self.feature)

    def where(self, keep: NDArray[np.bool_]) -> _Matches:
        return _Matches(self.feature[keep], self.landmark[keep], self.view[keep])

    def joined(self, other: _Matches) -> _Matches:
        """Both, each pair of feature and landmark once."""
        feature = np.concatenate([self.feature, other.feature])
        landmark = np.concatenate([self.landmark, other.landmark])
        view = np.concatenate([self.view, other.view])
        _, first = np.unique(np.stack([feature, landmark]), axis=1, return_index=True)
        keep = np.sort(first)
        return _Matches(feature[keep], landmark[keep], view[keep])

    @staticmethod
    def none() -> _Matches:
        return _Matches(*(np.zeros(0, np.int64) for _ in range(3)))


class Relocalizer:
    """Locates images in one map.

    Attributes:
        bounds: by segment of the map, what the confidence of a pose in it is about.
    """

    def __init__(
        self,
        reference_map: ReferenceMap,
        predictor: PosePredictor,
        retriever: Retriever | None = None,
        config: RelocalizerConfig | None = None,
    ) -> None:
        """
        Args:
            predictor: the one that the map was made with.
            retriever: empty; it is given the keyframes. None is an exact FAISS index.

        Raises:
            MapError: the map was made with another predictor, other weights, or settings that cannot be.
        """
        check_predictor(reference_map.provenance, predictor)
        self._map, self._predictor = reference_map, predictor
        self._config = config or RelocalizerConfig()
        self._index = MapIndex(reference_map)
        self._retriever = retriever if retriever is not None else FaissRetriever()
        for row, descriptor in enumerate(reference_map.keyframes.descriptors):
            self._retriever.add(row, descriptor)
        self._features = features_of(reference_map.provenance)
        self._recall = lru_cache(maxsize=CACHED_KEYFRAMES)(lambda row: restore_encoding(predictor, reference_map, row))
        self.bounds = {
            int(segment): self._bound(int(segment)) for segment in np.unique(reference_map.keyframes.segment)
        }

    def _bound(self, segment: int) -> ErrorBound:
        units = self._map.units_of(segment)
        distance = BOUND_M if units == "meters" else BOUND_DEPTHS * self._index.depth_of(segment)
        return ErrorBound(distance, float(np.radians(BOUND_DEG)), units)

    def _bound_of(self, row: int) -> ErrorBound:
        """In the segment of a keyframe."""
        return self.bounds[int(self._map.keyframes.segment[row])]

    def locate(self, view: CalibratedImage) -> Relocalization | NotFound:
        """Where an image was taken.

        Raises:
            CameraError: the predictor needs a camera and the view has none, or one that is not pinhole.
        """
        return self.locate_many([view])[0]

    def locate_many(self, views: Sequence[CalibratedImage]) -> list[Relocalization | NotFound]:
        """Where each image was taken, alone: they tell nothing of one another.

        All images are encoded in one call, and all pairs are related in one.

        Raises:
            CameraError: as `locate`.
        """
        queries = self._queries(views)
        pairs = [(self._recall(row), query.encoded) for query in queries for row in query.candidates]
        estimates = iter(self._predictor.relate(pairs))
        return [self._locate(query, {row: next(estimates) for row in query.candidates}) for query in queries]

    def _queries(self, views: Sequence[CalibratedImage]) -> list[_Query]:
        prepared = [self._with_features(view) for view in views]
        encoded = self._predictor.encode(prepared)
        return [
            _Query(view.camera, view.features, remembered, self._candidates(self._predictor.describe(remembered)))
            for view, remembered in zip(prepared, encoded, strict=True)
        ]

    def _with_features(self, view: CalibratedImage) -> CalibratedImage:
        if view.camera is None or view.camera.model != "pinhole" or view.features is not None:
            return view
        features = detect_features(to_gray(view.image), self._features, view.mask)
        return CalibratedImage(view.image, view.camera, features)

    def _candidates(self, descriptor: NDArray[np.float32]) -> list[int]:
        """Keyframe rows that look alike, most similar first, none almost at the pose of another."""
        chosen: list[int] = []
        for candidate in self._retriever.query(descriptor, self._config.pool, frozenset()):
            if not any(self._same_pose(candidate.key, row) for row in chosen):
                chosen.append(candidate.key)
            if len(chosen) == self._config.candidates:
                break
        return chosen

    def _same_pose(self, a: int, b: int) -> bool:
        table = self._map.keyframes
        if table.segment[a] != table.segment[b]:
            return False
        apart = float(np.linalg.norm(table.translations[a] - table.translations[b]))
        if apart > self._config.min_separation * self._index.depths[b]:
            return False
        return rotation_angle(table.rotations[a].T @ table.rotations[b]) < SEPARATION_RAD

    # --- one image ----------------------------------------------------------------------------------

    def _locate(self, query: _Query, estimates: dict[int, PairEstimate | NoEstimate]) -> Relocalization | NotFound:
        """The pose in the segment that the candidates speak most for; segments share no world."""
        outcomes = [
            self._locate_in(query, {row: estimates[row] for row in rows}) for rows in self._by_segment(estimates)
        ]
        found = [outcome for outcome in outcomes if isinstance(outcome, Relocalization)]
        if found:
            return max(found, key=lambda outcome: (outcome.confidence, outcome.inliers))
        return outcomes[0] if outcomes else NotFound("the map has no keyframes")

    def _by_segment(self, estimates: dict[int, PairEstimate | NoEstimate]) -> list[list[int]]:
        """Candidates by segment, that of the most confident estimates first."""
        groups: dict[int, list[int]] = {}
        for row in estimates:
            groups.setdefault(int(self._map.keyframes.segment[row]), []).append(row)
        support = {
            segment: sum(e.confidence for row in rows if isinstance(e := estimates[row], PairEstimate))
            for segment, rows in groups.items()
        }
        return [groups[segment] for segment in sorted(groups, key=lambda s: (-support[s], s))]

    def _locate_in(self, query: _Query, estimates: dict[int, PairEstimate | NoEstimate]) -> Relocalization | NotFound:
        sightings = {
            row: RelativePoseObservation(self._map.keyframes.world_from_keyframe(row).rigid, estimate)
            for row, estimate in estimates.items()
            if isinstance(estimate, PairEstimate)
        }
        averaged = average_pose(list(sightings.values()), self._config.averaging) if sightings else None
        if query.features is None or query.camera is None or not len(self._map.landmarks):
            if averaged is not None:
                return self._from_average(list(sightings), averaged)
            reasons = [e.reason for e in estimates.values() if isinstance(e, NoEstimate)]
            return NotFound(f"none of {len(estimates)} keyframes could be related to it ({reasons[0]})")
        outcome = self._from_landmarks(query.features, query.camera, list(estimates), averaged)
        if not isinstance(outcome, _TooFew):
            return outcome
        other = None if averaged is None else self._from_average(list(sightings), averaged)
        if isinstance(other, Relocalization):  # landmarks too few to contradict it either
            return other
        return NotFound(outcome.reason if other is None else f"{outcome.reason}; without them, {other.reason}")

    # --- without landmarks ----------------------------------------------------------------------------

    def _from_average(self, rows: list[int], averaged: AveragedPose) -> Relocalization | NotFound:
        pose, covariance = averaged.world_from_cam, averaged.covariance
        if pose is None or covariance is None:
            return NotFound(averaged.position_unknown)
        agree = averaged.position_agrees
        if int(agree.sum()) < self._config.min_views:
            return NotFound(f"{int(agree.sum())} of {len(rows)} keyframes agree, {self._config.min_views} needed")
        evidence = AveragedEvidence(
            views=int(agree.sum()),
            covisible=len(rows),
            position_sigma=_position_sigma(covariance, self._bound_of(rows[0])),
        )
        if evidence.confidence < self._config.min_confidence:
            return NotFound(
                f"right with a probability of {evidence.confidence:.2f} (limit {self._config.min_confidence:g})"
            )
        views = tuple(int(self._map.keyframes.ids[row]) for row, used in zip(rows, agree, strict=True) if used)
        return Relocalization(
            world_from_cam=pose,
            segment=int(self._map.keyframes.segment[rows[0]]),
            covariance=covariance,
            confidence=evidence.confidence,
            bound=self._bound_of(rows[0]),
            inliers=0,
            views=views,
            how="averaged",
            evidence=evidence,
        )

    # --- with landmarks -------------------------------------------------------------------------------

    def _from_landmarks(
        self, features: LocalFeatures, camera: Camera, rows: list[int], averaged: AveragedPose | None
    ) -> Relocalization | NotFound | _TooFew:
        needed = self._config.min_inliers
        matches = self._match(features, rows)
        recognized = len(np.unique(matches.feature))
        if recognized < needed:
            return _TooFew(f"{recognized} landmarks recognized, {needed} needed")
        best = self._fit(matches, features, camera, averaged)
        if best is None:
            return _TooFew(f"no pose agrees with the {recognized} landmarks recognized")
        if _unique(matches, best) < needed:
            return _TooFew(f"{_unique(matches, best)} of {recognized} recognized landmarks agree, {needed} needed")
        agreeing = matches.where(best.inliers)
        evidence = self._evidence(best, agreeing, matches, features, camera, averaged)
        refusal = self._refusal(evidence)
        if refusal:
            return NotFound(refusal)
        fit, used = self._refined(best, agreeing, features, camera, rows)
        return Relocalization(
            world_from_cam=fit.world_from_cam,
            segment=int(self._map.keyframes.segment[rows[0]]),
            covariance=self._covariance(fit, used, camera),
            confidence=evidence.confidence,
            bound=self._bound_of(rows[0]),
            inliers=len(np.unique(used.feature)),
            views=tuple(int(self._map.keyframes.ids[row]) for row in np.unique(agreeing.view)),
            how="landmarks",
            evidence=evidence,
        )

    def _match(self, features: LocalFeatures, rows: Sequence[int]) -> _Matches:
        """Landmarks of several keyframes found among the features; a feature may look like several."""
        matches = _Matches.none()
        for row in rows:
            placed = self._index.placed(row)
            pairs = match_features(placed.descriptors, features.descriptors, ratio=self._config.match_ratio)
            view = np.full(len(pairs), row, np.int64)
            matches = matches.joined(_Matches(pairs[:, 1], placed.landmark[pairs[:, 0]], view))
        return matches

    def _fit(
        self, matches: _Matches, features: LocalFeatures, camera: Camera, averaged: AveragedPose | None
    ) -> PoseFit | None:
        """The pose most matches agree with, from a search over them and from the averaged pose."""
        points, pixels = self._map.points_world[matches.landmark], features.pixels[matches.feature]
        noise = self._config.noise_px
        starts = [search_pose(points, pixels, camera, noise_px=noise)]
        starts.append(averaged.world_from_cam if averaged is not None else None)
        fits = [optimize_pose(points, pixels, camera, start, noise_px=noise) for start in starts if start is not None]
        return max(fits, key=lambda fit: _unique(matches, fit), default=None)

    def _evidence(
        self,
        best: PoseFit,
        agreeing: _Matches,
        matches: _Matches,
        features: LocalFeatures,
        camera: Camera,
        averaged: AveragedPose | None,
    ) -> LandmarkEvidence:
        views = 0 if averaged is None else int(averaged.rotation_agrees.sum())
        turned = np.nan
        if averaged is not None:
            turned = float(np.degrees(rotation_angle(averaged.rotation.T @ rotation_matrix(best.world_from_cam))))
        return LandmarkEvidence(
            inliers=_unique(matches, best),
            matches=len(np.unique(matches.feature)),
            cells=occupied_cells(features.pixels[agreeing.feature], camera),
            rival=self._rival(best, matches, features, camera),
            views=views,
            disagreement_deg=turned,
            position_sigma=_position_sigma(
                self._covariance(best, agreeing, camera), self._bound_of(int(agreeing.view[0]))
            ),
        )

    def _rival(self, best: PoseFit, matches: _Matches, features: LocalFeatures, camera: Camera) -> int:
        """How many features agree with another pose, elsewhere, over the matches that the best one leaves."""
        left = matches.where(~best.inliers)
        if len(left) < self._config.min_inliers // 2:
            return 0
        second = self._fit(left, features, camera, None)
        if second is None:
            return 0
        between, bound = best.world_from_cam.inv() * second.world_from_cam, self._bound_of(int(matches.view[0]))
        near = float(np.linalg.norm(translation_of(between))) < bound.distance
        if near and rotation_angle(rotation_matrix(between)) < bound.angle_rad:
            return 0
        return _unique(left, second)

    def _refusal(self, evidence: LandmarkEvidence) -> str:
        """Why a pose is not given; empty when it is."""
        config = self._config
        if evidence.cells < config.min_cells:
            cells = CELLS[0] * CELLS[1]
            return f"its landmarks lie in {evidence.cells} of {cells} parts of the image, {config.min_cells} needed"
        if evidence.rival > config.max_rival_share * evidence.inliers:
            return (
                f"{evidence.inliers} landmarks agree with one place and {evidence.rival} with another "
                f"(limit {config.max_rival_share:.0%})"
            )
        if evidence.views >= 2 and evidence.disagreement_deg > config.max_disagreement_deg:
            return (
                f"keyframes and landmarks disagree by {evidence.disagreement_deg:.1f} deg "
                f"(limit {config.max_disagreement_deg:g})"
            )
        if evidence.confidence < config.min_confidence:
            return f"right with a probability of {evidence.confidence:.2f} (limit {config.min_confidence:g})"
        return ""

    def _refined(
        self, best: PoseFit, agreeing: _Matches, features: LocalFeatures, camera: Camera, rows: list[int]
    ) -> tuple[PoseFit, _Matches]:
        """The pose over all landmarks that can be found near where it puts them, not those of the candidates alone."""
        covisible_keyframes = self._index.covisible_keyframes(agreeing.landmark, self._config.covisible_keyframes)
        found = self._search_near(best.world_from_cam, features, camera, [*rows, *covisible_keyframes])
        if len(found) < len(agreeing):
            found = agreeing
        fit = optimize_pose(
            self._map.points_world[found.landmark],
            features.pixels[found.feature],
            camera,
            best.world_from_cam,
            noise_px=self._config.noise_px,
        )
        used = found.where(fit.inliers)
        return (fit, used) if len(used) >= self._config.min_inliers else (best, agreeing)

    def _search_near(
        self, pose: RigidTransform, features: LocalFeatures, camera: Camera, rows: Sequence[int]
    ) -> _Matches:
        """Each landmark of the keyframes and the most similar feature near where the pose puts it, one to one."""
        landmarks = self._index.landmarks_of(rows)
        seen, places = expected_in(self._map.points_world[landmarks], pose, camera)
        landmarks = landmarks[seen]
        row, feature = one_to_one(
            *similar_nearby(
                places,
                self._index.descriptors(landmarks),
                features,
                radius_px=self._config.search_radius_px,
                min_similarity=self._config.min_similarity,
            )
        )
        order = np.argsort(row)
        return _Matches(feature[order], landmarks[row[order]], np.full(len(order), -1, np.int64))

    def _covariance(self, fit: PoseFit, used: _Matches, camera: Camera) -> FloatArray:
        """Of the pose, from the pixels and from how well the landmarks themselves are known."""
        information = pose_information(
            self._map.points_world[used.landmark],
            self._index.depth_sigma_world[used.landmark],
            camera,
            fit.world_from_cam,
            self._config.noise_px,
        )
        return np.asarray(np.linalg.inv(information + 1e-12 * np.trace(information) * np.eye(6)))


def _position_sigma(covariance: FloatArray, bound: ErrorBound) -> float:
    """Along the direction in which it is largest, in units of the error bound."""
    return float(np.sqrt(np.linalg.eigvalsh(covariance[3:, 3:])[-1])) / bound.distance


def _unique(matches: _Matches, fit: PoseFit) -> int:
    """Features that agree with a pose, each once."""
    return len(np.unique(matches.feature[fit.inliers]))

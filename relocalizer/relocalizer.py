"""Relocalization of images in a map: a pose and its confidence, or the reason why there is none.

Retrieve similar keyframes -> estimate their relative poses to the image in one batch -> average these -> refine on
the landmarks shared with the image, if the map has landmarks and the image has a camera. A wrong pose is worse than
none, so a pose has to pass several independent tests, and every rejection has a reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.averaging import AveragedPose, RelativePoseObservation, average_pose
from relocalizer.camera import Camera
from relocalizer.confidence import AveragedEvidence, ErrorBound, LandmarkEvidence
from relocalizer.config import RelocalizationConfig
from relocalizer.features import LocalFeatures, detect_features
from relocalizer.geometry import FloatArray, rotation_angle
from relocalizer.images import Image, to_gray
from relocalizer.interfaces import CalibratedImage, Encoded, NoEstimate, PairEstimate, PosePredictor, Retriever
from relocalizer.landmark_localizer import (
    LandmarkLocalizer,
    LandmarkPose,
    PosePrediction,
    RejectedPose,
    TooFewLandmarks,
)
from relocalizer.maps.map_index import CACHED_KEYFRAMES, MapIndex
from relocalizer.maps.map_reader import load_map
from relocalizer.maps.reference_map import ReferenceMap, check_predictor, features_of, restore_encoding
from relocalizer.pose_from_matches import ObservedImage
from relocalizer.predictors.of_map import predictor_of
from relocalizer.retrieval import FaissRetriever

SEPARATION_RAD = float(np.radians(5.0))  # minimum rotation between candidates at the same position, radians

How = Literal["landmarks", "averaged"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Relocalization:
    """An image localized in a map.

    Attributes:
        world_from_cam: its pose, in the world and the units of its segment.
        segment: segment of the map in whose world the pose is.
        covariance: (6, 6) of a left perturbation (rotation, translation) of cam_from_world.
        confidence: probability that the pose is within `bound`.
        inliers: number of inlier landmarks; 0 when the pose is averaged.
        views: ids of the keyframes that support it.
        how: 'landmarks' when refined on landmarks, 'averaged' when it is the average of pair estimates.
        evidence: values from which the confidence is computed.
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
    """The image could not be localized; `reason` is a sentence with the value and the threshold."""

    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class _Query:
    """An image to localize: its `features` (None without a pinhole camera), its encoding and its candidate rows."""

    camera: Camera | None
    features: LocalFeatures | None
    encoded: Encoded
    candidates: list[int]


class Relocalizer:
    """Localizes images in one map.

    Attributes:
        bounds: error bound of the confidence, by segment of the map.
    """

    def __init__(
        self,
        reference_map: ReferenceMap,
        predictor: PosePredictor,
        retriever: Retriever | None = None,
        config: RelocalizationConfig | None = None,
    ) -> None:
        """
        Args:
            predictor: the predictor with which the map was built.
            retriever: an empty retriever, to which the keyframes are added; None is a FAISS index.

        Raises:
            MapError: the map was built with another predictor, other weights, or invalid settings.
        """
        check_predictor(reference_map.provenance, predictor)
        self._map, self._predictor = reference_map, predictor
        self._config = config or RelocalizationConfig()
        self._index = MapIndex(reference_map)
        self._retriever = retriever if retriever is not None else FaissRetriever()
        for row, descriptor in enumerate(reference_map.keyframes.descriptors):
            self._retriever.add(row, descriptor)
        self._features = features_of(reference_map.provenance)
        self._landmark_localizer = LandmarkLocalizer(self._index, self._config)
        self._restore = lru_cache(maxsize=CACHED_KEYFRAMES)(lambda row: restore_encoding(predictor, reference_map, row))
        self.bounds = {
            int(segment): self._bound(int(segment)) for segment in np.unique(reference_map.keyframes.segment)
        }

    @classmethod
    def open(
        cls, folder: str | Path, *, weights: str = "", device: str = "auto", config: RelocalizationConfig | None = None
    ) -> Relocalizer:
        """The relocalizer of a saved map: a map folder or a run folder, with the predictor the map was built with.

        Args:
            weights, device: of a network; by default the released weights, on the best device there is.

        Raises:
            MapError: there is no map, it is damaged, or its predictor is not known here.
            WeightsError: the network's weights are not on this machine.
        """
        reference_map = load_map(Path(folder))
        predictor = predictor_of(reference_map, weights=weights, device=device)
        return cls(reference_map, predictor, config=config)

    def _bound(self, segment: int) -> ErrorBound:
        return ErrorBound.of_segment(self._index.depth_of(segment), self._map.units_of(segment))

    def _bound_of(self, row: int) -> ErrorBound:
        """The error bound in the segment of a keyframe."""
        return self.bounds[int(self._map.keyframes.segment[row])]

    def locate(self, image: CalibratedImage | Image, camera: Camera | None = None) -> Relocalization | NotFound:
        """The pose of an image, or the reason why it has none.

        Args:
            image: RGB (H, W, 3) uint8, undistorted; or the image together with its camera.
            camera: pinhole camera of the image; not with a `CalibratedImage`, which has its own.

        Raises:
            CameraError: the predictor needs a camera, and the view has none or one that is not pinhole.
        """
        view = image if isinstance(image, CalibratedImage) else CalibratedImage(image, camera)
        return self.locate_many([view])[0]

    def locate_many(self, views: Sequence[CalibratedImage]) -> list[Relocalization | NotFound]:
        """The poses of several images, each localized independently.

        All images are encoded in one call, and all pairs are related in one.

        Raises:
            CameraError: as `locate`.
        """
        queries = self._queries(views)
        pairs = [(self._restore(row), query.encoded) for query in queries for row in query.candidates]
        estimates = iter(self._predictor.relate(pairs))
        return [self._locate(query, {row: next(estimates) for row in query.candidates}) for query in queries]

    def _queries(self, views: Sequence[CalibratedImage]) -> list[_Query]:
        prepared = [self._with_features(view) for view in views]
        encoded = self._predictor.encode(prepared)
        return [
            _Query(view.camera, view.features, encoding, self._candidates(self._predictor.describe(encoding)))
            for view, encoding in zip(prepared, encoded, strict=True)
        ]

    def _with_features(self, view: CalibratedImage) -> CalibratedImage:
        if view.camera is None or view.camera.model != "pinhole" or view.features is not None:
            return view
        features = detect_features(to_gray(view.image), self._features, view.mask)
        return CalibratedImage(view.image, view.camera, features)

    def _candidates(self, descriptor: NDArray[np.float32]) -> list[int]:
        """Rows of similar keyframes, most similar first, without near-duplicate poses."""
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
        distance = float(np.linalg.norm(table.translations[a] - table.translations[b]))
        if distance > self._config.min_separation * self._index.depths[b]:
            return False
        return rotation_angle(table.rotations[a].T @ table.rotations[b]) < SEPARATION_RAD

    # --- one image ----------------------------------------------------------------------------------

    def _locate(self, query: _Query, estimates: dict[int, PairEstimate | NoEstimate]) -> Relocalization | NotFound:
        """The most confident pose over the segments of the candidates; segments share no world."""
        outcomes = [
            self._locate_in(query, {row: estimates[row] for row in rows}) for rows in self._by_segment(estimates)
        ]
        found = [outcome for outcome in outcomes if isinstance(outcome, Relocalization)]
        if found:
            return max(found, key=lambda outcome: (outcome.confidence, outcome.inliers))
        return outcomes[0] if outcomes else NotFound("the map has no keyframes")

    def _by_segment(self, estimates: dict[int, PairEstimate | NoEstimate]) -> list[list[int]]:
        """Candidates grouped by segment, the segment with the largest sum of confidences first."""
        groups: dict[int, list[int]] = {}
        for row in estimates:
            groups.setdefault(int(self._map.keyframes.segment[row]), []).append(row)
        support = {
            segment: sum(e.confidence for row in rows if isinstance(e := estimates[row], PairEstimate))
            for segment, rows in groups.items()
        }
        return [groups[segment] for segment in sorted(groups, key=lambda s: (-support[s], s))]

    def _locate_in(self, query: _Query, estimates: dict[int, PairEstimate | NoEstimate]) -> Relocalization | NotFound:
        observations = {
            row: RelativePoseObservation(self._map.keyframes.world_from_keyframe(row).rigid, estimate)
            for row, estimate in estimates.items()
            if isinstance(estimate, PairEstimate)
        }
        averaged = average_pose(list(observations.values()), self._config.averaging) if observations else None
        if query.features is None or query.camera is None or not len(self._map.landmarks):
            if averaged is not None:
                return self._from_average(list(observations), averaged)
            reasons = [e.reason for e in estimates.values() if isinstance(e, NoEstimate)]
            return NotFound(f"none of {len(estimates)} keyframes could be related to it ({reasons[0]})")
        rows, image = list(estimates), ObservedImage(query.features, query.camera)
        pairs = {row: observation.estimate for row, observation in observations.items()}
        outcome = self._landmark_localizer.locate(image, rows, PosePrediction(pairs, averaged), self._bound_of(rows[0]))
        if isinstance(outcome, LandmarkPose):
            return self._from_landmarks(rows[0], outcome)
        if isinstance(outcome, RejectedPose):
            return NotFound(outcome.reason)
        return self._without_landmarks(outcome, list(observations), averaged)

    def _without_landmarks(
        self, failure: TooFewLandmarks, rows: list[int], averaged: AveragedPose | None
    ) -> Relocalization | NotFound:
        """The averaged pose, which too few landmarks cannot contradict either."""
        if averaged is None:
            return NotFound(failure.reason)
        outcome = self._from_average(rows, averaged)
        if isinstance(outcome, Relocalization):
            return outcome
        return NotFound(f"{failure.reason}; without them, {outcome.reason}")

    def _from_landmarks(self, row: int, found: LandmarkPose) -> Relocalization:
        return Relocalization(
            world_from_cam=found.found.fit.world_from_cam,
            segment=int(self._map.keyframes.segment[row]),
            covariance=found.covariance,
            confidence=found.evidence.confidence,
            bound=self._bound_of(row),
            inliers=found.inliers,
            views=tuple(int(self._map.keyframes.ids[k]) for k in found.keyframes),
            how="landmarks",
            evidence=found.evidence,
        )

    def _from_average(self, rows: list[int], averaged: AveragedPose) -> Relocalization | NotFound:
        pose, covariance = averaged.world_from_cam, averaged.covariance
        if pose is None or covariance is None:
            return NotFound(averaged.position_unknown)
        inliers, bound = averaged.position_inliers, self._bound_of(rows[0])
        count = int(inliers.sum())
        if count < self._config.min_views:
            return NotFound(f"{count} of {len(rows)} keyframes agree, {self._config.min_views} needed")
        evidence = AveragedEvidence(
            views=count, covisible=len(rows), position_sigma=bound.relative_position_sigma(covariance)
        )
        if evidence.confidence < (limit := self._config.averaging.min_confidence):
            return NotFound(f"right with a probability of {evidence.confidence:.2f} (limit {limit:g})")
        views = tuple(int(self._map.keyframes.ids[row]) for row, used in zip(rows, inliers, strict=True) if used)
        return Relocalization(
            world_from_cam=pose,
            segment=int(self._map.keyframes.segment[rows[0]]),
            covariance=covariance,
            confidence=evidence.confidence,
            bound=bound,
            inliers=0,
            views=views,
            how="averaged",
            evidence=evidence,
        )

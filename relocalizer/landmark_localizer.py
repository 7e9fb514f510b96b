"""Pose of an image from the landmarks of its candidate keyframes, with the tests that accept or reject it.

The same in a live map, after tracking loss, and in a stored map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.absolute_pose import PoseFit, optimize_pose, pose_information, search_pose
from relocalizer.averaging import AveragedPose
from relocalizer.camera import Camera
from relocalizer.confidence import ErrorBound, LandmarkEvidence
from relocalizer.config import RelocalizationConfig
from relocalizer.features import CELLS, occupied_cells
from relocalizer.geometry import FloatArray, rotation_angle, rotation_matrix, translation_of
from relocalizer.guided_evidence import MIN_HYPOTHESIS, GuidedEvidence
from relocalizer.interfaces import CONFIDENT, PairEstimate
from relocalizer.landmark_source import LandmarkSource
from relocalizer.pose_from_matches import (
    FEATURE_NOISE_PX,
    EstimatedPose,
    FeatureMatches,
    GuidedSearch,
    ObservedImage,
    match_along_lines_of,
    match_keyframes,
    pose_from_estimate,
    refine_with_guided_matching,
)

AGREEMENT_RAD = float(np.radians(3.0))  # maximum angle between an estimated and a refined rotation, radians
# Minimum number of inliers by descriptors where no pair estimate agrees with the pose: a plane, or a part of the image,
# can agree with a pose that is entirely wrong. Fewer are judged after guided matching.
MIN_ALONE = 30
LINE_KEYFRAMES = 2  # maximum number of keyframes matched along epipolar lines, those with the most confident estimates


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LandmarkPose:
    """An accepted pose.

    Attributes:
        found: the pose and its inliers.
        covariance: (6, 6) of a left perturbation of cam_from_world.
        keyframes: the candidates whose landmarks are inliers.
        untriangulated: matched landmarks without a point, as a live map has them.
        evidence: values from which the confidence is computed.
    """

    found: EstimatedPose
    covariance: FloatArray
    keyframes: tuple[int, ...]
    untriangulated: FeatureMatches
    evidence: LandmarkEvidence

    @property
    def inliers(self) -> int:
        """Number of inlier landmarks."""
        return len(self.found.matches)


@dataclass(frozen=True, slots=True)
class RejectedPose:
    """The pose failed a test; `reason` is a sentence with the value and the threshold, `landmarks` support the pose."""

    reason: str
    landmarks: int


@dataclass(frozen=True, slots=True)
class TooFewLandmarks:
    """There are too few landmarks to support or to contradict a pose; attributes as in `RejectedPose`."""

    reason: str
    landmarks: int


@dataclass(frozen=True, slots=True, eq=False)
class PosePrediction:
    """Pair estimates of candidate keyframes and an image, by keyframe, and the pose averaged from them."""

    pairs: Mapping[int, PairEstimate]
    averaged: AveragedPose | None = None

    def confirmation(self, world_from_cam: RigidTransform, source: LandmarkSource) -> float:
        """Confidence of the most confident estimate, if its rotation is that of a pose found from landmarks; else 0."""
        for k, estimate in self.most_confident[:1]:
            rotation = source.pose_of(k).rotation @ estimate.i_from_j_rotation
            if rotation_angle(rotation.T @ rotation_matrix(world_from_cam)) < AGREEMENT_RAD:
                return estimate.confidence
        return 0.0

    @property
    def most_confident(self) -> list[tuple[int, PairEstimate]]:
        """Confident estimates with a direction, in descending order of confidence."""
        confident = [(k, estimate) for k, estimate in self.pairs.items() if estimate.is_confident]
        return sorted(confident, key=lambda item: -item[1].confidence)


class LandmarkLocalizer:
    """Estimates poses from the landmarks of one map."""

    def __init__(self, source: LandmarkSource, config: RelocalizationConfig) -> None:
        self._source, self._config = source, config

    def locate(
        self,
        image: ObservedImage,
        keyframes: Sequence[int],
        prediction: PosePrediction,
        bound: ErrorBound,
        first_matches: FeatureMatches | None = None,
    ) -> LandmarkPose | RejectedPose | TooFewLandmarks:
        """Pose of an image from the landmarks of keyframes of one segment.

        Args:
            prediction: from the pair estimates of these keyframes; an additional start, and a test of the result.
            bound: error bound of the confidence, in that segment.
            first_matches: matches of the first keyframe, if it has been matched already.
        """
        recognized = self._match(image, keyframes, prediction, first_matches)
        is_triangulated = self._source.is_triangulated(recognized.landmark)
        matches = recognized.where(is_triangulated)
        features, needed = _distinct_features(matches), min(MIN_HYPOTHESIS, self._config.min_inliers)
        if features < needed:
            return TooFewLandmarks(f"{features} landmarks matched, {needed} needed", features)
        best = self._fit(matches, image, prediction)
        is_predicted = best is None or _distinct_features(matches.where(best.inliers)) < needed
        if is_predicted:
            best = self._fit_to_prediction(matches, image, prediction) or best
        if best is None:
            return TooFewLandmarks(f"no pose agrees with the {features} landmarks matched", 0)
        inliers = matches.where(best.inliers)
        count = _distinct_features(inliers)
        if count < needed:
            return TooFewLandmarks(f"{count} of {features} matched landmarks agree, {needed} needed", count)
        evidence = self._evidence(best, matches, image, prediction, bound)
        if contradiction := self._contradiction(evidence):
            return RejectedPose(contradiction, count)
        confirmation = prediction.confirmation(best.world_from_cam, self._source)
        insufficiency = self._insufficiency(evidence)
        is_sufficient = not is_predicted and not insufficiency
        found = self._refined(best, inliers, image, keyframes, is_sufficient or confirmation >= CONFIDENT)
        if not is_sufficient:
            guided = self._guided_evidence(found, image, confirmation)
            if rejection := guided.rejection(self._config):
                if evidence.inliers >= self._config.min_inliers:
                    return RejectedPose(insufficiency or rejection, count)
                return TooFewLandmarks(rejection, guided.inliers)
            evidence = replace(evidence, inliers=guided.inliers, matches=guided.matches, cells=guided.cells)
        untriangulated = recognized.where(~is_triangulated).one_to_one()
        return LandmarkPose(
            found=found,
            covariance=self._covariance(found.fit, found.matches, image.camera),
            keyframes=self._supporting(keyframes, inliers),
            untriangulated=untriangulated.where(~np.isin(untriangulated.feature, found.matches.feature)),
            evidence=evidence,
        )

    def _match(
        self,
        image: ObservedImage,
        keyframes: Sequence[int],
        prediction: PosePrediction,
        first_matches: FeatureMatches | None,
    ) -> FeatureMatches:
        """Matches by descriptors, and along the epipolar lines of the most confident pair estimates."""
        left = keyframes if first_matches is None else keyframes[1:]
        ratio = self._config.match_ratio
        matches = match_keyframes(image.features, left, self._source, ratio=ratio, earlier=first_matches)
        for k, estimate in prediction.most_confident[:LINE_KEYFRAMES]:
            assert estimate.i_from_j_direction is not None
            lines = estimate.i_from_j_rotation, estimate.i_from_j_direction
            matches = matches.with_new(match_along_lines_of(image, k, *lines, self._source))
        return matches

    def _fit(self, matches: FeatureMatches, image: ObservedImage, prediction: PosePrediction | None) -> PoseFit | None:
        """The pose with the most inliers, optimized from a RANSAC pose and from the predicted one."""
        points, pixels = self._source.points_world(matches.landmark), image.features.pixels[matches.feature]
        camera = image.camera
        starts = [search_pose(points, pixels, camera, noise_px=FEATURE_NOISE_PX)]
        if prediction is not None:
            if prediction.averaged is not None:
                starts.append(prediction.averaged.world_from_cam)
            for k, estimate in prediction.most_confident[:1]:
                predicted = pose_from_estimate(points, pixels, camera, self._source.pose_of(k), estimate)
                starts.append(predicted[0] if predicted else None)
        fits = [
            optimize_pose(points, pixels, camera, start, noise_px=FEATURE_NOISE_PX)
            for start in starts
            if start is not None
        ]
        return max(fits, key=lambda fit: _distinct_features(matches.where(fit.inliers)), default=None)

    def _fit_to_prediction(
        self, matches: FeatureMatches, image: ObservedImage, prediction: PosePrediction
    ) -> PoseFit | None:
        """A pose held near the most confident pair estimate by a prior; its inliers alone are no evidence."""
        points, pixels = self._source.points_world(matches.landmark), image.features.pixels[matches.feature]
        for k, estimate in prediction.most_confident[:1]:
            predicted = pose_from_estimate(points, pixels, image.camera, self._source.pose_of(k), estimate)
            if predicted:
                return optimize_pose(
                    points,
                    pixels,
                    image.camera,
                    predicted[0],
                    noise_px=FEATURE_NOISE_PX,
                    depth_sigma_world=self._source.depth_sigma_world(matches.landmark),
                    prior=predicted[1],
                )
        return None

    def _supporting(self, keyframes: Sequence[int], inliers: FeatureMatches) -> tuple[int, ...]:
        """The keyframes with inliers among their landmarks."""
        landmarks = self._source.tracked_features
        return tuple(k for k in keyframes if np.isin(landmarks(k).landmark, inliers.landmark).any())

    # --- evidence and acceptance ------------------------------------------------------------------------

    def _evidence(
        self,
        best: PoseFit,
        matches: FeatureMatches,
        image: ObservedImage,
        prediction: PosePrediction,
        bound: ErrorBound,
    ) -> LandmarkEvidence:
        inliers, averaged = matches.where(best.inliers), prediction.averaged
        views = 0 if averaged is None else int(averaged.rotation_inliers.sum())
        disagreement_deg = np.nan
        if averaged is not None:
            angle = rotation_angle(averaged.rotation.T @ rotation_matrix(best.world_from_cam))
            disagreement_deg = float(np.degrees(angle))
        return LandmarkEvidence(
            inliers=_distinct_features(inliers),
            matches=_distinct_features(matches),
            cells=occupied_cells(image.features.pixels[inliers.feature], image.camera),
            rival=self._rival(best, matches, image, bound),
            views=views,
            disagreement_deg=disagreement_deg,
            position_sigma=bound.relative_position_sigma(self._covariance(best, inliers, image.camera)),
        )

    def _rival(self, best: PoseFit, matches: FeatureMatches, image: ObservedImage, bound: ErrorBound) -> int:
        """Number of inliers of another pose, at a different place, among the outliers of the best one."""
        outliers = matches.where(~best.inliers)
        if len(outliers) < self._config.min_inliers // 2:
            return 0
        second = self._fit(outliers, image, None)
        if second is None:
            return 0
        between = best.world_from_cam.inv() * second.world_from_cam
        near = float(np.linalg.norm(translation_of(between))) < bound.distance
        if near and rotation_angle(rotation_matrix(between)) < bound.angle_rad:
            return 0
        return _distinct_features(outliers.where(second.inliers))

    def _contradiction(self, evidence: LandmarkEvidence) -> str:
        """The evidence against a pose, which rejects it; empty when there is none."""
        config = self._config
        if evidence.rival > config.max_rival_share * evidence.inliers:
            return (
                f"{evidence.inliers} landmarks agree with one place and {evidence.rival} with another "
                f"(limit {config.max_rival_share:.0%})"
            )
        if evidence.views >= config.min_views and evidence.disagreement_deg > config.max_disagreement_deg:
            return (
                f"keyframes and landmarks disagree by {evidence.disagreement_deg:.1f} deg "
                f"(limit {config.max_disagreement_deg:g})"
            )
        return ""

    def _insufficiency(self, evidence: LandmarkEvidence) -> str:
        """Why matches by descriptors are not enough evidence for a pose; empty when they are."""
        config = self._config
        if evidence.inliers < config.min_inliers:
            return f"{evidence.inliers} of {evidence.matches} matched landmarks agree, {config.min_inliers} needed"
        is_alone = not evidence.views or evidence.disagreement_deg > config.max_disagreement_deg
        if is_alone and evidence.inliers < MIN_ALONE:
            return (
                f"{evidence.inliers} matched landmarks agree, {MIN_ALONE} needed without a pair estimate of that pose"
            )
        if evidence.cells < config.min_cells:
            cells = CELLS[0] * CELLS[1]
            return f"its landmarks lie in {evidence.cells} of {cells} parts of the image, {config.min_cells} needed"
        if evidence.confidence < config.min_confidence:
            return f"right with a probability of {evidence.confidence:.2f} (limit {config.min_confidence:g})"
        return ""

    # --- refinement -------------------------------------------------------------------------------------

    def _refined(
        self,
        best: PoseFit,
        inliers: FeatureMatches,
        image: ObservedImage,
        keyframes: Sequence[int],
        is_certain: bool,
    ) -> EstimatedPose:
        """The pose optimized on all landmarks of the candidates and of covisible keyframes.

        Args:
            is_certain: the place is known to be right, so that the depth uncertainty of the landmarks may be accounted
                for, and the pose is kept if guided matching finds fewer inliers.
        """
        config, source = self._config, self._source
        around = [*keyframes, *source.observers(inliers.landmark, config.covisible_keyframes)]
        landmarks = source.observed_landmarks(list(dict.fromkeys(around)))
        search = GuidedSearch(config.search_radius_px, config.min_similarity, use_depth_uncertainty=is_certain)
        refined = refine_with_guided_matching(best.world_from_cam, image, landmarks, source, search)
        own = inliers.one_to_one()
        if not is_certain or len(refined.matches) >= len(own):
            return refined
        return EstimatedPose(replace(best, inliers=np.ones(len(own), bool)), own)

    @staticmethod
    def _guided_evidence(found: EstimatedPose, image: ObservedImage, confirmation: float) -> GuidedEvidence:
        return GuidedEvidence(
            inliers=len(found.matches),
            matches=len(found.fit.inliers),
            cells=occupied_cells(image.features.pixels[found.matches.feature], image.camera),
            confirmation=confirmation,
        )

    def _covariance(self, fit: PoseFit, inliers: FeatureMatches, camera: Camera) -> FloatArray:
        """Covariance (6, 6) of the pose from the pixel noise and the depth uncertainty of the landmarks."""
        information = pose_information(
            self._source.points_world(inliers.landmark),
            self._source.depth_sigma_world(inliers.landmark),
            camera,
            fit.world_from_cam,
            FEATURE_NOISE_PX,
        )
        return np.asarray(np.linalg.inv(information + 1e-12 * np.trace(information) * np.eye(6)))


def _distinct_features(matches: FeatureMatches) -> int:
    """Number of features that are matched, each of them to one landmark or to several."""
    return len(np.unique(matches.feature))

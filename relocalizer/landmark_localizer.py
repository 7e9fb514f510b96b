"""Pose of an image from the landmarks of its candidate keyframes, with the tests that accept or reject it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.absolute_pose import PoseFit, optimize_pose, pose_information, search_pose
from relocalizer.averaging import AveragedPose
from relocalizer.camera import Camera
from relocalizer.confidence import ErrorBound, LandmarkEvidence
from relocalizer.config import RelocalizerConfig
from relocalizer.features import CELLS, LocalFeatures, match_features, occupied_cells
from relocalizer.geometry import FloatArray, rotation_angle, rotation_matrix, translation_of
from relocalizer.guided_matching import expected_in, one_to_one, similar_nearby
from relocalizer.maps.map_index import MapIndex
from relocalizer.maps.reference_map import Ids


@dataclass(frozen=True, slots=True, eq=False)
class ObservedImage:
    """The local features of an image and the pinhole camera that took it."""

    features: LocalFeatures
    camera: Camera


@dataclass(frozen=True, slots=True, eq=False)
class LandmarkPose:
    """An accepted pose.

    Attributes:
        world_from_cam: the pose. covariance: (6, 6) of a left perturbation of cam_from_world.
        inliers: number of inlier landmarks.
        rows: (K,) rows of the keyframes whose landmarks are inliers, ascending.
        evidence: values from which the confidence is computed.
    """

    world_from_cam: RigidTransform
    covariance: FloatArray
    inliers: int
    rows: Ids
    evidence: LandmarkEvidence


@dataclass(frozen=True, slots=True)
class RejectedPose:
    """The pose failed a test; `reason` is a sentence with the value and the threshold."""

    reason: str


@dataclass(frozen=True, slots=True)
class TooFewLandmarks:
    """There are too few landmarks to support or to contradict a pose; `reason` as in `RejectedPose`."""

    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class _Matches:
    """Matches (N,) between features of the image and landmarks: `feature` and `landmark` rows, `view` keyframe rows."""

    feature: Ids
    landmark: Ids
    view: Ids

    def __len__(self) -> int:
        return len(self.feature)

    def where(self, keep: NDArray[np.bool_]) -> _Matches:
        return _Matches(self.feature[keep], self.landmark[keep], self.view[keep])

    def joined(self, other: _Matches) -> _Matches:
        """The union of both, without duplicate pairs of feature and landmark."""
        feature = np.concatenate([self.feature, other.feature])
        landmark = np.concatenate([self.landmark, other.landmark])
        view = np.concatenate([self.view, other.view])
        _, first = np.unique(np.stack([feature, landmark]), axis=1, return_index=True)
        keep = np.sort(first)
        return _Matches(feature[keep], landmark[keep], view[keep])

    @staticmethod
    def none() -> _Matches:
        return _Matches(*(np.zeros(0, np.int64) for _ in range(3)))


class LandmarkLocalizer:
    """Estimates poses from the landmarks of one map."""

    def __init__(self, index: MapIndex, config: RelocalizerConfig) -> None:
        self._map, self._index, self._config = index.map, index, config

    def locate(
        self, image: ObservedImage, rows: Sequence[int], averaged: AveragedPose | None, bound: ErrorBound
    ) -> LandmarkPose | RejectedPose | TooFewLandmarks:
        """Pose of an image from the landmarks of keyframe rows of one segment.

        Args:
            averaged: pose from the pair estimates of these keyframes; an additional start, and a test of the result.
            bound: error bound of the confidence, in that segment.
        """
        needed = self._config.min_inliers
        matches = self._match(image.features, rows)
        recognized = len(np.unique(matches.feature))
        if recognized < needed:
            return TooFewLandmarks(f"{recognized} landmarks recognized, {needed} needed")
        best = self._fit(matches, image, averaged)
        if best is None:
            return TooFewLandmarks(f"no pose agrees with the {recognized} landmarks recognized")
        count = _inlier_features(matches, best)
        if count < needed:
            return TooFewLandmarks(f"{count} of {recognized} recognized landmarks agree, {needed} needed")
        inliers = matches.where(best.inliers)
        evidence = self._evidence(best, matches, image, averaged, bound)
        rejection = self._rejection(evidence)
        if rejection:
            return RejectedPose(rejection)
        fit, used = self._refined(best, inliers, image, rows)
        return LandmarkPose(
            world_from_cam=fit.world_from_cam,
            covariance=self._covariance(fit, used, image.camera),
            inliers=len(np.unique(used.feature)),
            rows=np.unique(inliers.view),
            evidence=evidence,
        )

    def _match(self, features: LocalFeatures, rows: Sequence[int]) -> _Matches:
        """Matches between the features and landmarks of several keyframes; a feature may match several landmarks."""
        matches = _Matches.none()
        for row in rows:
            known = self._index.landmark_features(row)
            pairs = match_features(known.descriptors, features.descriptors, ratio=self._config.match_ratio)
            view = np.full(len(pairs), row, np.int64)
            matches = matches.joined(_Matches(pairs[:, 1], known.landmark[pairs[:, 0]], view))
        return matches

    def _fit(self, matches: _Matches, image: ObservedImage, averaged: AveragedPose | None) -> PoseFit | None:
        """The pose with the most inliers, optimized from a RANSAC pose and from the averaged pose."""
        points, pixels = self._map.points_world[matches.landmark], image.features.pixels[matches.feature]
        noise, camera = self._config.noise_px, image.camera
        starts = [search_pose(points, pixels, camera, noise_px=noise)]
        starts.append(averaged.world_from_cam if averaged is not None else None)
        fits = [optimize_pose(points, pixels, camera, start, noise_px=noise) for start in starts if start is not None]
        return max(fits, key=lambda fit: _inlier_features(matches, fit), default=None)

    # --- evidence and acceptance ------------------------------------------------------------------------

    def _evidence(
        self, best: PoseFit, matches: _Matches, image: ObservedImage, averaged: AveragedPose | None, bound: ErrorBound
    ) -> LandmarkEvidence:
        inliers = matches.where(best.inliers)
        views = 0 if averaged is None else int(averaged.rotation_inliers.sum())
        disagreement_deg = np.nan
        if averaged is not None:
            angle = rotation_angle(averaged.rotation.T @ rotation_matrix(best.world_from_cam))
            disagreement_deg = float(np.degrees(angle))
        return LandmarkEvidence(
            inliers=_inlier_features(matches, best),
            matches=len(np.unique(matches.feature)),
            cells=occupied_cells(image.features.pixels[inliers.feature], image.camera),
            rival=self._rival(best, matches, image, bound),
            views=views,
            disagreement_deg=disagreement_deg,
            position_sigma=bound.relative_position_sigma(self._covariance(best, inliers, image.camera)),
        )

    def _rival(self, best: PoseFit, matches: _Matches, image: ObservedImage, bound: ErrorBound) -> int:
        """Number of inlier features of another pose, at a different place, among the outliers of the best one."""
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
        return _inlier_features(outliers, second)

    def _rejection(self, evidence: LandmarkEvidence) -> str:
        """The reason to reject a pose; empty when it is accepted."""
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

    # --- refinement -------------------------------------------------------------------------------------

    def _refined(
        self, best: PoseFit, inliers: _Matches, image: ObservedImage, rows: Sequence[int]
    ) -> tuple[PoseFit, _Matches]:
        """The pose optimized on all landmarks of the candidates and of covisible keyframes, and its inliers."""
        covisible_keyframes = self._index.covisible_keyframes(inliers.landmark, self._config.covisible_keyframes)
        found = self._match_by_projection(best.world_from_cam, image, [*rows, *covisible_keyframes])
        if len(found) < len(inliers):
            found = inliers
        fit = optimize_pose(
            self._map.points_world[found.landmark],
            image.features.pixels[found.feature],
            image.camera,
            best.world_from_cam,
            noise_px=self._config.noise_px,
        )
        used = found.where(fit.inliers)
        return (fit, used) if len(used) >= self._config.min_inliers else (best, inliers)

    def _match_by_projection(self, pose: RigidTransform, image: ObservedImage, rows: Sequence[int]) -> _Matches:
        """One-to-one matches of the keyframes' landmarks with the most similar feature near their projection."""
        landmarks = self._index.landmarks_of(rows)
        visible, pixels = expected_in(self._map.points_world[landmarks], pose, image.camera)
        landmarks = landmarks[visible]
        row, feature = one_to_one(
            *similar_nearby(
                pixels,
                self._index.descriptors(landmarks),
                image.features,
                radius_px=self._config.search_radius_px,
                min_similarity=self._config.min_similarity,
            )
        )
        order = np.argsort(row)
        return _Matches(feature[order], landmarks[row[order]], np.full(len(order), -1, np.int64))

    def _covariance(self, fit: PoseFit, used: _Matches, camera: Camera) -> FloatArray:
        """Covariance (6, 6) of the pose from the pixel noise and the depth uncertainty of the landmarks."""
        information = pose_information(
            self._map.points_world[used.landmark],
            self._index.depth_sigma_world[used.landmark],
            camera,
            fit.world_from_cam,
            self._config.noise_px,
        )
        return np.asarray(np.linalg.inv(information + 1e-12 * np.trace(information) * np.eye(6)))


def _inlier_features(matches: _Matches, fit: PoseFit) -> int:
    """Number of distinct inlier features of a pose."""
    return len(np.unique(matches.feature[fit.inliers]))

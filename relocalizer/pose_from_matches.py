"""Pose of an image from local features matched to the landmarks of keyframes.

Relocalization and loop verification use the same steps: match features, take rotation and direction from the predictor
and the length from the landmarks, minimize the reprojection error, then match more landmarks near their projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.absolute_pose import PoseFit, PosePrior, optimize_pose, pair_prior, search_pose
from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures, match_features
from relocalizer.geometry import FloatArray, Similarity, rigid
from relocalizer.guided_matching import expected_in, first_of_each, match_along_lines, one_to_one, similar_nearby
from relocalizer.interfaces import NoEstimate, PairEstimate
from relocalizer.landmark_source import Ids, LandmarkSource
from relocalizer.scale import LengthFit, fit_length

FEATURE_NOISE_PX = 1.2  # standard deviation of a detected feature, larger than that of a KLT track, pixels
LINE_RATIO, LINE_SIMILARITY = 0.8, 0.8  # ratio test and minimum similarity of matching along epipolar lines


@dataclass(frozen=True, slots=True, eq=False)
class ObservedImage:
    """The local features of an image and the pinhole camera that took it."""

    features: LocalFeatures
    camera: Camera


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMatches:
    """Matches (N,) of landmarks with the features of an image: `landmark` ids and `feature` indices, no pair twice."""

    landmark: Ids
    feature: Ids

    def __len__(self) -> int:
        return len(self.landmark)

    @staticmethod
    def none() -> FeatureMatches:
        return FeatureMatches(np.zeros(0, np.int64), np.zeros(0, np.int64))

    def where(self, keep: NDArray[np.bool_]) -> FeatureMatches:
        return FeatureMatches(self.landmark[keep], self.feature[keep])

    def one_to_one(self) -> FeatureMatches:
        """The matches without conflicts: the first of each landmark, then of these the first of each feature."""
        kept = first_of_each(self.landmark)
        kept = kept[first_of_each(self.feature[kept])]
        return FeatureMatches(self.landmark[kept], self.feature[kept])

    def with_new(self, other: FeatureMatches) -> FeatureMatches:
        """These matches, and the matches of `other` whose landmark and feature are not among these."""
        new = other.where(~np.isin(other.landmark, self.landmark) & ~np.isin(other.feature, self.feature))
        return FeatureMatches(
            np.concatenate([self.landmark, new.landmark]), np.concatenate([self.feature, new.feature])
        )


@dataclass(frozen=True, slots=True, eq=False)
class EstimatedPose:
    """A pose found from matches.

    Attributes:
        fit: the pose; its inlier mask covers all matched landmarks that are triangulated.
        matches: inliers of the pose.
    """

    fit: PoseFit
    matches: FeatureMatches


@dataclass(frozen=True, slots=True)
class GuidedSearch:
    """How landmarks are matched near their projections.

    Attributes:
        radius_px: search radius around a projection.
        min_similarity: minimum inner product of the two descriptors.
        use_depth_uncertainty: account for the depth uncertainty of the landmarks along their rays. This increases the
            inliers of right and wrong poses, so they are no evidence for the pose then.
    """

    radius_px: float
    min_similarity: float
    use_depth_uncertainty: bool = False


@dataclass(frozen=True, slots=True)
class PoseRejected:
    """No pose; `reason` is a sentence with the number and the threshold, `landmarks` the number that supports one."""

    reason: str
    landmarks: int = 0


def match_keyframes(
    features: LocalFeatures,
    keyframes: Sequence[int],
    source: LandmarkSource,
    *,
    ratio: float,
    earlier: FeatureMatches | None = None,
) -> FeatureMatches:
    """Landmarks of several keyframes matched to `features`, in the order of the keyframes.

    Matches of different keyframes may conflict: two places that look the same give a feature a landmark in each.

    Args:
        ratio: maximum ratio of descriptor distances, best to second best (Lowe's ratio test).
        earlier: matches of keyframes matched before, which precede these.
    """
    parts = [FeatureMatches.none() if earlier is None else earlier]
    for k in keyframes:
        tracked = source.tracked_features(k)
        pairs = match_features(tracked.features, features, ratio=ratio)
        landmark = tracked.landmark[pairs[:, 0]]
        parts.append(FeatureMatches(landmark, pairs[:, 1]).where(landmark >= 0))
    pairs = np.array([np.concatenate([p.landmark for p in parts]), np.concatenate([p.feature for p in parts])])
    _, first = np.unique(pairs, axis=1, return_index=True)
    landmark, feature = pairs[:, np.sort(first)]
    return FeatureMatches(landmark, feature)


def match_along_lines_of(
    image: ObservedImage,
    k: int,
    k_from_cam_rotation: FloatArray,
    k_from_cam_direction: FloatArray,
    source: LandmarkSource,
) -> FeatureMatches:
    """Landmarks of keyframe k matched to the features of an image along epipolar lines."""
    tracked = source.tracked_features(k)
    pairs = match_along_lines(
        tracked.features,
        image.features,
        source.camera_of(k),
        image.camera,
        k_from_cam_rotation,
        k_from_cam_direction,
        ratio=LINE_RATIO,
        min_similarity=LINE_SIMILARITY,
    )
    landmark = tracked.landmark[pairs[:, 0]]
    kept = np.flatnonzero(landmark >= 0)
    kept = kept[first_of_each(landmark[kept])]
    return FeatureMatches(landmark[kept], pairs[kept, 1])


def match_by_projection(
    world_from_cam: RigidTransform,
    image: ObservedImage,
    landmarks: Ids,
    source: LandmarkSource,
    *,
    radius_px: float,
    min_similarity: float,
) -> FeatureMatches:
    """One-to-one matches of landmarks with the most similar feature within a radius of their predicted pixels."""
    rows, pixels = expected_in(source.points_world(landmarks), world_from_cam, image.camera)
    landmarks = landmarks[rows]
    descriptors = source.descriptors(landmarks)
    rows, columns = one_to_one(
        *similar_nearby(pixels, descriptors, image.features, radius_px=radius_px, min_similarity=min_similarity)
    )
    return FeatureMatches(landmarks[rows], columns)


def pose_from_estimate(
    points_world: FloatArray,
    pixels: NDArray[np.float32],
    camera: Camera,
    world_from_i: Similarity,
    estimate: PairEstimate | NoEstimate,
) -> tuple[RigidTransform, PosePrior] | None:
    """Initial pose and prior from a pair estimate, with its length fitted to the landmarks; None on failure."""
    if isinstance(estimate, NoEstimate) or estimate.i_from_j_direction is None:
        return None
    i_from_world = world_from_i.rigid.inv()
    fit = fit_length(
        np.asarray(i_from_world.apply(points_world)),
        camera.normalized(pixels),
        estimate.i_from_j_rotation,
        estimate.i_from_j_direction,
        noise=FEATURE_NOISE_PX / camera.mean_focal,
    )
    if not isinstance(fit, LengthFit):
        return None
    step = rigid(estimate.i_from_j_rotation, fit.length * estimate.i_from_j_direction)
    return world_from_i.rigid * step, pair_prior(world_from_i.rigid, estimate, fit.length)


def estimate_pose(
    matches: FeatureMatches,
    image: ObservedImage,
    source: LandmarkSource,
    *,
    reference: int,
    estimate: PairEstimate | NoEstimate,
    min_inliers: int,
) -> EstimatedPose | PoseRejected:
    """The pose of an image whose features match landmarks, started from a pair estimate, or without one from RANSAC.

    Args:
        reference: keyframe of `estimate`, which is reference_from_image.
        min_inliers: minimum number of inlier landmarks.
    """
    matches = matches.where(source.is_triangulated(matches.landmark))
    count = len(matches)
    if count < min_inliers:
        return PoseRejected(f"{count} landmarks matched, {min_inliers} needed", count)
    points, pixels = source.points_world(matches.landmark), image.features.pixels[matches.feature]
    predicted = pose_from_estimate(points, pixels, image.camera, source.pose_of(reference), estimate)
    start, prior = predicted or (search_pose(points, pixels, image.camera, noise_px=FEATURE_NOISE_PX), None)
    if start is None:
        return PoseRejected(f"no pose agrees with the {count} landmarks matched")
    fit = optimize_pose(points, pixels, image.camera, start, noise_px=FEATURE_NOISE_PX, prior=prior)
    if fit.inlier_count < min_inliers:
        agree = f"{fit.inlier_count} of {count} matched landmarks agree"
        return PoseRejected(f"{agree}, {min_inliers} needed", fit.inlier_count)
    return EstimatedPose(fit, matches.where(fit.inliers))


def refine_with_guided_matching(
    world_from_cam: RigidTransform,
    image: ObservedImage,
    landmarks: Ids,
    source: LandmarkSource,
    search: GuidedSearch,
) -> EstimatedPose:
    """Refine a pose with landmarks matched by projection, first within twice the radius, then within the radius."""
    for radius_px in (2 * search.radius_px, search.radius_px):
        found = match_by_projection(
            world_from_cam, image, landmarks, source, radius_px=radius_px, min_similarity=search.min_similarity
        )
        points, pixels = source.points_world(found.landmark), image.features.pixels[found.feature]
        fit = optimize_pose(
            points,
            pixels,
            image.camera,
            world_from_cam,
            noise_px=FEATURE_NOISE_PX,
            depth_sigma_world=source.depth_sigma_world(found.landmark) if search.use_depth_uncertainty else None,
        )
        world_from_cam = fit.world_from_cam
    return EstimatedPose(fit, found.where(fit.inliers))

"""Pose of an image from local features matched to keyframes: after a wide step, at a loop, and after a loss.

All three use the same steps: match features, take rotation and direction from the predictor and the length from the
landmarks, then minimize the reprojection error; without a pair estimate, start from RANSAC.
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
from relocalizer.geometry import Similarity, rigid, rotation_angle, rotation_matrix
from relocalizer.guided_matching import expected_in, first_of_each, one_to_one, similar_nearby
from relocalizer.interfaces import NoEstimate, PairEstimate, is_confident
from relocalizer.scale import LengthFit, fit_length
from slam.map.keyframe_graph import KeyframeGraph
from slam.map.landmarks import LandmarkMap
from slam.map.tracks import Tracks

MATCH_RATIO = 0.85  # maximum ratio of descriptor distances, best to second best (Lowe's ratio test)
AGREEMENT_RAD = float(np.radians(3.0))  # maximum angle between an estimated and a refined rotation, radians
MIN_INLIER_RATIO = 0.5  # inlier ratio below which RANSAC is tried besides the pair estimate
FEATURE_NOISE_PX = 1.2  # standard deviation of a detected feature, larger than that of a KLT track, pixels


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMatches:
    """Tracks of keyframes matched to an image's features: `tracks` and the index (N,) of the `feature` of each."""

    tracks: Tracks
    feature: NDArray[np.int64]

    def where(self, keep: NDArray[np.bool_]) -> FeatureMatches:
        return FeatureMatches(self.tracks.where(keep), self.feature[keep])

    def with_new(self, other: FeatureMatches) -> FeatureMatches:
        """These matches, and the matches of `other` whose track and feature are not among these."""
        new = other.where(~np.isin(other.tracks.ids, self.tracks.ids) & ~np.isin(other.feature, self.feature))
        return FeatureMatches(self.tracks.joined(new.tracks), np.concatenate([self.feature, new.feature]))


@dataclass(frozen=True, slots=True, eq=False)
class EstimatedPose:
    """A pose found from matches.

    Attributes:
        fit: the pose; its inlier mask covers all matched landmarks.
        matches: inlier landmarks of the pose.
        untriangulated: matched points that are not triangulated.
    """

    fit: PoseFit
    matches: FeatureMatches
    untriangulated: Tracks

    @property
    def share(self) -> float:
        """Inlier ratio of the matched landmarks, 0 to 1: near 1 at the right place, at chance level elsewhere."""
        return self.fit.inlier_count / max(len(self.fit.inliers), 1)


@dataclass(frozen=True, slots=True)
class PlaceNotMatched:
    """No pose; `reason` is a sentence with the number and the threshold, `landmarks` the number that supports one."""

    reason: str
    landmarks: int = 0


def match_keyframes(
    features: LocalFeatures,
    keyframe_ids: Sequence[int],
    graph: KeyframeGraph,
    landmarks: LandmarkMap,
    *,
    earlier: FeatureMatches | None = None,
) -> FeatureMatches:
    """Tracks of several keyframes matched to `features`; where matches conflict, the keyframe listed first wins.

    Args:
        earlier: matches of keyframes matched before, which precede these.
    """
    ids: list[NDArray[np.int64]] = [] if earlier is None else [earlier.tracks.ids]
    index: list[NDArray[np.int64]] = [] if earlier is None else [earlier.feature]
    for k in keyframe_ids:
        keyframe = graph.keyframes[k]
        pairs = match_features(keyframe.features, features, ratio=MATCH_RATIO)
        track_ids = landmarks.feature_tracks[k][pairs[:, 0]]
        has_track = track_ids >= 0
        ids.append(track_ids[has_track])
        index.append(pairs[has_track, 1])
    all_ids, all_index = np.concatenate([*ids, np.zeros(0, np.int64)]), np.concatenate([*index, np.zeros(0, np.int64)])
    kept = first_of_each(all_ids)
    all_ids, all_index = all_ids[kept], all_index[kept]
    keep = first_of_each(all_index)
    return FeatureMatches(Tracks(all_ids[keep], features.pixels[all_index[keep]]), all_index[keep])


def estimate_pose(
    matches: FeatureMatches,
    camera: Camera,
    landmarks: LandmarkMap,
    graph: KeyframeGraph,
    *,
    reference: int,
    estimate: PairEstimate | NoEstimate,
    min_inliers: int,
    min_confirming: int | None = None,
    search_too: bool = False,
    use_depth_uncertainty: bool = False,
) -> EstimatedPose | PlaceNotMatched:
    """The pose of an image whose features match landmarks.

    Args:
        reference: keyframe of `estimate`, which is reference_from_image.
        min_inliers: minimum number of inlier landmarks of a pose from landmarks alone.
        min_confirming: minimum number of inlier landmarks of a pose consistent with a confident estimate; they only
            determine the length then.
        search_too: try RANSAC as well when most landmarks are outliers of the estimate; the pose with more inliers is
            returned.
        use_depth_uncertainty: account for the depth uncertainty of the landmarks along their rays. This increases the
            inliers of right and wrong poses, so it is evidence only with a confident, consistent estimate.
    """
    confirming = min_inliers if min_confirming is None or not is_confident(estimate) else min_confirming
    triangulated = matches.where(landmarks.is_triangulated(matches.tracks.ids))
    if len(triangulated.tracks) < confirming:
        return PlaceNotMatched(
            f"{len(triangulated.tracks)} landmarks recognized, {confirming} needed", len(triangulated.tracks)
        )
    points = landmarks.points_world(triangulated.tracks.ids, graph)
    start, prior = _pose_from_estimate(
        points, triangulated.tracks.pixels, camera, graph.world_from_keyframe[reference], estimate
    )
    if start is None:
        start = search_pose(points, triangulated.tracks.pixels, camera, noise_px=FEATURE_NOISE_PX)
        prior = None
    if start is None:
        return PlaceNotMatched(f"no pose agrees with the {len(triangulated.tracks)} landmarks recognized")
    depth_sigma = landmarks.depth_sigma_world(triangulated.tracks.ids, graph) if use_depth_uncertainty else None
    fit = optimize_pose(
        points,
        triangulated.tracks.pixels,
        camera,
        start,
        noise_px=FEATURE_NOISE_PX,
        depth_sigma_world=depth_sigma,
        prior=prior,
    )
    if search_too and prior is not None and fit.inlier_count < MIN_INLIER_RATIO * len(points):
        fit, prior = _fit_with_more_inliers(fit, points, depth_sigma, triangulated.tracks.pixels, camera, prior)
    confirmed = prior is not None and _has_same_rotation(fit.world_from_cam, prior.world_from_cam)
    needed = confirming if confirmed else min_inliers
    if fit.inlier_count < needed:
        agree = f"{fit.inlier_count} of {len(triangulated.tracks)} recognized landmarks agree"
        return PlaceNotMatched(f"{agree}, {needed} needed", fit.inlier_count)
    untriangulated = matches.tracks.where(~landmarks.is_triangulated(matches.tracks.ids))
    return EstimatedPose(fit, triangulated.where(fit.inliers), untriangulated)


def _fit_with_more_inliers(
    fit: PoseFit,
    points: NDArray[np.float64],
    depth_sigma: NDArray[np.float64] | None,
    pixels: NDArray[np.float32],
    camera: Camera,
    prior: PosePrior,
) -> tuple[PoseFit, PosePrior | None]:
    """The fit started from the prior, or one started from RANSAC, whichever has more inliers."""
    start = search_pose(points, pixels, camera, noise_px=FEATURE_NOISE_PX)
    if start is None:
        return fit, prior
    other = optimize_pose(points, pixels, camera, start, noise_px=FEATURE_NOISE_PX, depth_sigma_world=depth_sigma)
    return (other, None) if other.inlier_count > fit.inlier_count else (fit, prior)


def refine_with_guided_matching(
    first: EstimatedPose,
    features: LocalFeatures,
    camera: Camera,
    ids: NDArray[np.int64],
    landmarks: LandmarkMap,
    graph: KeyframeGraph,
    *,
    radius_px: float,
    min_similarity: float,
    use_depth_uncertainty: bool = False,
) -> EstimatedPose:
    """Refine a pose with landmarks `ids` matched by projection near their predicted pixels.

    At a wrong pose the inlier ratio `share` stays at chance level. `use_depth_uncertainty` as in `estimate_pose`.
    """
    fit, untriangulated = first.fit, first.untriangulated
    found = first.matches
    for radius in (2 * radius_px, radius_px):
        found = match_by_projection(fit.world_from_cam, features, camera, ids, landmarks, graph, radius, min_similarity)
        points = landmarks.points_world(found.tracks.ids, graph)
        depth_sigma = landmarks.depth_sigma_world(found.tracks.ids, graph) if use_depth_uncertainty else None
        fit = optimize_pose(
            points,
            found.tracks.pixels,
            camera,
            fit.world_from_cam,
            noise_px=FEATURE_NOISE_PX,
            depth_sigma_world=depth_sigma,
        )
    inliers = found.where(fit.inliers)
    taken = inliers.tracks.pixels @ (1, 1j)  # pixels as complex numbers, which np.isin can compare
    return EstimatedPose(fit, inliers, untriangulated.where(~np.isin(untriangulated.pixels @ (1, 1j), taken)))


def match_by_projection(
    world_from_cam: RigidTransform,
    features: LocalFeatures,
    camera: Camera,
    ids: NDArray[np.int64],
    landmarks: LandmarkMap,
    graph: KeyframeGraph,
    radius_px: float,
    min_similarity: float,
) -> FeatureMatches:
    """One-to-one matches of landmarks with the most similar feature within a radius of their predicted pixels."""
    rows, pixels = expected_in(landmarks.points_world(ids, graph), world_from_cam, camera)
    ids = ids[rows]
    rows, columns = one_to_one(
        *similar_nearby(pixels, landmarks.descriptor[ids], features, radius_px=radius_px, min_similarity=min_similarity)
    )
    return FeatureMatches(Tracks(ids[rows], features.pixels[columns]), columns)


def prior_confidence(
    world_from_cam: RigidTransform, estimate: PairEstimate | NoEstimate, world_from_i: Similarity
) -> float:
    """Confidence of an estimate if its rotation is consistent with a pose found from landmarks.

    0 if it is not, or when the estimate has no direction.
    """
    if not isinstance(estimate, PairEstimate) or estimate.i_from_j_direction is None:
        return 0.0
    predicted = world_from_i.rigid * rigid(estimate.i_from_j_rotation, np.zeros(3))
    return estimate.confidence if _has_same_rotation(world_from_cam, predicted) else 0.0


def _has_same_rotation(world_from_cam: RigidTransform, predicted: RigidTransform) -> bool:
    """Whether the rotation of a refined pose is consistent with the predicted one."""
    predicted_from_cam_rotation = rotation_matrix(predicted).T @ rotation_matrix(world_from_cam)
    return rotation_angle(predicted_from_cam_rotation) < AGREEMENT_RAD


def _pose_from_estimate(
    points_world: NDArray[np.float64],
    pixels: NDArray[np.float32],
    camera: Camera,
    world_from_i: Similarity,
    estimate: PairEstimate | NoEstimate,
) -> tuple[RigidTransform | None, PosePrior | None]:
    """Initial pose and prior from the estimate, with its length fitted to the landmarks; (None, None) on failure."""
    if isinstance(estimate, NoEstimate) or estimate.i_from_j_direction is None:
        return None, None
    i_from_world = world_from_i.rigid.inv()
    fit = fit_length(
        np.asarray(i_from_world.apply(points_world)),
        camera.normalized(pixels),
        estimate.i_from_j_rotation,
        estimate.i_from_j_direction,
        noise=FEATURE_NOISE_PX / camera.mean_focal,
    )
    if not isinstance(fit, LengthFit):
        return None, None
    step = rigid(estimate.i_from_j_rotation, fit.length * estimate.i_from_j_direction)
    return world_from_i.rigid * step, pair_prior(world_from_i.rigid, estimate, fit.length)

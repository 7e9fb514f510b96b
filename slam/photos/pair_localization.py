"""The pose of a photo from its pair estimate with a mapped one: only the length of the baseline is left to find.

Where steps are wide, a photo shares many matches with the one before it, and few of them are landmarks yet, because
only two photos show most points: too few for an absolute pose, but enough for one length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relocalizer.absolute_pose import optimize_pose, pair_prior
from relocalizer.geometry import rigid
from relocalizer.interfaces import PairEstimate
from relocalizer.pose_from_matches import (
    FEATURE_NOISE_PX,
    FeatureMatches,
    ObservedImage,
    match_along_lines_of,
)
from relocalizer.scale import LengthFit, fit_length
from slam.map.frames import FrameObservation
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks
from slam.relocalization.frame_relocalizer import RelocalizedFrame

MIN_CONFIDENCE = 0.5  # minimum confidence of the pair estimate; that the landmarks agree on one length confirms it
MIN_LANDMARKS = 6  # minimum number of landmarks that agree on the length of the baseline, and with the pose
MIN_RATIO = 0.5  # minimum fraction of the matched landmarks that agree with the pose
MAX_LENGTH_SIGMA = 0.2  # maximum standard deviation of the length, as a fraction of it


@dataclass(frozen=True, slots=True, eq=False)
class MappedPartner:
    """A keyframe that overlaps with a photo, and their pair estimate keyframe_from_photo."""

    keyframe_id: int
    estimate: PairEstimate


def localize_from_pair(
    slam_map: SlamMap, observation: FrameObservation, partner: MappedPartner
) -> RelocalizedFrame | None:
    """The pose of a photo from a pair estimate and a few landmarks; None if they do not determine it."""
    estimate, k = partner.estimate, partner.keyframe_id
    if estimate.confidence < MIN_CONFIDENCE or estimate.i_from_j_direction is None:
        return None
    image = ObservedImage(observation.features, observation.frame.camera)
    matches = match_along_lines_of(image, k, estimate.i_from_j_rotation, estimate.i_from_j_direction, slam_map)
    is_landmark = slam_map.is_triangulated(matches.landmark)
    landmarks = matches.where(is_landmark)
    points, pixels = slam_map.points_world(landmarks.landmark), image.features.pixels[landmarks.feature]
    world_from_k = slam_map.pose_of(k).rigid
    length = fit_length(
        np.asarray(world_from_k.inv().apply(points)).reshape(-1, 3),
        image.camera.normalized(pixels),
        estimate.i_from_j_rotation,
        estimate.i_from_j_direction,
        noise=FEATURE_NOISE_PX / image.camera.mean_focal,
        min_landmarks=MIN_LANDMARKS,
        max_relative_sigma=MAX_LENGTH_SIGMA,
    )
    if not isinstance(length, LengthFit):
        return None
    start = world_from_k * rigid(estimate.i_from_j_rotation, length.length * estimate.i_from_j_direction)
    prior = pair_prior(world_from_k, estimate, length.length)
    fit = optimize_pose(
        points,
        pixels,
        image.camera,
        start,
        noise_px=FEATURE_NOISE_PX,
        depth_sigma_world=slam_map.depth_sigma_world(landmarks.landmark),
        prior=prior,
    )
    if fit.inlier_count < max(MIN_LANDMARKS, MIN_RATIO * len(landmarks)):
        return None
    seen = _tracks(image, landmarks.where(fit.inliers))
    return RelocalizedFrame(
        observation, fit.world_from_cam, k, seen, seen.joined(_tracks(image, matches.where(~is_landmark)))
    )


def _tracks(image: ObservedImage, matches: FeatureMatches) -> Tracks:
    matches = matches.one_to_one()
    return Tracks(matches.landmark, image.features.pixels[matches.feature])

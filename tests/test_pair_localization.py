"""Photos that share few landmarks with the map: the pose from a pair estimate and the length of its baseline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracle_map import MapBuilder, pose_error, refined_walk

from relocalizer.interfaces import PairEstimate
from slam.map.slam_map import SlamMap
from slam.photos.pair_localization import MIN_LANDMARKS, MappedPartner, localize_from_pair
from slam.relocalization.frame_relocalizer import RelocalizedFrame

STEP = 6
LAST = 5
BEYOND = LAST * STEP + 5  # a frame beyond the last keyframe


def estimate_to(builder: MapBuilder, index: int) -> PairEstimate:
    """last keyframe from frame `index`, as a pair predictor would estimate it without error."""
    k_from_frame = builder.mapper.map.pose_of(LAST).rigid.inv() * builder.world.poses[index]
    step = np.asarray(k_from_frame.translation)
    return PairEstimate(
        i_from_j_rotation=k_from_frame.rotation.as_matrix(),
        i_from_j_direction=step / np.linalg.norm(step),
        confidence=0.8,
        rotation_sigma_rad=0.002,
        direction_sigma_rad=0.02,
        inliers=60,
    )


@pytest.fixture
def walk() -> MapBuilder:
    """Six keyframes at their true poses, refined; the last one sees a few landmarks alone."""
    return refined_walk(LAST + 1, STEP)


def keep_landmarks(slam_map: SlamMap, seen: RelocalizedFrame, count: int) -> None:
    """Remove all landmarks that the last keyframe shares with a localized frame but `count` of them."""
    own = slam_map.landmarks.observed[LAST].ids
    shared = np.intersect1d(own[slam_map.is_triangulated(own)], seen.landmarks.ids)
    slam_map.remove_landmarks(np.setdiff1d(own, shared[:count]))


def test_a_few_landmarks_give_the_length_of_the_baseline(walk: MapBuilder) -> None:
    slam_map, partner = walk.mapper.map, MappedPartner(LAST, estimate_to(walk, BEYOND))
    everything = localize_from_pair(slam_map, walk.seen(BEYOND), partner)
    assert everything is not None
    keep_landmarks(slam_map, everything, MIN_LANDMARKS + 2)
    found = localize_from_pair(slam_map, walk.seen(BEYOND), partner)
    assert found is not None
    assert found.keyframe_id == LAST
    assert MIN_LANDMARKS <= len(found.landmarks) <= MIN_LANDMARKS + 2
    assert len(found.tracks) > 2 * len(found.landmarks)  # the others are triangulated once the photo is inserted
    degrees, distance = pose_error(found.world_from_cam, walk, BEYOND)
    assert degrees < 0.5
    assert distance < 0.1


def test_too_few_landmarks_give_no_pose(walk: MapBuilder) -> None:
    slam_map, partner = walk.mapper.map, MappedPartner(LAST, estimate_to(walk, BEYOND))
    everything = localize_from_pair(slam_map, walk.seen(BEYOND), partner)
    assert everything is not None
    keep_landmarks(slam_map, everything, MIN_LANDMARKS - 1)
    assert localize_from_pair(slam_map, walk.seen(BEYOND), partner) is None


def test_a_wrong_pair_is_not_confirmed_by_the_landmarks(walk: MapBuilder) -> None:
    estimate = estimate_to(walk, BEYOND)
    assert estimate.i_from_j_direction is not None
    wrong = replace(estimate, i_from_j_direction=np.roll(estimate.i_from_j_direction, 1))
    assert localize_from_pair(walk.mapper.map, walk.seen(BEYOND), MappedPartner(LAST, wrong)) is None


def test_a_pair_without_a_direction_or_of_little_confidence_gives_no_pose(walk: MapBuilder) -> None:
    estimate = estimate_to(walk, BEYOND)
    turned = replace(estimate, i_from_j_direction=None, direction_unknown="parallax 0.2 px (needs 1.5)")
    for weak in (turned, replace(estimate, confidence=0.3)):
        assert localize_from_pair(walk.mapper.map, walk.seen(BEYOND), MappedPartner(LAST, weak)) is None

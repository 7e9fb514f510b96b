"""Frames relocalized in a live map after a loss, and keyframes in other segments."""

from __future__ import annotations

import re

import numpy as np
import pytest
from oracle import OraclePredictor, OracleWorld
from oracle_map import build, pose_error, refined_walk, room

from relocalizer.config import RelocalizationConfig
from relocalizer.guided_evidence import GuidedEvidence
from relocalizer.interfaces import Candidate, NoEstimate
from relocalizer.retrieval import FaissRetriever
from slam.map.frames import PoseNotFound
from slam.relocalization.frame_relocalizer import FrameRelocalizer, RelocalizedFrame

STEP = 6
NEAR = 4 * STEP + 3  # a frame between keyframes 4 and 5
FAR = 120  # half a turn later: it sees nothing of the map


@pytest.fixture(scope="module")
def walk():
    """Eight keyframes at their true poses, refined. Read only."""
    return refined_walk(8, STEP)


class Fixed:
    """A retriever with fixed results, which stores the excluded keys of its last query."""

    def __init__(self, *keys):
        self.keys, self.excluded = keys, None

    def add(self, key, descriptor):
        raise AssertionError("a recognizer only asks")

    def query(self, descriptor, k, exclude):
        self.excluded = exclude
        return [Candidate(key, 0.9) for key in self.keys if key not in exclude][:k]


CONFIG = RelocalizationConfig()


def relocalizer(builder, retriever):
    return FrameRelocalizer(CONFIG, builder.mapper.map, builder.predictor, retriever)


def test_the_active_keyframe_is_tried_first(walk):
    found = relocalizer(walk, Fixed(3, 5)).relocalize(walk.seen(NEAR), active=4)
    assert isinstance(found, RelocalizedFrame)
    assert found.keyframe_id == 4


def test_the_active_keyframe_is_not_asked_for_twice(walk):
    retriever = Fixed(4, 5)
    relocalizer(walk, retriever).relocalize(walk.seen(NEAR), active=4)
    assert retriever.excluded == frozenset([4])


def test_a_place_that_looks_alike_is_tried_when_the_active_keyframe_fails(walk):
    found = relocalizer(walk, Fixed(6)).relocalize(walk.seen(6 * STEP + 2), active=0)
    assert isinstance(found, RelocalizedFrame)
    assert found.keyframe_id == 6
    assert pose_error(found.world_from_cam, walk, 6 * STEP + 2)[1] < 0.02


def test_a_real_retriever_finds_the_place_among_all(walk):
    retriever = FaissRetriever()
    for k, keyframe in walk.mapper.map.graph.keyframes.items():
        retriever.add(k, keyframe.descriptor)
    found = relocalizer(walk, retriever).relocalize(walk.seen(6 * STEP + 2), active=0)
    assert isinstance(found, RelocalizedFrame)
    assert found.keyframe_id in (5, 6, 7)


def test_what_is_recognized_continues_as_tracks_with_and_without_a_place(walk):
    found = relocalizer(walk, Fixed()).relocalize(walk.seen(NEAR), active=4)
    is_triangulated = walk.mapper.map.landmarks.is_triangulated
    assert is_triangulated(found.landmarks.ids).all()
    assert len(found.landmarks) >= 25
    assert np.isin(found.landmarks.ids, found.tracks.ids).all()
    assert not is_triangulated(np.setdiff1d(found.tracks.ids, found.landmarks.ids)).any()
    assert len(np.unique(found.tracks.ids)) == len(found.tracks)


def test_a_frame_of_nowhere_is_not_located_and_a_reason_is_reported(walk):
    found = relocalizer(walk, Fixed(7, 5)).relocalize(walk.seen(FAR), active=4)
    assert isinstance(found, PoseNotFound)
    assert re.fullmatch(r"\d+ points of keyframe 4 matched, 12 needed", found.reason)


def test_a_dark_frame_is_not_located():
    world = room()
    dark = build(OracleWorld(world.poses, world.points, pixel_noise=0.3, blind=frozenset([STEP + 1])), [0, STEP])
    found = relocalizer(dark, Fixed(0)).relocalize(dark.seen(STEP + 1), active=1)
    assert found == PoseNotFound("0 points in the image, 12 needed")


def test_a_frame_that_is_nowhere_is_reported_with_the_keyframe_that_came_nearest(walk):
    strict = FrameRelocalizer(
        CONFIG.model_copy(update={"min_inliers": 1000}), walk.mapper.map, walk.predictor, Fixed(0)
    )
    found = strict.relocalize(walk.seen(NEAR), active=4)
    assert isinstance(found, PoseNotFound)
    assert re.search(r"\d+ of \d+ projected landmarks agree, 1000 and \d+% needed", found.reason)


def test_recognizing_changes_nothing_in_the_map(walk):
    landmarks, graph = walk.mapper.map.landmarks, walk.mapper.map.graph
    poses, observed = dict(graph.world_from_keyframe), {k: t.ids.copy() for k, t in landmarks.observed.items()}
    places = landmarks.point_in_anchor.copy()
    relocalizer(walk, Fixed(5)).relocalize(walk.seen(NEAR), active=4)
    assert graph.world_from_keyframe == poses
    assert all(np.array_equal(landmarks.observed[k].ids, ids) for k, ids in observed.items())
    assert np.array_equal(landmarks.point_in_anchor, places)


def test_a_predictor_that_knows_nothing_still_leaves_the_search(walk):
    class Mute(OraclePredictor):
        def relate(self, pairs):
            return [NoEstimate("mute")] * len(pairs)

    mute = FrameRelocalizer(CONFIG, walk.mapper.map, Mute(walk.world), Fixed())
    found = mute.relocalize(walk.seen(NEAR), active=4)
    assert isinstance(found, RelocalizedFrame)
    assert pose_error(found.world_from_cam, walk, NEAR)[1] < 0.02


@pytest.mark.parametrize("config", [{"min_cells": 48}, {"min_inliers": 1000}])
def test_landmarks_that_speak_alone_must_be_many_and_all_over_the_image(walk, config):
    class Mute(OraclePredictor):
        def relate(self, pairs):
            return [NoEstimate("mute")] * len(pairs)

    strict = FrameRelocalizer(CONFIG.model_copy(update=config), walk.mapper.map, Mute(walk.world), Fixed())
    found = strict.relocalize(walk.seen(NEAR), active=4)
    assert isinstance(found, PoseNotFound)
    assert f"{next(iter(config.values()))}" in found.reason


def test_a_keyframe_is_recognized_in_another_map_by_an_older_one_alone():
    world = room()
    builder = build(world, range(0, 5 * STEP, STEP), rotation_sigma_deg=0.3, direction_sigma_deg=2.0)
    builder.mapper.adjustment.local_bundle_adjustment(4)
    builder.add(2 * STEP + 1, segment=1, follow=False)
    builder.add(3 * STEP + 1, segment=1)
    searching = relocalizer(builder, Fixed(2, 3))
    place = next(searching.find_in_other_segments(5, min_inliers=30))
    assert place.keyframe_id == 2
    assert place.pose.evidence.confidence >= 0.9
    assert pose_error(place.pose.found.fit.world_from_cam, builder, 2 * STEP + 1)[1] < 0.01


def test_a_keyframe_of_another_map_is_searched_for_beside_it_in_time_though_nothing_looks_alike():
    world = room()
    builder = build(world, range(0, 5 * STEP, STEP), rotation_sigma_deg=0.3, direction_sigma_deg=2.0)
    builder.mapper.adjustment.local_bundle_adjustment(4)
    builder.add(4 * STEP + 2, segment=1, follow=False)
    builder.add(4 * STEP + 4, segment=1)
    places = list(relocalizer(builder, Fixed()).find_in_other_segments(5, min_inliers=30))
    assert [place.keyframe_id for place in places] == [4, 3]


# Evidence after guided matching


def guided(inliers=100, matches=100, cells=20, confirmation=0.0):
    return GuidedEvidence(inliers=inliers, matches=matches, cells=cells, confirmation=confirmation)


def test_the_inlier_ratio_needed_falls_from_a_half_towards_chance_as_matches_grow_in_number():
    assert guided(matches=10).min_ratio == 0.5
    assert guided(matches=94).min_ratio == pytest.approx(1 / 3 + 2 * np.sqrt(2 / 9 / 94))
    assert 0.33 < guided(matches=100_000).min_ratio < 0.34
    assert guided(matches=94, confirmation=0.95).min_ratio == pytest.approx(1 / 3 + np.sqrt(2 / 9 / 94))


def test_the_more_confident_the_pair_estimate_that_confirms_a_pose_the_fewer_inliers_are_needed():
    config = RelocalizationConfig(min_inliers=10)
    assert [guided(confirmation=c).min_inliers(config) for c in (0.0, 0.45, 0.9, 1.0)] == [40, 25, 10, 10]
    assert guided().min_inliers(RelocalizationConfig(min_inliers=900)) == 900


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (guided(inliers=39, matches=50), "39 of 50 projected landmarks agree, 40 and 47% needed"),
        (guided(inliers=40, matches=100), "40 of 100 projected landmarks agree, 40 and 43% needed"),
        (guided(cells=7), "100 landmarks agree, but in 7 cells of the image, 8 needed"),
        (guided(cells=7, confirmation=0.95), ""),
        (guided(cells=3, confirmation=0.95), "100 landmarks agree, but in 3 cells of the image, 4 needed"),
        (guided(), ""),
    ],
)
def test_a_pose_is_rejected_with_the_number_and_the_threshold(evidence, reason):
    assert evidence.rejection(RelocalizationConfig()) == reason

"""Odometry edges, accepted loops, rejected loops, and joined segments."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from oracle import OraclePredictor
from oracle_map import MapBuilder, build, room

from relocalizer.features import match_features
from relocalizer.geometry import (
    Similarity,
    direction_angle,
    exp_so3,
    rigid,
    rotation_angle,
    rotation_matrix,
    translation_of,
)
from relocalizer.interfaces import Candidate, NoEstimate
from relocalizer.pose_from_matches import PoseRejected
from relocalizer.retrieval import FaissRetriever
from slam.config.schema import LandmarksConfig, LoopClosingConfig, SlamConfig
from slam.events import (
    EdgeAccepted,
    EdgeRejected,
    EstimateRefused,
    GraphOptimized,
    LoopExamined,
    ScaleUnobservable,
)
from slam.loop_closing.edge_information import UNKNOWN_LOG_SCALE
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
from slam.loop_closing.loop_closer import LoopCloser
from slam.loop_closing.loop_detector import LoopDetector
from slam.loop_closing.loop_examination import LoopExamination
from slam.loop_closing.loop_verifier import LoopVerifier, Verified
from slam.loop_closing.odometry_edges import OdometryEdges
from slam.loop_closing.pairwise_consistency import LoopEvidence
from slam.loop_closing.pose_graph import Solution, first_of_each_part
from slam.map.keyframe_graph import EdgeKind

STEP = 6
ROUND = 210  # frames of one round of the walk: frame 210 observes the place of frame 0


class FixedRetriever:
    """A retriever that returns given candidates, whatever their descriptors."""

    def __init__(self, *keys, similarity=0.99):
        self.keys, self.similarity, self.excluded = keys, similarity, frozenset()

    def add(self, key, descriptor):
        pass

    def query(self, descriptor, k, exclude):
        self.excluded = exclude
        return [Candidate(key, self.similarity) for key in self.keys if key not in exclude][:k]


@dataclass(eq=False)
class Linked:
    """A map with odometry edges and a loop closer, and the events of both."""

    builder: MapBuilder
    edges: OdometryEdges
    detector: LoopDetector
    verifier: LoopVerifier
    loop_closer: LoopCloser
    events: list = field(default_factory=list)

    @property
    def graph(self):
        return self.builder.mapper.map.graph

    def of(self, kind):
        return [e for e in self.events if isinstance(e, kind)]

    def loops(self):
        return self.graph.edges_of(EdgeKind.LOOP)


CONFIG = LoopClosingConfig(neighbors=4, candidates=4, min_gap=10, min_similarity=0.6, min_inliers=30)


class Idle:
    """An optimizer that leaves every pose where it is."""

    def optimize(self, graph):
        return Solution(world_from_keyframe={}, error_before=0.0, error_after=0.0)


def linked(builder, retriever=None, predictor=None, *, optimizer=None, **changes):
    events = []
    config, slam_map = CONFIG.model_copy(update=changes), builder.mapper.map
    predictor = predictor or builder.predictor
    edges = OdometryEdges(config, builder.mapper, predictor, events.append, noise_px=SlamConfig().tracks.noise_px)
    detector = LoopDetector(config, slam_map, retriever or FaissRetriever())
    verifier = LoopVerifier(config, slam_map, predictor, events.append)
    loop_closer = LoopCloser(config, builder.mapper, detector, verifier, optimizer or GtsamOptimizer(), events.append)
    return Linked(builder, edges, detector, verifier, loop_closer, events)


def drifting(world, shrink):
    """Poses in which every step of six frames is shorter than the previous one by this factor."""
    poses = [Similarity.from_rigid(world.poses[0])]
    for n, (a, b) in enumerate(zip(world.poses[:-1], world.poses[1:], strict=True)):
        step = a.inv() * b
        small = rigid(rotation_matrix(step), shrink ** (n / STEP) * translation_of(step))
        poses.append(Similarity.from_rigid(poses[-1].rigid * small))
    return poses


def add(connected, index, **where):
    """A keyframe inserted as the system does it, with pair estimate and odometry edges."""
    k = connected.builder.add(index, **where)
    connected.edges.relate_to_covisible(k)
    connected.edges.add_odometry_edges(k, window=8)
    return k


def recognized_at(connected, k, *, index):
    """Id of frame `index`, inserted as a keyframe after a loss: it observes the landmarks of keyframe k alone."""
    builder = connected.builder
    tracks = builder.mapper.map.landmarks.observed[k]
    gray = builder.tracker.gray(builder.world.frame(index).image)
    pixels, found = builder.tracker.follow(builder.gray_of(k), gray, tracks.pixels, tracks.pixels)
    recognized = type(tracks)(tracks.ids, pixels).where(found)
    pose = Similarity.from_rigid(builder.world.poses[index])
    return builder.mapper.insert(builder.seen(index), recognized, pose, connected.graph.segment_of[k]).id


def walk_round(*, shrink=1.0, retriever=None, **config):
    """A map of one round at poses that drift, with odometry edges and without a loop."""
    builder = build(room())
    connected = linked(builder, retriever, **config)
    poses = drifting(builder.world, shrink)
    for index in range(0, ROUND, STEP):
        k = add(connected, index, pose=poses[index])
        connected.detector.add(k)
    return connected, poses


def error_of(edge, connected):
    """Errors of an edge: rotation (degrees), direction (degrees), length (meters)."""
    frames = [connected.graph.keyframes[k].frame_index for k in (edge.i, edge.j)]
    truth = connected.builder.world.poses[frames[0]].inv() * connected.builder.world.poses[frames[1]]
    turn = rotation_angle(rotation_matrix(truth).T @ edge.i_from_j.rotation)
    direction = direction_angle(translation_of(truth), edge.i_from_j.translation)
    distance = np.linalg.norm(translation_of(truth) - edge.i_from_j.translation)
    return np.degrees(turn), np.degrees(direction), float(distance)


# Odometry edges


@pytest.fixture(scope="module")
def few():
    """Five keyframes at their true poses with odometry edges. Read only."""
    connected = linked(build(room()))
    for index in range(0, 5 * STEP, STEP):
        add(connected, index)
    return connected


def test_every_keyframe_has_true_edges_to_earlier_ones(few):
    assert {e.j for e in few.graph.edges.values()} == {1, 2, 3, 4}
    for edge in few.graph.edges.values():
        turn, direction, distance = error_of(edge, few)
        assert turn < 1e-6
        assert direction < 1e-6
        assert distance < 1e-9
        assert edge.kind is EdgeKind.ODOMETRY
        assert edge.inliers > 20


def test_an_edge_is_published_once_however_often_it_is_measured(few):
    pairs = [(e.edge.i, e.edge.j) for e in few.of(EdgeAccepted)]
    assert sorted(pairs) == sorted(few.graph.edges)


def test_an_edge_is_in_the_units_of_its_first_keyframe():
    builder = build(room())
    connected = linked(builder)
    for n, index in enumerate((0, STEP, 2 * STEP)):
        add(connected, index, pose=Similarity.from_rigid(builder.world.poses[index], 2.0**n))
    one, plain = connected.graph.edges[1, 2], builder.world.poses[STEP].inv() * builder.world.poses[2 * STEP]
    assert one.i_from_j.scale == pytest.approx(2.0)
    assert np.allclose(one.i_from_j.translation, translation_of(plain) / 2.0)


def test_the_sigmas_of_an_edge_follow_the_units():
    def sigmas(scale):
        builder = build(room())
        connected = linked(builder)
        for index in (0, STEP, 2 * STEP):
            add(connected, index, pose=Similarity.from_rigid(builder.world.poses[index], scale))
        return connected.graph.edges[1, 2].sigmas

    here, there = sigmas(1.0), sigmas(4.0)
    assert here[:3] == pytest.approx(there[:3])
    assert here[3:6] == pytest.approx(4.0 * there[3:6])
    assert here[6] == pytest.approx(there[6])


def test_the_sigmas_of_an_edge_are_small_but_not_zero(few):
    for edge in few.graph.edges.values():
        assert (edge.sigmas[:3] > 1e-5).all()
        assert (edge.sigmas[:3] < np.radians(4)).all()
        assert (edge.sigmas[3:6] < 0.2).all()
        assert 1e-3 <= edge.sigmas[6] < 0.2


def test_the_pair_estimate_of_the_last_two_keyframes_is_stored(few):
    assert sorted(few.builder.mapper.map.pairs) == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_a_keyframe_that_does_not_overlap_with_the_one_before_is_related_to_the_most_covisible_one():
    connected = linked(build(room()))
    for index in (0, STEP, 2 * STEP):
        add(connected, index)
    for index in (100, 100 + STEP):
        add(connected, index, follow=index > 100)
    connected.builder.mapper.map.pairs.remove(connected.builder.mapper.map.graph.keyframes)
    new = recognized_at(connected, 0, index=2)
    connected.edges.relate_to_covisible(new)
    assert sorted(connected.builder.mapper.map.pairs) == [(0, new)]


def test_a_keyframe_that_shares_no_landmark_with_any_other_is_related_to_none():
    connected = linked(build(room()))
    add(connected, 0)
    new = connected.builder.add(ROUND // 2, follow=False)
    connected.edges.relate_to_covisible(new)
    assert not connected.builder.mapper.map.pairs


def test_a_pair_estimate_that_is_more_likely_wrong_than_correct_is_no_prior():
    class Unsure(OraclePredictor):
        def relate(self, pairs):
            return [replace(estimate, confidence=0.4) for estimate in super().relate(pairs)]

    builder = build(room())
    connected = linked(builder, predictor=Unsure(builder.world))
    for index in range(0, 3 * STEP, STEP):
        add(connected, index)
    assert not builder.mapper.map.pairs


def test_without_a_landmark_shared_with_the_previous_keyframe_the_scale_is_not_reported_unobservable():
    connected = linked(build(room()))
    for index in range(0, 5 * STEP, STEP):
        add(connected, index)
    for index, follow in ((ROUND // 2, False), (ROUND // 2 + STEP, True)):
        k = connected.builder.add(index, follow=follow)
        connected.edges.check_parallax(k, 0.5)
    assert not connected.of(ScaleUnobservable)


def test_a_first_keyframe_has_no_odometry_edge():
    connected = linked(build(room()))
    add(connected, 0)
    assert not connected.graph.edges
    assert not connected.builder.mapper.map.pairs


def test_a_keyframe_relocalized_at_an_old_place_has_an_edge_to_that_place():
    # The camera was lost after a whole round and found again at keyframe 0: it shares landmarks with that alone.
    connected, _ = walk_round()
    k = connected.graph.last_id
    new = recognized_at(connected, 0, index=2)
    connected.edges.add_odometry_edges(new, window=8)
    connected.loop_closer.close_loops(new)
    assert new == k + 1
    assert [e for e in connected.graph.edges.values() if e.j == new]
    assert first_of_each_part(connected.graph) == [0]


# Accepted loops


@pytest.fixture(scope="module")
def closed():
    """A round whose scale drifts by 0.3 % per keyframe, closed by a loop."""
    connected, poses = walk_round(shrink=0.997)
    before = dict(connected.graph.world_from_keyframe)
    k = ROUND // STEP
    while not connected.loops():
        assert k < 39, "no loop was found"
        j = add(connected, k * STEP, pose=poses[k * STEP])
        before[j] = connected.graph.world_from_keyframe[j]
        stood = connected.loop_closer.close_loops(j)
        connected.detector.add(j)
        assert stood == bool(connected.loops())
        k += 1
    return connected, before


def test_a_revisited_place_closes_a_loop(closed):
    connected, _ = closed
    [edge] = connected.loops()
    assert edge.j - edge.i > 25
    assert edge.inliers >= CONFIG.min_inliers
    assert [e.edge for e in connected.of(EdgeAccepted)][-1] is edge


def test_the_loop_is_true(closed):
    connected, _ = closed
    [edge] = connected.loops()
    turn, _, distance = error_of(edge, connected)
    assert turn < 0.5
    assert distance < 0.03


def test_the_loop_measures_the_scale_drift(closed):
    connected, _ = closed
    [edge] = connected.loops()
    # j's own units have shrunk with the map there; i's have not, as far as i had come.
    expected = 0.997 ** (edge.i - edge.j)
    assert edge.i_from_j.scale == pytest.approx(expected, rel=0.02)
    assert edge.sigmas[6] < 0.05


def test_pose_graph_optimization_removes_most_of_the_drift(closed):
    connected, before = closed
    world, j = connected.builder.world, connected.graph.last_id

    def off(poses):
        return np.linalg.norm(
            poses[j].translation - translation_of(world.poses[connected.graph.keyframes[j].frame_index])
        )

    assert off(before) > 0.05
    assert off(connected.graph.world_from_keyframe) < 0.4 * off(before)


def test_the_first_keyframe_stays_and_the_solution_is_published(closed):
    connected, before = closed
    assert connected.graph.world_from_keyframe[0].is_close(before[0], atol=1e-5)
    [event] = connected.of(GraphOptimized)
    assert event.error_after < event.error_before
    assert re.fullmatch(r"loop \d+-\d+ with \d+ landmarks", event.cause)
    assert event.world_from_keyframe.keys() == connected.graph.world_from_keyframe.keys()


def test_after_a_loop_both_ends_observe_the_same_landmarks(closed):
    connected, _ = closed
    [edge] = connected.loops()
    landmarks = connected.builder.mapper.map.landmarks
    seen = [landmarks.observed[k].ids[landmarks.is_triangulated(landmarks.observed[k].ids)] for k in (edge.i, edge.j)]
    assert len(np.intersect1d(*seen)) >= 30
    for tracks in landmarks.observed.values():
        assert len(np.unique(tracks.ids)) == len(tracks)


def test_duplicate_landmarks_of_the_new_keyframe_are_fused_with_the_old_ones():
    # The search by projection is off here: the landmarks are fused by the matches of the loop alone.
    config = SlamConfig(landmarks=LandmarksConfig(search_keyframes=0))
    builder = build(room(), config=config)
    connected = linked(builder, FixedRetriever(0))
    for index in range(0, ROUND + STEP, STEP):
        j = add(connected, index)
    landmarks = builder.mapper.map.landmarks
    own = landmarks.feature_tracks[j].copy()
    assert connected.loop_closer.close_loops(j)
    now = landmarks.feature_tracks[j]
    with_current_ids = (own >= 0) & (now != own)
    assert with_current_ids.sum() > 20
    assert np.isin(now[with_current_ids], landmarks.observed[0].ids).mean() > 0.5
    assert not landmarks.is_triangulated(own[with_current_ids]).any()
    assert landmarks.is_triangulated(now[with_current_ids]).all()
    assert not np.isin(own[with_current_ids], np.concatenate([t.ids for t in landmarks.observed.values()])).any()


def test_a_covisible_keyframe_is_no_loop_candidate(closed):
    connected, _ = closed
    again = linked(connected.builder, FixedRetriever(*connected.graph.keyframes))
    again.loop_closer.close_loops(connected.graph.last_id)
    edges = connected.loops()
    assert edges
    assert not {edge.i for edge in edges} & {e.i for e in again.of(EdgeRejected)}
    assert not again.of(EdgeAccepted)


class Failing:
    """An optimizer that fails a given number of times, and then succeeds."""

    def __init__(self, times, **wrong):
        self.left, self.wrong = times, wrong

    def optimize(self, graph):
        solution = GtsamOptimizer().optimize(graph)
        self.left -= 1
        return replace(solution, **self.wrong) if self.left >= 0 else solution


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"problem": "singular"}, "singular"),
        ({"error_after": np.nan}, "errors or weights are not finite"),
        ({"loop_weights": {(0, 35): np.nan}}, "errors or weights are not finite"),
        ({"world_from_keyframe": {3: Similarity(np.eye(3), np.zeros(3), 1e13)}}, "poses are out of range"),
    ],
)
def test_a_loop_stays_in_the_graph_after_a_failure_of_the_solver(wrong, said):
    connected, poses = walk_round(shrink=0.997)
    connected.loop_closer._optimizer = Failing(1, **wrong)
    k = ROUND // STEP
    while not connected.loops():
        j = add(connected, k * STEP, pose=poses[k * STEP])
        before, names = (
            dict(connected.graph.world_from_keyframe),
            connected.builder.mapper.map.landmarks._replaced_by.copy(),
        )
        connected.loop_closer.close_loops(j)
        connected.detector.add(j)
        k += 1
    [loop] = connected.loops()
    assert connected.graph.world_from_keyframe == before
    assert np.array_equal(connected.builder.mapper.map.landmarks._replaced_by, names)
    assert connected.graph.weight(loop) == 1.0
    assert [e.reason for e in connected.of(EstimateRefused)] == [f"graph optimization: {said}"]
    assert not connected.of(GraphOptimized)
    assert connected.of(EdgeAccepted)[-1].edge is loop
    connected.loop_closer._optimize(j, "again", set())
    assert connected.graph.world_from_keyframe != before
    assert connected.of(GraphOptimized)


# Rejected loops


@pytest.fixture(scope="module")
def seen_again():
    """A round at true poses and keyframe 35, which observes the place of keyframe 0. Read only."""
    connected, poses = walk_round()
    add(connected, ROUND, pose=poses[ROUND])
    return connected


@pytest.fixture(scope="module")
def half():
    """Half a round at true poses. Read only: nothing in it closes."""
    builder = build(room())
    connected = linked(builder)
    for index in range(0, 20 * STEP, STEP):
        add(connected, index)
    return connected


def refused(connected, retriever, predictor=None, **config):
    before, edges = dict(connected.graph.world_from_keyframe), dict(connected.graph.edges)
    asked = linked(connected.builder, retriever, predictor, **config)
    assert not asked.loop_closer.close_loops(connected.graph.last_id)
    assert connected.graph.world_from_keyframe == before
    assert connected.graph.edges == edges
    assert not asked.of(EdgeAccepted)
    return asked


def test_a_place_that_only_looks_similar_is_rejected_with_the_number_and_the_threshold(half):
    [event] = refused(half, FixedRetriever(2)).of(EdgeRejected)
    assert (event.i, event.j, event.kind) == (2, 19, EdgeKind.LOOP)
    assert event.frame_index == 19 * STEP
    assert re.fullmatch(r"\d points of keyframe 2 matched, 15 needed", event.reason)
    assert event.reason.startswith(f"{event.landmarks} ")


def test_every_rejected_candidate_is_published(half):
    events = refused(half, FixedRetriever(0, 1, 2, 3), suppression=0).of(EdgeRejected)
    assert [e.i for e in events] == [0, 1, 2, 3]


def test_of_candidates_near_each_other_in_the_sequence_only_the_most_similar_is_verified(half):
    events = refused(half, FixedRetriever(1, 0, 2, 3, 4, 5, 8), suppression=2).of(EdgeRejected)
    assert [e.i for e in events] == [1, 4, 8]


def test_the_reason_of_the_predictor_is_published_unchanged(seen_again):
    class Doubting(OraclePredictor):
        def relate(self, pairs):
            return [NoEstimate("9 matches, 20 needed")] * len(pairs)

    [event] = refused(seen_again, FixedRetriever(0), Doubting(seen_again.builder.world)).of(EdgeRejected)
    assert event.reason == "9 matches, 20 needed"


def test_a_pair_estimate_without_confidence_is_rejected_with_the_number_and_the_threshold(seen_again):
    class Unsure(OraclePredictor):
        def relate(self, pairs):
            return [replace(estimate, confidence=0.05) for estimate in super().relate(pairs)]

    [event] = refused(seen_again, FixedRetriever(0), Unsure(seen_again.builder.world)).of(EdgeRejected)
    assert event.reason == "confidence 0.05 of the pair estimate, 0.1 needed"
    assert event.landmarks == 0


def test_landmarks_in_one_corner_of_the_image_give_no_loop(seen_again):
    [event] = refused(seen_again, FixedRetriever(0), min_cells=48).of(EdgeRejected)
    assert re.fullmatch(r"\d+ landmarks in \d\d of 48 cells of the image, 48 needed", event.reason)
    assert event.reason.startswith(f"{event.landmarks} ")


def test_a_loop_without_a_second_consistent_one_is_deferred_with_the_number_and_the_threshold(seen_again):
    [event] = refused(seen_again, FixedRetriever(0), single_loop_min_inliers=900, min_gap=35).of(EdgeRejected)
    assert re.fullmatch(r"deferred: \d+ landmarks and no second loop that agrees, 900 needed alone", event.reason)
    assert event.reason.startswith(f"deferred: {event.landmarks} ")


def moved(loop, meters):
    """The loop with the new camera displaced sideways by this distance."""
    there = loop.found.fit.world_from_cam
    fit = replace(loop.found.fit, world_from_cam=there * rigid(np.eye(3), np.array([meters, 0, 0])))
    aside = loop.edge.i_from_j @ Similarity.from_rigid(rigid(np.eye(3), np.array([meters, 0, 0])))
    return Verified(replace(loop.edge, i_from_j=aside), replace(loop.found, fit=fit))


def test_a_loop_candidate_is_matched_once(seen_again, monkeypatch):
    matched, keyframes = [], seen_again.graph.keyframes

    def match(a, b, *, ratio):
        matched.extend(k for k in keyframes if keyframes[k].features is a)
        return match_features(a, b, ratio=ratio)

    monkeypatch.setattr("relocalizer.pose_from_matches.match_features", match)
    assert isinstance(seen_again.verifier.verify(0, seen_again.graph.last_id), Verified)
    assert matched.count(0) == 1
    assert len(matched) == len(set(matched)) > 1


def test_a_small_error_of_a_loop_is_corrected_by_guided_matching(seen_again):
    verifier = seen_again.verifier
    loop = verifier.verify(0, seen_again.graph.last_id)
    aside = moved(loop, 2 * loop.edge.sigmas[3])
    off, left = (error_of(edge, seen_again)[2] for edge in (aside.edge, verifier._refine_pose(aside).edge))
    assert off > 1.5 * loop.edge.sigmas[3]
    assert left < 0.1 * off


def test_a_loop_off_by_more_than_its_covariance_is_rejected_with_the_number_and_the_threshold(seen_again):
    verifier = seen_again.verifier
    loop = verifier.verify(0, seen_again.graph.last_id)
    outcome = verifier._refine_pose(moved(loop, 8 * loop.edge.sigmas[3]))
    assert re.fullmatch(r"guided matching: chi-square \d+\.\d from where they put it, limit 22\.5", outcome.reason)


def asked_a_second_time(connected, c, k):
    """The pairs that a second look at the loop c-k verifies."""
    fresh, asked = linked(connected.builder), []

    def verify(*pair):
        asked.append(pair)
        return PoseRejected("dark")

    fresh.verifier.verify = verify
    fresh.loop_closer._second_look(c, k)
    return asked


def test_the_second_look_is_by_the_previous_keyframe_even_for_an_older_loop(seen_again):
    latest = seen_again.graph.last_id
    assert asked_a_second_time(seen_again, 2, latest) == [(2, latest - 1)]
    assert asked_a_second_time(seen_again, 2, 25) == [(2, 24)]


def test_the_second_look_is_by_a_keyframe_of_the_same_segment():
    connected = linked(build(room()))
    for index in range(0, 15 * STEP, STEP):
        add(connected, index)
    connected.builder.add(15 * STEP, segment=1, follow=False)
    k = connected.builder.add(16 * STEP)
    assert asked_a_second_time(connected, 2, k) == [(2, 14)]
    assert asked_a_second_time(connected, 2, 15) == []  # the first of its segment


def test_a_candidate_much_less_similar_than_the_neighbors_is_not_verified(half):
    assert refused(half, FixedRetriever(2, similarity=0.3)).events == []
    found = refused(half, FixedRetriever(2, similarity=0.3), min_similarity=0.2).events
    assert [type(event) for event in found] == [EdgeRejected, LoopExamined]
    assert [(gate.name, gate.passed) for gate in found[1].gates] == [("similarity", True), ("points matched", False)]


def test_covisible_keyframes_do_not_crowd_out_other_candidates(half, monkeypatch):
    monkeypatch.setattr(
        "slam.loop_closing.loop_detector.QUERIED", 1
    )  # a query returns no more than the one candidate that is wanted
    [event] = refused(half, FixedRetriever(17, 16, 2), candidates=1, min_gap=2).of(EdgeRejected)
    assert event.i == 2


def test_keyframes_near_in_the_sequence_are_no_loop_candidates(half):
    retriever = FixedRetriever(*range(20))
    refused(half, retriever)
    assert set(range(10, 20)) <= retriever.excluded


def test_candidates_are_chosen_among_given_keyframes(half):
    retriever = FixedRetriever(*range(20))
    connected = linked(half.builder, retriever)
    assert [c.key for c in connected.detector.candidates(half.graph.last_id, among=[1, 6])] == [1, 6]


def test_with_zero_candidates_none_is_verified(half):
    assert refused(half, FixedRetriever(2), candidates=0).events == []


def test_too_few_correct_matches_are_rejected_with_the_threshold(seen_again):
    [event] = refused(seen_again, FixedRetriever(0), min_inliers=900).of(EdgeRejected)
    assert re.search(r"\d+ .*, (450|900) needed$", event.reason)
    assert event.reason.startswith(f"{event.landmarks} ")


# Segments


OTHER_WORLD = Similarity(exp_so3([0.4, -0.3, 0.8]), [5.0, -3.0, 2.0], 2.5)


def two_segments(optimizer=None):
    """A first segment, and a second one in a world of its own that reaches the place of the first."""
    connected = linked(build(room()), optimizer=optimizer)
    for index in range(0, 12 * STEP, STEP):
        connected.detector.add(add(connected, index))
    for index in range(ROUND - 6 * STEP, ROUND + 3 * STEP, STEP):
        here = (OTHER_WORLD @ Similarity.from_rigid(connected.builder.world.poses[index])).rigid
        first = index == ROUND - 6 * STEP
        k = add(connected, index, pose=Similarity.from_rigid(here), segment=1, follow=not first)
        if connected.loop_closer.close_loops(k):
            break
        connected.detector.add(k)
    return connected


@pytest.fixture(scope="module")
def joined():
    return two_segments()


def test_joining_aligns_the_segment_before_the_pose_graph_is_optimized():
    connected = two_segments(Idle())
    assert connected.loops()
    world = connected.builder.world
    for k in range(12, connected.graph.last_id + 1):
        truth = translation_of(world.poses[connected.graph.keyframes[k].frame_index])
        assert np.linalg.norm(connected.graph.world_from_keyframe[k].translation - truth) < 0.05
        assert connected.graph.world_from_keyframe[k].scale == pytest.approx(1 / 2.5, rel=0.03)


def test_two_consistent_loops_join_two_segments(joined):
    first, second = joined.loops()
    assert max(first.i, second.i) < 12 <= min(first.j, second.j)
    assert first.j != second.j
    assert set(joined.graph.segment_of.values()) == {0}


def test_one_loop_alone_joins_no_segments_however_many_landmarks_it_has():
    connected = linked(build(room()), single_loop_min_inliers=8)
    for index in range(0, 12 * STEP, STEP):
        connected.detector.add(add(connected, index))
    here = (OTHER_WORLD @ Similarity.from_rigid(connected.builder.world.poses[1])).rigid
    k = add(connected, 1, pose=Similarity.from_rigid(here), segment=1, follow=False)
    assert not connected.loop_closer.close_loops(k)
    assert connected.of(EdgeRejected)[-1].reason == "deferred: 1 loop ties the two parts, 2 needed"
    assert set(connected.graph.segment_of.values()) == {0, 1}


def test_segments_that_cannot_be_joined_within_the_range_of_a_map_stay_apart_without_a_loop(monkeypatch):
    monkeypatch.setattr("slam.map.slam_map.SlamMap.join_segments", lambda *similarity: False)
    connected = two_segments()
    assert not connected.loops()
    assert not connected.of(GraphOptimized)
    assert set(connected.graph.segment_of.values()) == {0, 1}
    assert connected.of(EdgeRejected)[-1].reason == "its length or its scale is beyond what a map can hold"


def test_the_joined_segment_lies_in_the_world_of_the_first(joined):
    world = joined.builder.world
    for k in range(12, joined.graph.last_id + 1):
        truth = translation_of(world.poses[joined.graph.keyframes[k].frame_index])
        assert np.linalg.norm(joined.graph.world_from_keyframe[k].translation - truth) < 0.05


def test_the_scale_between_the_worlds_is_found(joined):
    for k in range(12, joined.graph.last_id + 1):
        assert joined.graph.world_from_keyframe[k].scale == pytest.approx(1 / 2.5, rel=0.03)


def test_the_landmarks_of_the_joined_segment_move_with_it(joined):
    landmarks, world = joined.builder.mapper.map.landmarks, joined.builder.world
    ids = landmarks.landmark_ids()
    ids = ids[landmarks.anchor[ids] >= 12]
    nearest = np.linalg.norm(landmarks.points_world(ids, joined.graph)[:, None] - world.points[None], axis=2).min(
        axis=1
    )
    assert len(ids) > 50
    assert np.median(nearest) < 0.05


def test_a_scale_that_no_landmark_determines_is_unknown_and_not_invented():
    connected = linked(build(room()))
    for index in range(0, 12 * STEP, STEP):
        connected.detector.add(add(connected, index))
    # A first keyframe of a new segment has tracks, but no depth of its own.
    for index in (1, 1 + STEP):  # the second, with the first, has some
        here = (OTHER_WORLD @ Similarity.from_rigid(connected.builder.world.poses[index])).rigid
        k = add(connected, index, pose=Similarity.from_rigid(here), segment=1, follow=index > 1)
        closed = connected.loop_closer.close_loops(k)
    assert closed
    assert (
        connected.of(ScaleUnobservable)[0].reason
        == "loop at keyframe 12: 0 landmarks have depth on both sides, 8 needed for its scale"
    )
    [edge] = [loop for loop in connected.loops() if loop.j == 12]
    assert edge.sigmas[6] == pytest.approx(UNKNOWN_LOG_SCALE)
    turn, _, distance = error_of(edge, connected)
    assert turn < 0.5
    assert distance < 0.03


@pytest.mark.parametrize(("repeats", "verified"), [(False, [0, 1, 2]), (True, [0])])
def test_where_the_scene_repeats_itself_only_the_most_similar_place_is_verified(monkeypatch, few, repeats, verified):
    monkeypatch.setattr(LoopEvidence, "scene_repeats", property(lambda self: repeats))
    seen = []

    class Refusing:
        def verify(self, c, k):
            self.examination = LoopExamination(c, k)
            seen.append(c)
            return PoseRejected("it looks alike", 0)

    class Similar:
        threshold = 0.5

        def candidates(self, k, *, among=None):
            return [Candidate(key, 0.99) for key in (0, 1, 2)]

    mapper = few.builder.mapper
    closer = LoopCloser(CONFIG, mapper, Similar(), Refusing(), GtsamOptimizer(), few.events.append)
    assert not closer.close_loops(few.graph.last_id)
    assert seen == verified

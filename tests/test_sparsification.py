from types import SimpleNamespace

import numpy as np
import pytest
from oracle import OraclePredictor, OracleTracker
from oracle_map import build, room

from relocalizer.geometry import Similarity, translation_of
from relocalizer.retrieval import FaissRetriever
from slam.config import SlamConfig
from slam.evaluate import evaluate
from slam.frame_log import FrameLog
from slam.graph import Edge, EdgeKind
from slam.linking import Linker
from slam.optimizer import GtsamOptimizer, first_of_each_part
from slam.refinement import GtsamRefiner
from slam.sparsification import NEWEST_KEPT, Sparsifier, merge_into
from slam.system import Slam
from slam.tracks import Tracks

STEP = 3


def walked(count=90, *, since=0, beyond=20, kept=frozenset()):
    """A map of closely spaced keyframes with edges, a frame between each two, and what thins it."""
    builder = build(room(frames=count * STEP, turns=0.9))
    retriever, log, config = FaissRetriever(), FrameLog(), SlamConfig()
    linker = Linker(config.linking, builder.mapper, builder.predictor, retriever, GtsamOptimizer(), lambda event: None)
    for index in range(0, count * STEP - 1, STEP):
        k = builder.add(index)
        linker.tie_to_neighbours(k, config.refinement.window)
        linker.remember(k)
        for frame in (index, index + 1):
            pose = builder.world.poses[frame]
            log.add(builder.world.frame(frame), pose, Tracks.none(), k, builder.mapper.graph)
    sparsifier = Sparsifier(builder.mapper, log, retriever, beyond=beyond, kept=lambda: kept, since=since)
    return SimpleNamespace(
        builder=builder,
        mapper=builder.mapper,
        graph=builder.mapper.graph,
        log=log,
        retriever=retriever,
        sparsifier=sparsifier,
    )


def thinned(walk, calls=60):
    return [pair for _ in range(calls) for pair in walk.sparsifier.thin()]


def positions(walk):
    return np.array([translation_of(walk.log.pose(record, walk.graph)) for record in walk.log.records])


@pytest.fixture
def walk():
    return walked()


@pytest.fixture
def thin():
    walk = walked()
    before = positions(walk)
    return SimpleNamespace(walk=walk, before=before, merged=thinned(walk))


@pytest.mark.parametrize("beyond", [90, 0])
def test_a_map_of_few_keyframes_is_left_alone_and_any_map_where_thinning_is_off(beyond):
    assert thinned(walked(beyond=beyond)) == []


def test_redundant_keyframes_go_and_the_newest_stay(thin):
    left = set(thin.walk.graph.keyframes)
    assert len(thin.merged) >= 6
    assert left == set(range(90)) - {k for k, _ in thin.merged}
    assert set(range(90 - NEWEST_KEPT, 90)) <= left
    assert 0 in left


def test_no_frame_moves_and_every_frame_still_hangs_off_a_keyframe(thin):
    assert len(thin.walk.log.records) == len(thin.before)
    assert {r.keyframe_id for r in thin.walk.log.records} <= thin.walk.graph.keyframes.keys()
    np.testing.assert_allclose(positions(thin.walk), thin.before, atol=1e-9)


def test_the_graph_stays_in_one_part(thin):
    assert first_of_each_part(thin.walk.graph) == [0]


def test_nothing_speaks_of_a_merged_keyframe_any_more(thin):
    gone, mapper = {k for k, _ in thin.merged}, thin.walk.mapper
    assert not gone & {end for pair in mapper.graph.edges for end in pair}
    assert not gone & mapper.landmarks.observed.keys()
    assert not gone & set(np.unique(mapper.landmarks.anchor).tolist())
    assert not any(k in thin.walk.retriever for k in gone)
    assert not gone & {end for pair in mapper.pairs for end in pair}


def test_landmarks_stay_where_they_are_with_the_doubt_they_had(walk):
    landmarks, graph = walk.mapper.landmarks, walk.graph
    k = 20
    ids = landmarks.anchored_at(k)
    points, doubt = landmarks.points_world(ids, graph), landmarks.depth_deviation_world(ids, graph)
    merge_into(19, k, walk.mapper, walk.log)
    left = landmarks.has_place(ids)
    assert left.mean() > 0.9
    np.testing.assert_allclose(landmarks.points_world(ids[left], graph), points[left], atol=1e-9)
    after = np.linalg.norm(landmarks.depth_deviation_world(ids[left], graph), axis=1)
    before = np.linalg.norm(doubt[left], axis=1)
    assert np.median(after / before) == pytest.approx(1.0, rel=0.2)


def test_an_edge_over_the_merged_keyframe_agrees_with_the_poses(walk):
    known = set(walk.graph.edges)
    merge_into(19, 20, walk.mapper, walk.log)
    new = [edge for pair, edge in walk.graph.edges.items() if pair not in known]
    assert new
    for edge in new:
        poses = walk.graph.world_from_keyframe
        assert edge.i_from_j.is_close(poses[edge.i].inverse() @ poses[edge.j], atol=0.02)


def test_solving_the_thinned_graph_moves_nothing_much(thin):
    solution = GtsamOptimizer().optimise(thin.walk.graph)
    for k, pose in solution.world_from_keyframe.items():
        assert np.linalg.norm(pose.translation - thin.walk.graph.world_from_keyframe[k].translation) < 0.02


def test_the_errors_of_both_steps_are_in_the_edge_that_replaces_them():
    walk = walked(count=6)
    graph = walk.graph
    for pair in [(0, 1), (1, 2)]:
        pose = Similarity(np.eye(3), [1.0, 0.0, 0.0], 2.0)
        sigmas = np.array([0.03, 0.03, 0.03, 0.4, 0.4, 0.4, 0.0001])
        graph.set_edge(Edge(i=pair[0], j=pair[1], i_from_j=pose, sigmas=sigmas, kind=EdgeKind.ODOMETRY))
    for edge in graph.edges_at(0):
        if edge.j not in (1,):
            del graph.edges[edge.i, edge.j]
            graph._tied[0].discard(edge.j)
            graph._tied[edge.j].discard(0)
    merge_into(2, 1, walk.mapper, walk.log)
    edge = graph.edges[0, 2]
    assert edge.i_from_j.is_close(Similarity(np.eye(3), [3.0, 0.0, 0.0], 4.0))
    assert edge.sigmas[0] == pytest.approx(0.03 * np.sqrt(2))
    swing = 2.0 * 0.03  # the second step, 2 units of the first, swings with the first one's rotation
    assert edge.sigmas[3] == pytest.approx(np.sqrt(0.4**2 + 0.8**2 + swing**2), rel=1e-3)


def test_ends_of_loops_stay():
    walk = walked(kept=frozenset({7, 8}))
    pose = walk.graph.world_from_keyframe
    loop = Edge(
        i=5, j=15, i_from_j=pose[5].inverse() @ pose[15], sigmas=np.full(7, 0.01), kind=EdgeKind.LOOP, inliers=50
    )
    walk.graph.set_edge(loop)
    thinned(walk)
    assert {5, 7, 8, 15} <= walk.graph.keyframes.keys()
    assert walk.graph.loops() == [loop]


def test_keyframes_of_an_earlier_run_stay():
    walk = walked(since=30)
    merged = thinned(walk)
    assert merged
    assert all(k >= 30 for k, _ in merged)


def test_thinning_is_the_same_every_time():
    assert thinned(walked(count=80)) == thinned(walked(count=80))


def run(world, *, beyond):
    keyframes = SlamConfig().keyframes.model_copy(update={"thin_beyond": beyond, "parallax_px": 8.0})
    config = SlamConfig().model_copy(update={"keyframes": keyframes})
    slam = Slam(
        config,
        predictor=OraclePredictor(world),
        tracker=OracleTracker(world, max_features=300),
        retriever=FaissRetriever(),
        optimizer=GtsamOptimizer(),
        refiner=GtsamRefiner(),
    )
    for frame in world.frames():
        slam.step(frame)
    return slam.finish()


def test_a_whole_run_with_thinning_poses_every_frame_to_millimetres():
    world = room(frames=280, turns=1.15, count=1500)
    result = run(world, beyond=60)
    assert len(result.graph.keyframes) < 0.8 * (result.graph.last_id + 1)
    assert len(result.trajectory) == 280
    assert evaluate(result.trajectory, world.ground_truth).ate_sim3.rmse < 0.004

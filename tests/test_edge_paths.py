"""Paths along odometry: errors that spread as drawn ones do, long ways in few steps, and a tree that keeps up."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import LOOP, ODOMETRY, at, edge, graph_of, keyframe, odometry_of, small, some_similarity, true_edge

from relocalizer.geometry import Similarity
from slam.loop_closing.edge_path import EdgePath, adjoint, edge_covariance, log_error
from slam.loop_closing.edge_paths import REACH, OdometryTree
from slam.map.keyframe_graph import Edge, KeyframeGraph


def connected(edges, count=None):
    """Keyframes of which only the edges matter; `count` of them, or as many as the edges name."""
    return graph_of([at(0.0)] * (max((e.j for e in edges), default=-1) + 1 if count is None else count), edges)


def wandering(rng, count, *, sigma=0.02):
    """A chain of steps of a camera that wanders, each surer or less sure."""
    return [edge(k, k + 1, at(1.0, 0.1, 0.2 * rng.normal()), sigma=sigma * rng.uniform(0.5, 2)) for k in range(count)]


def step_by_step(edges):
    """The path along edges each of which begins where the one before ends."""
    path = EdgePath.still()
    for one in edges:
        path = path.then(EdgePath.along(one, one.i))
    return path


def is_same(a, b):
    return (
        a.edges == b.edges
        and a.source_from_target.is_close(b.source_from_target, atol=1e-8)
        and np.allclose(a.covariance, b.covariance, rtol=1e-8, atol=1e-10)
    )


def most_certain(edges, count, source):
    """Doubts from a keyframe (count,) by relaxing all edges until nothing changes (Bellman and Ford)."""
    variance, before = np.full(count, np.inf), None
    variance[source] = 0.0
    lengths = [(one.i, one.j, 3 * one.sigmas[0] ** 2 + one.sigmas[6] ** 2) for one in edges]
    while before is None or not np.array_equal(variance, before):
        before = variance.copy()
        for i, j, length in lengths:
            variance[j] = min(variance[j], variance[i] + length)
            variance[i] = min(variance[i], variance[j] + length)
    return variance


def doubt_in(path):
    """The variance of a path's rotation and scale."""
    return path.covariance[[0, 1, 2, 6], [0, 1, 2, 6]].sum()


# Errors


def test_the_adjoint_carries_a_small_motion_to_another_frame(rng):
    for _ in range(10):
        a_from_b, d = some_similarity(rng), 1e-6 * rng.normal(size=7)
        moved = a_from_b @ small(d) @ a_from_b.inverse()
        assert np.allclose(log_error(Similarity.identity(), moved), adjoint(a_from_b) @ d, atol=1e-10)


def test_adjoints_compose_as_their_similarities_do(rng):
    a, b = some_similarity(rng), some_similarity(rng)
    assert np.allclose(adjoint(a @ b), adjoint(a) @ adjoint(b))


def test_the_covariance_of_an_edge_is_in_the_units_of_its_second_keyframe():
    # Three centimetres in i's units, of which one is a quarter of j's unit: 0.03 / 4 in j's.
    one = Edge(i=0, j=1, i_from_j=at(1.0, scale=4.0), sigmas=[1, 1, 1, 0.03, 0.03, 0.03, 1], kind=ODOMETRY)
    assert np.sqrt(edge_covariance(one)[3, 3]) == pytest.approx(0.0075)


@pytest.mark.parametrize("backwards", [False, True])
def test_errors_of_a_path_spread_as_drawn_ones_do(rng, backwards):
    steps = [edge(k, k + 1, at(1.0, 0.2, 0.45), sigma=0.003) for k in range(7)]
    source, target = (7, 0) if backwards else (0, 7)
    path = odometry_of(connected(steps)).path(source, target)
    drawn = []
    for _ in range(1500):
        end = Similarity.identity()
        for step in steps:
            end = end @ step.i_from_j @ small(rng.normal(0, step.sigmas))
        found = end.inverse() if backwards else end
        drawn.append(log_error(path.source_from_target, found))
    predicted = path.covariance_in(path.source_from_target.inverse())
    assert np.allclose(np.cov(np.array(drawn).T), predicted, atol=0.12 * np.abs(predicted).max())


# Paths


def test_a_path_prefers_what_is_surer():
    edges = [edge(0, 1, at(1.0)), edge(1, 2, at(1.0)), edge(0, 2, at(2.2), sigma=0.5), edge(2, 3, at(1.0))]
    path = odometry_of(connected(edges)).path(0, 3)
    assert path.edges == 3
    assert path.source_from_target.is_close(at(3.0))


def test_a_path_can_be_followed_backwards(rng):
    poses = [some_similarity(rng) for _ in range(5)]
    edges = [true_edge(poses, k, k + 1) for k in range(4)]
    path = odometry_of(connected(edges)).path(4, 1)
    assert path.source_from_target.is_close(poses[4].inverse() @ poses[1], atol=1e-9)


@pytest.mark.parametrize(("source", "target"), [(0, 299), (3, 256), (17, 18), (40, 167)])
def test_a_long_path_is_that_of_all_its_steps(rng, source, target):
    steps = wandering(rng, 300)
    path = odometry_of(connected(steps)).path(source, target)
    assert is_same(path, step_by_step(steps[source:target]))
    assert is_same(odometry_of(connected(steps)).path(target, source), step_by_step(steps[source:target]).backwards())


def test_a_path_from_one_branch_to_another_turns_where_they_meet():
    trunk = [edge(0, 1, at(1.0)), edge(1, 2, at(1.0))]
    branches = [edge(1, 3, at(0.0, 1.0)), edge(3, 4, at(0.0, 1.0))]
    path = odometry_of(connected([*trunk, *branches])).path(2, 4)
    assert path.edges == 3
    assert path.source_from_target.is_close(at(-1.0, 2.0))


def test_a_long_way_takes_few_steps(rng, monkeypatch):
    odometry = odometry_of(connected(wandering(rng, 1000)))
    odometry.path(0, 1000)
    joined, then = [], EdgePath.then
    monkeypatch.setattr(EdgePath, "then", lambda path, onward: joined.append(1) or then(path, onward))
    odometry.path(1, 999)
    assert len(joined) <= 2 * REACH + 4 * np.log2(1000)


def test_what_more_edges_lead_to_than_reach_says_is_not_near():
    odometry = odometry_of(connected([edge(k, k + 1, at(1.0)) for k in range(REACH + 2)]))
    assert odometry.local_path(1, REACH + 1).edges == REACH
    assert odometry.local_path(0, REACH + 1) is None
    assert odometry.path(0, REACH + 1).edges == REACH + 1


def parallel(rng, count):
    """Four chains side by side, of every fourth keyframe, which single steps tie more loosely."""
    fourth = [edge(k, k + 4, at(4.0), sigma=0.01 * rng.uniform(0.9, 1.1)) for k in range(count - 4)]
    return [*fourth, *(edge(k, k + 1, at(1.0), sigma=0.03) for k in range(count - 1))]


@pytest.mark.parametrize(("source", "target"), [(200, 203), (201, 207), (150, 398), (399, 21), (1, 398)])
def test_a_path_between_chains_that_run_side_by_side_doubts_one_change_of_chain_more_than_it_must_at_most(
    rng, source, target
):
    edges = parallel(rng, 400)
    path = odometry_of(connected(edges)).path(source, target)
    best = most_certain(edges, 400, source)[target]
    one_change = 4 * 2 * 0.03**2  # over two steps, as far as chains lie apart
    assert best - 1e-12 <= doubt_in(path) <= best + one_change


@pytest.mark.parametrize("target", [3, 9])
def test_between_parts_that_nothing_ties_there_is_no_path(target):
    assert odometry_of(connected([edge(0, 1, at(1.0)), edge(2, 3, at(1.0))])).path(0, target) is None


def test_a_keyframe_without_edges_has_no_path_but_to_itself():
    odometry = odometry_of(connected([edge(0, 1, at(1.0))], count=8))
    assert odometry.path(7, 7).edges == 0
    assert odometry.path(7, 0) is None
    assert OdometryTree().path(7, 0) is None


def test_loops_are_no_odometry():
    assert odometry_of(connected([edge(0, 1, at(1.0), LOOP)])).path(0, 1) is None


# Growing


def banded(rng, count):
    """Every keyframe tied to the three before it."""
    poses = [Similarity.identity()]
    for _ in range(count - 1):
        poses.append(poses[-1] @ at(1.0, 0.0, 0.2 * rng.normal()))
    return [
        true_edge(poses, i, j, sigma=0.02 * rng.uniform(0.5, 2))
        for j in range(1, count)
        for i in range(max(0, j - 3), j)
    ]


def test_a_tree_that_follows_is_the_tree_grown_at_once(rng):
    edges, graph, odometry = banded(rng, 60), KeyframeGraph(), OdometryTree()
    for k in range(60):
        graph.add_keyframe(keyframe(k), Similarity.identity())
        for one in edges:
            if one.j == k:
                graph.set_edge(one)
        if k % 3:
            odometry.follow(graph)
    for source, target in [(0, 59), (12, 40), (57, 58)]:
        assert is_same(odometry.path(source, target), odometry_of(graph).path(source, target))


def test_newer_evidence_changes_the_paths_over_it():
    graph = connected([edge(k, k + 1, at(1.0)) for k in range(5)])
    odometry = odometry_of(graph)
    graph.set_edge(edge(2, 3, at(2.0), sigma=0.01))
    odometry.follow(graph)
    assert odometry.path(0, 5).source_from_target.is_close(at(6.0))


def test_a_keyframe_tied_only_to_a_later_one_hangs_off_it_and_moves_with_it():
    graph = connected([edge(0, 2, at(2.0)), edge(1, 2, at(1.0)), edge(2, 3, at(1.0))])
    odometry = odometry_of(graph)
    assert odometry.path(1, 0).source_from_target.is_close(at(-1.0))
    graph.set_edge(edge(0, 2, at(2.5)))
    odometry.follow(graph)
    assert odometry.path(1, 0).source_from_target.is_close(at(-1.5))


def test_parts_that_an_edge_ties_become_one():
    graph = connected([edge(0, 1, at(1.0)), edge(2, 3, at(1.0)), edge(3, 4, at(1.0))])
    odometry = odometry_of(graph)
    graph.add_keyframe(keyframe(5), Similarity.identity())
    graph.set_edge(edge(1, 5, at(4.0)))
    graph.set_edge(edge(4, 5, at(1.0)))
    odometry.follow(graph)
    assert odometry.path(0, 2).source_from_target.is_close(at(2.0))


# Paths with loops


def test_paths_with_loops_are_as_sure_as_any_along_these_edges(rng):
    steps = wandering(rng, 40)
    loops = [edge(i, j, at(float(j - i)), LOOP, 0.03) for i, j in [(2, 20), (5, 31), (24, 38)]]
    odometry = odometry_of(connected(steps))
    for source in (0, 11, 22, 40):
        variance = most_certain([*steps, *loops], 41, source)
        for target in range(41):
            path = odometry.path_through_loops(loops, source, target)
            assert doubt_in(path) == pytest.approx(variance[target], abs=1e-12)


def test_a_path_goes_along_a_loop_from_either_end():
    steps = [edge(k, k + 1, at(1.0)) for k in range(30)]
    loop = edge(0, 30, at(0.5), LOOP)
    odometry = odometry_of(connected(steps))
    assert odometry.path_through_loops([loop], 1, 29).source_from_target.is_close(at(-1.5))
    assert odometry.path_through_loops([loop], 29, 1).source_from_target.is_close(at(1.5))


def test_loops_tie_parts_that_odometry_does_not():
    odometry = odometry_of(connected([edge(0, 1, at(1.0)), edge(2, 3, at(1.0))]))
    loop = edge(1, 3, at(0.0, 5.0), LOOP)
    assert odometry.path_through_loops([loop], 0, 2).source_from_target.is_close(at(0.0, 5.0))
    assert odometry.path_through_loops([edge(0, 1, at(1.0), LOOP)], 0, 2) is None


def test_loops_that_are_passed_by_cost_nothing(rng):
    steps = wandering(rng, 200)
    loops = [edge(a, a + 60, at(60.0), LOOP, 5.0) for a in range(10, 130, 7)]
    path = odometry_of(connected(steps)).path_through_loops(loops, 0, 200)
    assert is_same(path, step_by_step(steps))

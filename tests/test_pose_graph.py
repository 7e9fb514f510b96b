"""The graph solved, against answers known by hand or by algebra."""

from __future__ import annotations

import gtsam
import numpy as np
import pytest
from failing_solvers import SINGULAR, NoNumbers, SingularSystem, solver_that
from small_graphs import LOOP, ODOMETRY, at, circle, edge, graph_of, some_similarity, true_edge

from relocalizer.geometry import Similarity, rotation_angle
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer, from_similarity3, to_similarity3
from slam.loop_closing.pose_graph import Solution, first_of_each_part
from slam.map.keyframe_graph import Edge, KeyframeGraph


def solved(graph):
    return GtsamOptimizer().optimize(graph).world_from_keyframe


def hexagon():
    return circle(6, laps=1, radius=1.0)


# Conventions


def test_a_similarity_goes_to_gtsam_and_back_unchanged(rng):
    for _ in range(20):
        pose = some_similarity(rng)
        assert from_similarity3(to_similarity3(pose)).is_close(pose)


def test_gtsam_moves_a_point_as_we_do_by_hand():
    # A quarter turn about z, twice as large, then 10 along x: (1, 0, 0) comes to (10, 2, 0).
    pose = at(10.0, angle=np.pi / 2, scale=2.0)
    assert np.allclose(to_similarity3(pose).transformFrom(np.array([1.0, 0.0, 0.0])), [10.0, 2.0, 0.0])


def test_gtsam_moves_any_point_as_we_do_and_composes_as_we_do(rng):
    for _ in range(20):
        a, b, p = some_similarity(rng), some_similarity(rng), rng.normal(size=3)
        assert np.allclose(to_similarity3(a).transformFrom(p), a.apply(p))
        assert from_similarity3(to_similarity3(a).compose(to_similarity3(b))).is_close(a @ b, atol=1e-8)


def test_between_two_world_poses_is_i_from_j(rng):
    i, j = some_similarity(rng), some_similarity(rng)
    between = to_similarity3(i).between(to_similarity3(j))
    assert from_similarity3(between).is_close(i.inverse() @ j, atol=1e-8)


@pytest.mark.parametrize(("entry", "move"), [(3, [0.1, 0, 0]), (4, [0, 0.1, 0]), (5, [0, 0, 0.1])])
def test_a_translation_off_by_one_sigma_costs_one_half_whatever_the_scales(entry, move):
    poses = [at(0.0, scale=3.0), at(5.0, 1.0, scale=12.0)]  # i_from_j has scale 4
    i_from_j = poses[0].inverse() @ poses[1]
    off = Similarity(i_from_j.rotation, i_from_j.translation + move, i_from_j.scale)  # in i's units
    sigmas = np.ones(7)
    sigmas[entry] = 0.1
    one = Edge(i=0, j=1, i_from_j=off, sigmas=sigmas, kind=ODOMETRY)
    assert GtsamOptimizer().optimize(graph_of(poses, [one])).error_before == pytest.approx(0.5, rel=1e-6)


def test_a_log_scale_off_by_one_sigma_costs_one_half():
    sigmas = np.ones(7)
    sigmas[6] = 0.1
    one = Edge(i=0, j=1, i_from_j=at(0.0, scale=np.exp(0.1)), sigmas=sigmas, kind=ODOMETRY)
    assert GtsamOptimizer().optimize(graph_of([at(0.0), at(0.0)], [one])).error_before == pytest.approx(0.5, rel=1e-6)


# Known answers


def test_a_hexagon_deformed_at_the_start_comes_back_to_itself(rng):
    truth = hexagon()
    edges = [true_edge(truth, i, i + 1) for i in range(5)] + [true_edge(truth, 0, 5, LOOP)]
    distorted = [truth[0]] + [some_similarity(rng, 0.1) @ pose for pose in truth[1:]]
    found = solved(graph_of(distorted, edges))
    assert all(found[k].is_close(truth[k], atol=1e-5) for k in range(6))


PLACES = np.array([1e-4, 1e-4, 1e-4, 0.01, 0.01, 0.01, 1e-4])  # sigmas of edges that doubt nothing but the place


def test_along_a_line_two_opinions_are_weighed_by_their_variances():
    # Odometry says 1 + 1 (variance 2 s^2), the direct edge says 2.03 (variance s^2): the end is at 2.02.
    edges = [edge(0, 1, at(1.0), sigma=PLACES), edge(1, 2, at(1.0), sigma=PLACES), edge(0, 2, at(2.03), sigma=PLACES)]
    found = solved(graph_of([at(0.0), at(1.0), at(2.0)], edges))
    assert found[1].translation[0] == pytest.approx(1.01, abs=1e-4)
    assert found[2].translation[0] == pytest.approx(2.02, abs=1e-4)


def test_a_square_shares_its_closing_error_out_evenly():
    # Four equal steps without turning, around a square; the loop says the last corner is 4 e off along x.
    e, corners = 0.002, [(0, 0), (1, 0), (1, 1), (0, 1)]
    poses = [at(float(x), float(y)) for x, y in corners]
    edges = [true_edge(poses, i, i + 1, sigma=PLACES) for i in range(3)]
    edges.append(edge(0, 3, at(4 * e, 1.0), sigma=PLACES))  # the same sigma and kernel: four opinions in one round
    found = solved(graph_of(poses, edges))
    moved = [found[k].translation[0] - corners[k][0] for k in range(4)]
    assert moved == pytest.approx([0.0, e, 2 * e, 3 * e], abs=2e-5)


@pytest.mark.parametrize("loop_sigma", [0.01, 0.003, 0.001])
@pytest.mark.parametrize("drift", [0.95, 0.98])
def test_scale_that_drifts_along_a_chain_by_a_sigma_a_step_is_put_right_by_one_loop(drift, loop_sigma):
    # A walk around a hexagon in which every step's measure comes out smaller than the one before.
    truth = [*hexagon(), hexagon()[0]]
    drifted = [truth[0]]
    for k in range(6):
        step = truth[k].inverse() @ truth[k + 1]
        drifted.append(drifted[-1] @ step @ Similarity(np.eye(3), np.zeros(3), drift))
    edges = [true_edge(drifted, k, k + 1, sigma=1.0 - drift) for k in range(6)]
    loop = edge(0, 6, Similarity.identity(), LOOP, loop_sigma)
    found = solved(graph_of(drifted, [*edges, loop]))
    assert drifted[6].scale == pytest.approx(drift**6)
    assert np.linalg.norm(drifted[6].translation - truth[6].translation) > 0.1
    assert np.linalg.norm(found[6].translation - truth[6].translation) < 3 * loop_sigma
    assert abs(np.log(found[6].scale)) < 3 * loop_sigma


def test_rotation_alone_is_shared_out_by_variance_too():
    edges = [edge(0, 1, at(0, angle=0.1)), edge(1, 2, at(0, angle=0.1)), edge(0, 2, at(0, angle=0.203))]
    found = solved(graph_of([at(0.0), at(0, angle=0.1), at(0, angle=0.2)], edges))
    assert rotation_angle(found[2].rotation) == pytest.approx(0.202, abs=1e-5)


def test_an_error_that_is_reported_is_the_errors_own(rng):
    truth = hexagon()
    edges = [true_edge(truth, i, i + 1) for i in range(5)]
    solution = GtsamOptimizer().optimize(graph_of([truth[0], *[some_similarity(rng) for _ in range(5)]], edges))
    assert solution.error_after < 1e-6 < solution.error_before


# Gauge


def test_the_first_keyframe_does_not_move(rng):
    poses = [some_similarity(rng) for _ in range(4)]
    edges = [edge(i, i + 1, some_similarity(rng, 0.3)) for i in range(3)]
    assert solved(graph_of(poses, edges))[0].is_close(poses[0], atol=1e-6)


def test_the_answer_moves_with_the_first_keyframe(rng):
    poses = [at(0.0), at(1.0), at(2.0)]
    edges = [edge(0, 1, at(1.0)), edge(1, 2, at(1.0)), edge(0, 2, at(2.03))]
    world = some_similarity(rng)
    here, there = solved(graph_of(poses, edges)), solved(graph_of([world @ pose for pose in poses], edges))
    assert all(there[k].is_close(world @ here[k], atol=1e-4) for k in range(3))


def test_each_part_keeps_its_first_keyframe(rng):
    poses = [some_similarity(rng) for _ in range(5)]
    graph = graph_of(poses, [edge(0, 2, at(1.0)), edge(1, 4, at(2.0)), edge(3, 4, at(1.0))])
    found = solved(graph)
    assert first_of_each_part(graph) == [0, 1]
    assert found[0].is_close(poses[0], atol=1e-6)
    assert found[1].is_close(poses[1], atol=1e-6)
    assert found[2].is_close(poses[0] @ at(1.0), atol=1e-5)
    assert found[3].is_close(poses[1] @ at(2.0) @ at(1.0).inverse(), atol=1e-5)


def test_a_keyframe_without_edges_stays_where_it_is(rng):
    poses = [some_similarity(rng) for _ in range(3)]
    graph = graph_of(poses, [edge(0, 2, at(1.0))])
    assert first_of_each_part(graph) == [0, 1]
    assert solved(graph)[1].is_close(poses[1], atol=1e-6)


def test_parts_are_found_whatever_the_order_of_the_edges():
    graph = graph_of([at(0.0)] * 6, [edge(4, 5, at(0.0)), edge(1, 5, at(0.0)), edge(2, 3, at(0.0))])
    assert first_of_each_part(graph) == [0, 1, 2]


def test_an_empty_graph_is_solved_by_doing_nothing():
    assert solved(KeyframeGraph()) == {}


# False loops


def test_a_false_loop_does_not_bend_a_chain_that_many_edges_hold():
    truth = [at(float(k)) for k in range(20)]
    edges = [true_edge(truth, i, j) for i in range(20) for j in range(i + 1, min(i + 4, 20))]
    false = edge(2, 17, at(3.0, 4.0, 1.0), LOOP)  # off by twelve meters: a thousand sigmas
    found = solved(graph_of(truth, [*edges, false]))
    bend = max(np.linalg.norm(found[k].translation - truth[k].translation) for k in range(20))
    assert bend < 0.06
    assert max(abs(np.log(found[k].scale)) for k in range(20)) < 0.01


def test_a_false_loop_does_not_undo_a_true_one():
    truth = [*hexagon(), hexagon()[0]]
    drifted = [Similarity(p.rotation, 0.99**k * p.translation, 0.99**k) for k, p in enumerate(truth)]
    edges = [true_edge(drifted, k, k + 1, sigma=0.02) for k in range(6)]
    true, false = edge(0, 6, Similarity.identity(), LOOP), edge(1, 5, at(5.0, 5.0), LOOP)
    with_false = solved(graph_of(drifted, [*edges, true, false]))
    without = solved(graph_of(drifted, [*edges, true]))
    for k in range(7):
        assert np.linalg.norm(with_false[k].translation - without[k].translation) < 0.03


def a_drifting_round(turn=0.02, shrink=0.997):
    """(true poses, drifted poses, odometry): each step turns and shrinks a little too much."""
    truth = circle()
    drifted, edges = [truth[0]], []
    for k in range(len(truth) - 1):
        step = truth[k].inverse() @ truth[k + 1] @ at(0.0, angle=turn, scale=shrink)
        drifted.append(drifted[-1] @ step)
        edges.append(edge(k, k + 1, step, sigma=0.02))
    return truth, drifted, edges


def off(found, truth):
    return max(float(np.linalg.norm(found[k].translation - pose.translation)) for k, pose in enumerate(truth))


def test_true_loops_after_a_long_drift_are_all_followed():
    truth, drifted, edges = a_drifting_round()
    loops = [true_edge(truth, n, n + 20, LOOP, 0.01) for n in range(0, 20, 5)]
    assert off(dict(enumerate(drifted)), truth) > 1.0
    solution = GtsamOptimizer().optimize(graph_of(drifted, [*edges, *loops]))
    assert set(solution.loop_weights.values()) == {1.0}
    assert off(solution.world_from_keyframe, truth) < 0.3


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_false_loops_are_left_out_and_true_ones_followed(share, rng):
    truth, drifted, edges = a_drifting_round()
    true = [true_edge(truth, n, n + 20, LOOP, 0.01) for n in range(0, 20, 2)]
    false = [
        edge(int(i), int(i) + 15, some_similarity(rng, 0.7), LOOP, 0.01)
        for i in rng.choice(24, round(len(true) * share / (1 - share)), replace=False)
    ]
    clean = solved(graph_of(drifted, [*edges, *true]))
    solution = GtsamOptimizer().optimize(graph_of(drifted, [*edges, *true, *false]))
    followed = {key for key, weight in solution.loop_weights.items() if weight > 0}
    assert not followed & {(e.i, e.j) for e in false}
    assert len(followed) >= (1.0 if share < 0.5 else 0.6) * len(true)
    assert off(solution.world_from_keyframe, truth) < 1.1 * off(clean, truth) + 0.02


def test_false_loops_that_agree_with_each_other_are_outvoted_by_more_true_ones_of_the_same_places():
    truth, drifted, edges = a_drifting_round()
    true = [true_edge(truth, n, n + 20, LOOP, 0.01) for n in range(6)]
    mistake = at(2.0, -3.0, 1.0)
    false = [edge(n, n + 21, truth[n].inverse() @ mistake @ truth[n + 21], LOOP, 0.01) for n in range(4)]
    solution = GtsamOptimizer().optimize(graph_of(drifted, [*edges, *true, *false]))
    assert {key for key, weight in solution.loop_weights.items() if weight == 0} == {(e.i, e.j) for e in false}


def test_the_error_of_a_loop_left_out_is_reported_in_its_own_sigmas():
    truth = [at(float(k)) for k in range(20)]
    edges = [true_edge(truth, k, k + 1) for k in range(19)]
    loops = [true_edge(truth, 2, 17, LOOP), true_edge(truth, 2, 16, LOOP), edge(2, 15, at(13.0, 4.0), LOOP)]
    solution = GtsamOptimizer().optimize(graph_of(truth, [*edges, *loops]))
    assert solution.loop_weights == {(2, 17): 1.0, (2, 16): 1.0, (2, 15): 0.0}
    assert solution.loop_errors[2, 15] == pytest.approx((4.0 / 0.01) ** 2, rel=1e-3)
    assert solution.error_after == pytest.approx(0.0, abs=1e-9)


def test_a_loop_that_was_left_out_comes_back_when_others_say_the_same():
    truth, _, edges = a_drifting_round(turn=0.0, shrink=1.0)

    def saying(shift, first, last):  # the second lap is somewhere else than the odometry says
        return [edge(n, n + 20, truth[n].inverse() @ shift @ truth[n + 20], LOOP, 0.01) for n in range(first, last)]

    here, there = at(1.5, 0.0, 0.1), at(-1.0, 1.0, 0.0)
    graph = graph_of(truth, [*edges, *saying(there, 0, 1), *saying(here, 1, 3)])
    first = GtsamOptimizer().optimize(graph)
    assert first.loop_weights == {(0, 20): 0.0, (1, 21): 1.0, (2, 22): 1.0}
    graph.set_weights(first.loop_weights)
    for one in saying(there, 3, 9):
        graph.set_edge(one)
    second = GtsamOptimizer().optimize(graph)
    assert second.loop_weights[0, 20] == 1.0
    assert second.loop_weights[1, 21] == second.loop_weights[2, 22] == 0.0


def test_without_robustness_every_loop_is_followed_wherever_it_leads():
    truth = [at(float(k)) for k in range(20)]
    edges = [true_edge(truth, k, k + 1) for k in range(19)]
    graph = graph_of(truth, [*edges, edge(2, 17, at(15.0, 4.0), LOOP, 0.001)])
    solution = GtsamOptimizer(robust=False).optimize(graph)
    assert solution.loop_weights == {(2, 17): 1.0}
    moved = solution.world_from_keyframe[2].inverse() @ solution.world_from_keyframe[17]
    assert moved.translation[1] > 3.5


def test_a_loop_that_is_left_out_ties_nothing(rng):
    graph = graph_of([some_similarity(rng) for _ in range(4)], [edge(0, 1, at(1.0)), edge(2, 3, at(1.0))])
    graph.set_edge(edge(1, 2, at(1.0), LOOP))
    assert first_of_each_part(graph) == [0]
    graph.set_weights({(1, 2): 0.0})
    assert first_of_each_part(graph) == [0, 2]


def test_edges_of_shared_evidence_weigh_by_their_share():
    # Twice the same opinion of half a share each is one opinion: the middle lies where two single ones put it.
    half = Edge(i=0, j=1, i_from_j=at(1.2), sigmas=PLACES, kind=ODOMETRY, evidence_fraction=0.5)
    found = solved(graph_of([at(0.0), at(1.0), at(2.0)], [half, edge(1, 2, at(1.0), sigma=PLACES)]))
    assert found[2].translation[0] == pytest.approx(2.2, abs=1e-6)
    loop = edge(0, 2, at(2.2 + 0.03), LOOP, PLACES)
    found = solved(graph_of([at(0.0), at(1.2), at(2.2)], [half, edge(1, 2, at(1.0), sigma=PLACES), loop]))
    # Variances 2, 1 and 1: of 0.03 the doubtful edge takes a half, the others a quarter each.
    assert found[1].translation[0] == pytest.approx(1.2 + 0.015, abs=1e-4)
    assert found[2].translation[0] == pytest.approx(2.2 + 0.0225, abs=1e-4)


@pytest.mark.parametrize("turn_deg", [1.0, 3.0, 4.5])
def test_a_start_that_has_turned_half_around_still_leads_to_the_answer(turn_deg):
    # Up to 4.5 degrees in each of 39 steps; the loops know better. No start by rotation averaging is needed.
    truth, drifted, edges = a_drifting_round(turn=np.radians(turn_deg), shrink=0.99)
    loops = [true_edge(truth, n, n + 20, LOOP, 0.01) for n in range(0, 20, 2)]
    drifting = [
        Edge(i=e.i, j=e.j, i_from_j=e.i_from_j, sigmas=np.full(7, max(0.02, np.radians(turn_deg))), kind=ODOMETRY)
        for e in edges
    ]
    from_truth = solved(graph_of(truth, [*drifting, *loops]))
    from_drift = solved(graph_of(drifted, [*drifting, *loops]))
    assert all(from_drift[k].is_close(from_truth[k], atol=2e-3) for k in from_truth)


# Manners


def test_the_graph_is_left_as_it_was(rng):
    truth = hexagon()
    distorted = [truth[0]] + [some_similarity(rng, 0.1) @ pose for pose in truth[1:]]
    graph = graph_of(distorted, [true_edge(truth, i, i + 1) for i in range(5)])
    edges = dict(graph.edges)
    GtsamOptimizer().optimize(graph)
    assert all(graph.world_from_keyframe[k] is distorted[k] for k in range(6))
    assert graph.edges == edges


def test_the_same_graph_gives_the_same_bytes(rng):
    truth = hexagon()
    graph = graph_of(
        [truth[0]] + [some_similarity(rng, 0.1) @ pose for pose in truth[1:]],
        [true_edge(truth, i, i + 1) for i in range(5)] + [edge(0, 5, at(0.1), LOOP)],
    )
    a, b = solved(graph), solved(graph)
    assert all(a[k].translation.tobytes() == b[k].translation.tobytes() for k in range(6))


def test_gtsam_is_the_version_whose_tangent_is_rotation_translation_scale():
    turned = gtsam.Similarity3.Expmap(np.array([0.1, 0, 0, 0, 0, 0, 0]))
    grown = gtsam.Similarity3.Expmap(np.array([0, 0, 0, 0, 0, 0, 0.1]))
    assert rotation_angle(turned.rotation().matrix()) == pytest.approx(0.1)
    assert grown.scale() == pytest.approx(np.exp(0.1))


# A solver that fails


@pytest.mark.parametrize(("kind", "said"), [(SingularSystem, SINGULAR), (NoNumbers, "the solution is not finite")])
@pytest.mark.parametrize("robust", [True, False])
@pytest.mark.parametrize("off", [0.0, 3.0])
def test_a_solver_that_fails_keeps_poses_and_weights_and_says_why(kind, said, robust, off):
    poses = circle(20, laps=1.0)
    loop = edge(0, 19, poses[0].inverse() @ poses[19] @ at(off), LOOP)
    graph = graph_of(poses, [*(true_edge(poses, k, k + 1) for k in range(19)), loop])
    with solver_that(kind):
        solution = GtsamOptimizer(robust=robust).optimize(graph)
    assert solution.why_unusable == said
    assert all(solution.world_from_keyframe[k].is_close(pose) for k, pose in graph.world_from_keyframe.items())
    assert solution.loop_weights == {(0, 19): 1.0}
    assert solution.error_after == solution.error_before


def test_a_solution_can_be_used_when_all_its_numbers_are_some():
    assert not GtsamOptimizer().optimize(graph_of(circle(5), [true_edge(circle(5), 0, 1)])).why_unusable


@pytest.mark.parametrize("field", ["error_before", "error_after", "loop_weights", "loop_errors"])
def test_a_solution_with_numbers_that_are_none_cannot_be_used(field):
    numbers = {(0, 1): np.nan} if field.startswith("loop") else np.nan
    wrong = {"world_from_keyframe": {}, "error_before": 0.0, "error_after": 0.0, field: numbers}
    assert Solution(**wrong).why_unusable == "errors or weights are not finite"

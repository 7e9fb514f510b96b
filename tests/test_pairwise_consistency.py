"""Loops that agree and loops that do not: cycles with answers known by hand, the largest set, and what is believed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_graphs import LOOP, ODOMETRY, at, circle, edge, graph_of, odometry_of, small, true_edge

from slam.loop_closing.edge_paths import REACH
from slam.loop_closing.pairwise_consistency import (
    CHI2_7DOF_999,
    MAX_SUPPORT,
    WIDE_CELLS,
    WINDOW,
    Accepted,
    Deferred,
    LoopEvidence,
    cycle_mahalanobis,
    largest_consistent_set,
    map_mahalanobis,
    squared_distance,
)
from slam.map.keyframe_graph import Edge

STRONG, WEAK = 100, 40  # landmarks; alone suffice 90
LOOP_SIGMA, STEP_SIGMA = 0.01, 0.02


def chain_of(poses, edges=(), *, broken=()):
    """True steps from each keyframe to the next, but none after the `broken` ones, and further edges."""
    steps = [true_edge(poses, k, k + 1, sigma=STEP_SIGMA) for k in range(len(poses) - 1) if k not in broken]
    return graph_of(poses, [*steps, *edges])


def loop(poses, i, j, off=(0.0,) * 7, inliers=WEAK, sigma=LOOP_SIGMA):
    """A loop that is wrong by `off`, in j's frame."""
    return edge(i, j, poses[i].inverse() @ poses[j] @ small(np.array(off)), LOOP, sigma, inliers)


def off_by(meters):
    return (0, 0, 0, meters, 0, 0, 0)


def compare(a, b, graph):
    return cycle_mahalanobis(a, b, odometry_of(graph))


def test_a_squared_distance_counts_in_standard_deviations():
    assert squared_distance(np.array([3.0, 0, 0, 0, 0, 0, 4.0]), np.diag([9.0, 1, 1, 1, 1, 1, 4.0])) == pytest.approx(5)


# Cycles


def test_two_true_loops_agree_to_the_last_bit():
    poses = circle()
    graph = chain_of(poses)
    assert compare(loop(poses, 0, 20), loop(poses, 2, 23), graph) == pytest.approx(0.0, abs=1e-9)


def test_a_cycle_that_fails_to_close_counts_its_error_in_the_deviations_of_all_four_sides():
    # On a straight line with edges that doubt the place alone, only the sigmas along x count, and they add up.
    def along(i, j, x, sigma, kind=ODOMETRY):
        return Edge(i=i, j=j, i_from_j=at(x), sigmas=[*[1e-9] * 3, *[sigma] * 3, 1e-9], kind=kind)

    graph = chain_of([at(0.1 * k) for k in range(30)])
    for k in range(29):
        graph.set_edge(along(k, k + 1, 0.1, 0.02))
    one, other = along(0, 20, 2.0, 0.01, LOOP), along(1, 21, 2.1, 0.01, LOOP)  # the second is off by 0.1
    assert compare(one, other, graph) == pytest.approx(0.1**2 / (2 * 0.02**2 + 2 * 0.01**2), rel=1e-6)


def test_whichever_loop_is_asked_first_the_answer_is_the_same():
    poses = circle()
    graph = chain_of(poses)
    a, b = loop(poses, 0, 20, off=(0.01, 0, 0, 0.02, 0, 0, 0.01)), loop(poses, 3, 22)
    assert compare(a, b, graph) == pytest.approx(compare(b, a, graph), rel=0.05)


def test_a_false_loop_disagrees_with_a_true_one():
    poses = circle()
    assert compare(loop(poses, 0, 20), loop(poses, 1, 21, off=off_by(1.0)), chain_of(poses)) > 10 * CHI2_7DOF_999


def apart():
    """Keyframes 10 to 19, a part of their own, amid those of another part that have older and newer names."""
    poses = circle(30)
    return poses, chain_of(poses, [true_edge(poses, 9, 20, sigma=STEP_SIGMA)], broken={9, 19})


def test_two_true_loops_that_lead_opposite_ways_between_two_parts_agree():
    poses, graph = apart()
    there, back = loop(poses, 3, 14), loop(poses, 12, 25)
    assert compare(there, back, graph) == pytest.approx(0.0, abs=1e-9)
    assert compare(back, there, graph) == pytest.approx(0.0, abs=1e-9)


def test_a_false_loop_disagrees_with_a_true_one_that_leads_the_other_way():
    poses, graph = apart()
    there, back = loop(poses, 3, 14, off=off_by(3.0)), loop(poses, 12, 25)
    assert compare(there, back, graph) > CHI2_7DOF_999
    assert compare(there, back, graph) == pytest.approx(compare(back, there, graph), rel=0.2)


def test_two_loops_that_make_the_same_mistake_agree():
    poses = circle()
    wrong = at(2.0, 1.0, 0.8)  # the second lap seen at another place
    a, b = (edge(i, j, poses[i].inverse() @ wrong @ poses[j], LOOP, LOOP_SIGMA) for i, j in ((0, 20), (1, 21)))
    assert compare(a, b, chain_of(poses)) < 1e-6


def test_loops_between_other_parts_of_the_path_are_not_compared():
    poses = [at(0.1 * k) for k in range(2 * REACH + 40)]
    graph = chain_of(poses)
    assert compare(loop(poses, 0, 30), loop(poses, REACH + 5, REACH + 35), graph) is None


def test_a_scale_that_is_not_known_is_no_disagreement_however_far_off():
    poses = circle()
    graph = chain_of(poses)
    doubtful = Edge(
        i=0,
        j=20,
        i_from_j=poses[0].inverse() @ poses[20] @ at(0.0, scale=3.0),
        sigmas=[*[LOOP_SIGMA] * 6, 0.5],
        kind=LOOP,
    )
    assert compare(doubtful, loop(poses, 1, 21), graph) < 1.0
    assert compare(loop(poses, 1, 21), doubtful, graph) < 1.0


# The largest set


def agreement(count, pairs):
    agree = np.eye(count, dtype=bool)
    for a, b in pairs:
        agree[a, b] = agree[b, a] = True
    return agree


@pytest.mark.parametrize(
    ("count", "pairs", "largest"),
    [
        (0, [], []),
        (1, [], [0]),
        (3, [], [0]),
        (4, [(0, 1), (1, 2), (2, 3), (0, 3)], [0, 1]),  # a square without diagonals
        (5, [(0, 1), (2, 3), (3, 4), (2, 4)], [2, 3, 4]),
    ],
)
def test_the_largest_set_in_which_all_agree(count, pairs, largest):
    assert largest_consistent_set(agreement(count, pairs)) == largest


def test_the_exact_search_is_right_where_growing_by_popularity_is_not(rng):
    for _ in range(20):
        upper = np.triu(rng.random((9, 9)) < 0.6, 1)
        agree = upper | upper.T | np.eye(9, dtype=bool)
        sets = [[n for n in range(9) if mask >> n & 1] for mask in range(1 << 9)]
        best = max(len(s) for s in sets if agree[np.ix_(s, s)].all())
        found = largest_consistent_set(agree)
        assert len(found) == best
        assert agree[np.ix_(found, found)].all()


def test_among_many_a_large_set_is_found_and_consistent(rng):
    count = 60
    upper = np.triu(rng.random((count, count)) < 0.1, 1)
    agree = upper | upper.T | np.eye(count, dtype=bool)
    agree[np.ix_(range(0, 60, 3), range(0, 60, 3))] = True
    assert largest_consistent_set(agree) == list(range(0, 60, 3))


# What is believed


def evidence():
    return LoopEvidence(single_loop_min_inliers=90)


def test_a_strong_loop_within_the_drift_is_believed_alone():
    poses = circle()
    one = loop(poses, 0, 20, inliers=STRONG)
    verdict = evidence().evaluate(one, chain_of(poses))
    assert isinstance(verdict, Accepted)
    assert verdict.edges == (one,)


def test_a_weak_loop_waits_for_a_second_and_comes_with_it():
    poses = circle()
    graph, jury = chain_of(poses), evidence()
    first, second = loop(poses, 0, 20), loop(poses, 1, 21)
    assert jury.evaluate(first, graph) == Deferred(
        "40 landmarks and no second loop that agrees, 90 needed alone", alone=True
    )
    verdict = jury.evaluate(second, graph)
    assert isinstance(verdict, Accepted)
    assert set(verdict.edges) == {first, second}


def test_a_second_loop_from_the_same_keyframe_is_no_second_witness():
    poses = circle()
    graph, jury = chain_of(poses), evidence()
    jury.evaluate(loop(poses, 0, 20), graph)
    assert isinstance(jury.evaluate(loop(poses, 1, 20), graph), Deferred)


def test_a_strong_loop_far_from_where_the_path_leads_is_held_back_with_number_and_limit():
    poses = circle()
    verdict = evidence().evaluate(loop(poses, 0, 20, off=off_by(8.0), inliers=STRONG), chain_of(poses))
    assert isinstance(verdict, Deferred)
    assert verdict.reason.startswith("chi-square ")
    assert verdict.reason.endswith("from where the path leads, limit 24.3 with 1 loops that agree")


def departing(chi_square, poses, graph, i, j):
    """A loop that is off along x so far that its departure has this chi-square."""
    one = map_mahalanobis(loop(poses, i, j, off=off_by(0.1)), graph, odometry_of(graph))
    return loop(poses, i, j, off=off_by(0.1 * np.sqrt(chi_square / one)))


def test_drift_beyond_what_one_loop_may_claim_is_believed_of_two():
    poses = circle()
    graph, jury = chain_of(poses), evidence()
    first = departing(1.5 * CHI2_7DOF_999, poses, graph, 0, 20)
    same = poses[1].inverse() @ poses[0] @ first.i_from_j @ poses[20].inverse() @ poses[21]
    second = edge(1, 21, same, LOOP, STEP_SIGMA, STRONG)
    assert isinstance(jury.evaluate(first, graph), Deferred)
    assert isinstance(jury.evaluate(second, graph), Accepted)


def test_any_number_of_loops_with_one_mistake_speaks_only_as_three_do():
    poses = circle()
    graph, jury = chain_of(poses), evidence()
    wrong = at(2.0, -1.0, 0.7)  # a chi-square of 90 to 150: more than three loops may claim, less than seven might
    for n in range(12):
        false = edge(n, 20 + n, poses[n].inverse() @ wrong @ poses[20 + n], LOOP, LOOP_SIGMA, STRONG)
        assert isinstance(jury.evaluate(false, graph), Deferred)


def whole_view(poses, n, moved, *, cells=WIDE_CELLS):
    """A loop from keyframe 20 + n to n whose landmarks lie in so many cells of the image; all agree on one error."""
    return replace(edge(n, 20 + n, poses[n].inverse() @ moved @ poses[20 + n], LOOP, LOOP_SIGMA, STRONG), cells=cells)


def test_three_keyframes_that_show_the_whole_view_again_say_how_far_the_odometry_is_off():
    poses, moved = circle(), at(2.0, -1.0, 0.7)  # a chi-square of 90 to 150
    graph, jury = chain_of(poses), evidence()
    loops = [whole_view(poses, n, moved) for n in range(MAX_SUPPORT)]
    *held_back, verdict = [jury.evaluate(one, graph) for one in loops]
    assert all(isinstance(other, Deferred) for other in held_back)
    assert isinstance(verdict, Accepted)
    assert set(verdict.edges) == set(loops)
    chi_square = map_mahalanobis(loops[-1], graph, odometry_of(graph))
    assert chi_square > MAX_SUPPORT * CHI2_7DOF_999
    assert verdict.odometry_variance == pytest.approx(chi_square / 7)


def test_the_odometry_is_believed_where_loops_show_parts_of_the_view_or_other_loops_contradict_them():
    poses, moved = circle(), at(2.0, -1.0, 0.7)
    graph, jury = chain_of(poses), evidence()
    for n in range(6):
        assert isinstance(jury.evaluate(whole_view(poses, n, moved, cells=WIDE_CELLS - 1), graph), Deferred)
    graph, jury = chain_of(poses), evidence()
    for n in range(3, 6):
        jury.evaluate(whole_view(poses, n, at(-2.0, -1.0, -0.7)), graph)
        assert isinstance(jury.evaluate(whole_view(poses, n - 3, moved), graph), Deferred)


def test_false_loops_that_wait_do_not_keep_a_true_one_out():
    poses = circle()
    graph, jury = chain_of(poses), evidence()
    wrong = at(4.0, -2.0, 1.5)
    for n in range(5):
        jury.evaluate(edge(n, 20 + n, poses[n].inverse() @ wrong @ poses[20 + n], LOOP, LOOP_SIGMA, STRONG), graph)
    assert isinstance(jury.evaluate(loop(poses, 5, 25, inliers=STRONG), graph), Accepted)


def refuted(jury, poses, graph, *, clusters, size):
    """Groups of false loops that agree among themselves, each far from where the path leads."""
    for n in range(clusters):
        wrong = at(20.0 + 10.0 * n, -7.0 * n, 5.0)
        for k in range(size):
            i, j = k, 20 + (n * size + k) % 20
            false = edge(i, j, poses[i].inverse() @ wrong @ poses[j], LOOP, LOOP_SIGMA, STRONG)
            assert isinstance(jury.evaluate(false, graph), Deferred)


def test_where_the_scene_repeats_itself_a_loop_needs_more_support_than_the_false_ones_had():
    poses = circle()
    graph, jury = chain_of(poses), evidence()
    refuted(jury, poses, graph, clusters=4, size=3)
    verdicts = [jury.evaluate(loop(poses, k, 21 + k, inliers=STRONG), graph) for k in range(4)]
    assert verdicts[0] == Deferred(
        "1 keyframes agree, more than 3 needed: 12 keyframes matched places where they are not", alone=False
    )
    assert [isinstance(verdict, Accepted) for verdict in verdicts] == [False, False, False, True]


def test_believed_loops_of_a_place_speak_against_one_that_contradicts_them():
    poses = circle()
    graph, jury = chain_of(poses), evidence()
    for n in range(2):
        true = loop(poses, n, 20 + n, inliers=STRONG)
        jury.evaluate(true, graph)
        graph.set_edge(true)
    verdict = jury.evaluate(loop(poses, 2, 22, off=off_by(0.5), inliers=STRONG), graph)
    assert verdict == Deferred("2 loops of its place contradict it, and 0 agree", alone=False)


def test_a_loop_that_was_left_out_speaks_against_nobody():
    poses = circle()
    graph, jury = chain_of(poses), evidence()
    false = loop(poses, 0, 20, off=off_by(0.6))
    jury.evaluate(false, graph)
    graph.set_edge(false)
    graph.set_weights({(0, 20): 0.0})
    assert isinstance(jury.evaluate(loop(poses, 1, 21, inliers=STRONG), graph), Accepted)


def test_two_parts_are_tied_by_two_loops_and_by_no_single_one():
    poses = circle()
    graph, jury = chain_of(poses, broken={19}), evidence()
    first, second = loop(poses, 0, 20, inliers=10_000), loop(poses, 1, 22)
    assert jury.evaluate(first, graph) == Deferred("1 loop ties the two parts, 2 needed", alone=True)
    assert isinstance(jury.evaluate(second, graph), Accepted)


def test_only_the_newest_loops_are_remembered():
    poses = circle(2 * WINDOW + 40, laps=2.0)
    graph, jury = chain_of(poses), evidence()
    for n in range(WINDOW + 2):
        jury.evaluate(loop(poses, n, n + WINDOW + 20), graph)
    assert not jury.is_pending(0, WINDOW + 20)
    assert jury.is_pending(WINDOW + 1, 2 * WINDOW + 21)


def test_more_loops_of_one_place_may_wait_than_are_remembered():
    poses = circle(4 * WINDOW, laps=1.0)
    graph, jury = chain_of(poses), evidence()
    rng = np.random.default_rng(0)
    for n in range(WINDOW + 10):
        wrong = small(np.concatenate([rng.normal(0, 1.0, 6), [0.0]]))  # each in its own way, so none is believed
        waiting = edge(n % 5, 100 + n % 7 + 7 * (n // 35), poses[0] @ wrong, LOOP, LOOP_SIGMA, WEAK)
        assert isinstance(jury.evaluate(waiting, graph), Deferred)


def test_a_loop_that_is_measured_again_is_compared_anew_with_all_others():
    poses = circle()
    graph, jury = chain_of(poses), evidence()
    jury.evaluate(loop(poses, 0, 20, off=off_by(1.0)), graph)
    jury.evaluate(loop(poses, 1, 21), graph)
    graph.set_edge(loop(poses, 1, 21))
    assert isinstance(jury.evaluate(loop(poses, 0, 20), graph), Accepted)


def test_a_covariance_that_is_numerically_singular_agrees_with_nothing():
    covariance = np.ones((7, 7))
    assert squared_distance(np.arange(7.0), covariance) == np.inf
    assert squared_distance(np.full(7, np.nan), np.eye(7)) == np.inf

"""The graph solved: edges in, keyframe poses out (GTSAM, Sim(3))."""

from __future__ import annotations

from collections.abc import Set

import gtsam
import numpy as np

from relocalizer.geometry import Similarity
from slam.loop_closing.pairwise_consistency import agreeing
from slam.loop_closing.pose_graph import LOOP_LIMIT, Solution, Weights, first_of_each_part
from slam.map.keyframe_graph import Edge, EdgeKind, KeyframeGraph

GAUGE_SIGMA = 1e-6
SHRINK = 2.0  # by which the surrogate of truncated least squares comes nearer to it each round
MAX_ROUNDS = 40
MAX_JOINING = 5


class GtsamOptimizer:
    """Levenberg-Marquardt over similarity edges: the odometry is trusted, loops may be false.

    Loops are followed or left out as truncated least squares would have it, by graduated non-convexity: Yang et al.,
    "Graduated non-convexity for robust spatial perception: from non-minimal solvers to global outlier rejection",
    2020, equations 12 to 14 and remark 5. It is the odometry's sigmas that a false loop has to overcome, so they must
    be true, and what several edges say from the same evidence counts once (`Edge.share`).

    GTSAM's Similarity3 acts as s * (R p + t), so a translation T is handed over as T / s; its tangent is
    rotation, translation, log scale. `between(a, b)` is a^-1 b: of world_from_i and world_from_j, i_from_j.
    """

    def __init__(self, *, robust: bool = True) -> None:
        """With `robust` False every loop is followed, to measure what that costs."""
        self._robust = robust

    def optimize(self, graph: KeyframeGraph) -> Solution:
        problem = _Problem(graph)
        weights = (
            {key: graph.weight(edge) for key, edge in problem.loops.items()} if self._robust else problem.all_of(1.0)
        )
        before = problem.error(problem.start, weights)
        try:
            values, weights = self._solve(problem, graph, weights)
        except RuntimeError as error:  # how GTSAM says that a linear system is singular
            return Solution(
                world_from_keyframe=dict(graph.world_from_keyframe),
                error_before=before,
                error_after=before,
                loop_weights=weights,
                loop_errors=problem.squares(problem.start),
                problem=" ".join(str(error).split()),
            )
        after = problem.error(values, weights)
        stayed = problem.error(problem.start, weights)
        if not np.isfinite(after) or after > stayed:
            values, after = problem.start, stayed
        return Solution(
            world_from_keyframe={k: from_similarity3(values.atSimilarity3(k)) for k in graph.world_from_keyframe},
            error_before=before,
            error_after=after,
            loop_weights=weights,
            loop_errors=problem.squares(values),
        )

    def _solve(self, problem: _Problem, graph: KeyframeGraph, weights: Weights) -> tuple[gtsam.Values, Weights]:
        values = problem.solve(problem.start, weights)
        if self._robust and _is_contradicted(weights, problem.squares(values)):
            return _truncate(problem, graph)
        return values, weights


class _Problem:
    """A graph in GTSAM's terms: what never changes is built once, the loops anew for every set of weights."""

    def __init__(self, graph: KeyframeGraph) -> None:
        self.start = gtsam.Values()
        for k, pose in graph.world_from_keyframe.items():
            self.start.insert(k, to_similarity3(pose))
        self.loops = {(edge.i, edge.j): edge for edge in graph.edges_of(EdgeKind.LOOP)}
        self._factors = gtsam.NonlinearFactorGraph()
        pin = gtsam.noiseModel.Isotropic.Sigma(7, GAUGE_SIGMA)
        for k in first_of_each_part(graph):
            self._factors.add(gtsam.PriorFactorSimilarity3(k, self.start.atSimilarity3(k), pin))
        for edge in graph.edges_of(EdgeKind.ODOMETRY):
            self._factors.add(_factor(edge, _gaussian(edge, 1.0)))
        self._loop_factors = {key: _factor(edge, _gaussian(edge, 1.0)) for key, edge in self.loops.items()}

    def all_of(self, weight: float) -> Weights:
        return dict.fromkeys(self.loops, weight)

    def squares(self, values: gtsam.Values) -> Weights:
        """Squared error of every loop in its sigmas."""
        return {key: 2.0 * float(factor.error(values)) for key, factor in self._loop_factors.items()}

    def error(self, values: gtsam.Values, weights: Weights) -> float:
        squares = self.squares(values)
        return float(self._factors.error(values)) + 0.5 * sum(weights[key] * squares[key] for key in weights)

    def truncated_cost(self, values: gtsam.Values, weights: Weights) -> float:
        """Squared error, in sigmas, where a loop that is left out costs the limit."""
        return 2.0 * self.error(values, weights) + LOOP_LIMIT * sum(weight == 0 for weight in weights.values())

    def solve(self, start: gtsam.Values, weights: Weights) -> gtsam.Values:
        """Raises RuntimeError, as GTSAM does, when there is no solution."""
        factors = gtsam.NonlinearFactorGraph(self._factors)
        for key, edge in self.loops.items():
            if weights[key] > 0:
                factors.add(_factor(edge, _gaussian(edge, weights[key])))
        values = gtsam.LevenbergMarquardtOptimizer(factors, start, gtsam.LevenbergMarquardtParams()).optimize()
        if not np.isfinite(self.error(values, self.all_of(1.0))):
            raise RuntimeError("the solution is not finite")
        return values


def _is_contradicted(weights: Weights, squares: Weights) -> bool:
    """Whether a loop that is followed does not fit, or one that is left out would."""
    return any((weights[key] > 0.5) != (squares[key] <= LOOP_LIMIT) for key in weights)


def _truncate(problem: _Problem, graph: KeyframeGraph) -> tuple[gtsam.Values, Weights]:
    """Poses and weights of truncated least squares over the loops.

    Graduated from all loops, and from a largest set of loops that agree pairwise: with many false loops the first way
    is easily lost, and the second knows nothing of what is too far apart to be compared. The better of the two.
    """
    consistent = agreeing([*problem.loops.values()], graph)
    ways = [
        _graduate(problem, {(edge.i, edge.j) for edge in chosen}) for chosen in (consistent, problem.loops.values())
    ]
    return min(ways, key=lambda way: problem.truncated_cost(*way))


def _graduate(problem: _Problem, trusted: Set[tuple[int, int]]) -> tuple[gtsam.Values, Weights]:
    """Poses and weights by way of ever less convex surrogates over the trusted loops; the others join if they fit."""
    weights = {key: float(key in trusted) for key in problem.loops}
    values = problem.solve(problem.start, weights)
    worst = max((problem.squares(values)[key] for key in trusted), default=0.0)
    mu = LOOP_LIMIT / max(2.0 * worst - LOOP_LIMIT, 1e-9)
    for _ in range(MAX_ROUNDS):
        squares = problem.squares(values)
        weights = {key: _weight(squares[key], mu) if key in trusted else 0.0 for key in weights}
        values = problem.solve(values, weights)
        if mu > 1.0 and all(weight in (0.0, 1.0) for weight in weights.values()):
            break
        mu *= SHRINK
    for _ in range(MAX_JOINING):
        squares = problem.squares(values)
        joined = {key: float(squares[key] <= LOOP_LIMIT) for key in weights}
        if joined == weights:
            break
        weights = joined
        values = problem.solve(values, weights)
    return values, weights


def _weight(square: float, mu: float) -> float:
    """Of a loop with this squared error, under the surrogate `mu` (equation 14)."""
    if square <= mu / (mu + 1.0) * LOOP_LIMIT:
        return 1.0
    if square >= (mu + 1.0) / mu * LOOP_LIMIT:
        return 0.0
    return float(np.clip(np.sqrt(LOOP_LIMIT * mu * (mu + 1.0) / square) - mu, 0.0, 1.0))


def _factor(edge: Edge, noise: gtsam.noiseModel.Base) -> gtsam.BetweenFactorSimilarity3:
    return gtsam.BetweenFactorSimilarity3(edge.i, edge.j, to_similarity3(edge.i_from_j), noise)


def _gaussian(edge: Edge, weight: float) -> gtsam.noiseModel.Diagonal:
    """Noise of an edge that counts by a weight, and by its share of its evidence."""
    sigmas = edge.sigmas / np.sqrt(weight * edge.share)
    sigmas[3:6] /= edge.i_from_j.scale  # GTSAM's translation is T / s
    return gtsam.noiseModel.Diagonal.Sigmas(sigmas)


def to_similarity3(pose: Similarity) -> gtsam.Similarity3:
    return gtsam.Similarity3(gtsam.Rot3(pose.rotation), pose.translation / pose.scale, pose.scale)


def from_similarity3(pose: gtsam.Similarity3) -> Similarity:
    return Similarity(pose.rotation().matrix(), pose.translation() * pose.scale(), pose.scale())

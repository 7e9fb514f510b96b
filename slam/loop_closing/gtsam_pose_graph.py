"""Pose graph optimization over Sim(3) with GTSAM, robust against false loops."""

from __future__ import annotations

from collections.abc import Set

import gtsam
import numpy as np

from relocalizer.geometry import Similarity
from slam.loop_closing.pairwise_consistency import consistent_loops
from slam.loop_closing.pose_graph import LOOP_LIMIT, Solution, Weights, first_of_each_part
from slam.map.keyframe_graph import Edge, EdgeKind, KeyframeGraph

GAUGE_SIGMA = 1e-6  # standard deviation of the pose priors that fix the gauge, radians and map units
MU_FACTOR = 2.0  # factor of the control parameter mu of graduated non-convexity per round
MAX_GNC_ROUNDS = 40  # maximum number of rounds of graduated non-convexity
MAX_JOINING_ROUNDS = 5  # maximum number of rounds in which consistent loops join after graduation


class GtsamOptimizer:
    """Levenberg-Marquardt over similarity edges: odometry edges are trusted, loops may be false.

    Loops are selected by truncated least squares, solved by graduated non-convexity (GNC): Yang et al., "Graduated
    non-convexity for robust spatial perception: from non-minimal solvers to global outlier rejection", 2020, equations
    12 to 14 and remark 5. A false loop competes with the information of the odometry, so the odometry's sigmas must be
    calibrated, and observations that several edges are derived from must count once (`Edge.evidence_fraction`).

    GTSAM's Similarity3 acts as s * (R p + t), so a translation T is passed as T / s; its tangent is rotation,
    translation, log scale. `between(a, b)` is a^-1 b, so from world_from_i and world_from_j it gives i_from_j.
    """

    def __init__(self, *, robust: bool = True) -> None:
        """`robust` False gives every loop the weight 1, for ablation."""
        self._robust = robust

    def optimize(self, graph: KeyframeGraph) -> Solution:
        """As `GraphOptimizer.optimize`."""
        problem = _Problem(graph)
        if self._robust:
            weights: Weights = {key: graph.weight(edge) for key, edge in problem.loops.items()}
        else:
            weights = problem.uniform_weights(1.0)
        before = problem.error(problem.start, weights)
        try:
            values, weights = self._solve(problem, graph, weights)
        except RuntimeError as error:  # GTSAM's error for a singular linear system
            return Solution(
                world_from_keyframe=dict(graph.world_from_keyframe),
                error_before=before,
                error_after=before,
                loop_weights=weights,
                loop_errors=problem.squared_errors(problem.start),
                problem=" ".join(str(error).split()),
            )
        after = problem.error(values, weights)
        error_at_start = problem.error(problem.start, weights)
        if not np.isfinite(after) or after > error_at_start:
            values, after = problem.start, error_at_start
        return Solution(
            world_from_keyframe={k: from_similarity3(values.atSimilarity3(k)) for k in graph.world_from_keyframe},
            error_before=before,
            error_after=after,
            loop_weights=weights,
            loop_errors=problem.squared_errors(values),
        )

    def _solve(self, problem: _Problem, graph: KeyframeGraph, weights: Weights) -> tuple[gtsam.Values, Weights]:
        """Poses and weights; GNC runs only if the solution contradicts the current weights."""
        values = problem.solve(problem.start, weights)
        if self._robust and _is_contradicted(weights, problem.squared_errors(values)):
            return _truncated_least_squares(problem, graph)
        return values, weights


class _Problem:
    """A pose graph as GTSAM factors: priors and odometry are built once, loops anew for every set of weights.

    Attributes:
        start: the current poses.
        loops: loop edges by (i, j).
    """

    def __init__(self, graph: KeyframeGraph) -> None:
        self.start = gtsam.Values()
        for k, pose in graph.world_from_keyframe.items():
            self.start.insert(k, to_similarity3(pose))
        self.loops = {(edge.i, edge.j): edge for edge in graph.edges_of(EdgeKind.LOOP)}
        self._factors = gtsam.NonlinearFactorGraph()
        noise = gtsam.noiseModel.Isotropic.Sigma(7, GAUGE_SIGMA)
        for k in first_of_each_part(graph):
            self._factors.add(gtsam.PriorFactorSimilarity3(k, self.start.atSimilarity3(k), noise))
        for edge in graph.edges_of(EdgeKind.ODOMETRY):
            self._factors.add(_factor(edge, _gaussian(edge, 1.0)))
        self._loop_factors = {key: _factor(edge, _gaussian(edge, 1.0)) for key, edge in self.loops.items()}

    def uniform_weights(self, weight: float) -> Weights:
        """The same weight for all loops."""
        return dict.fromkeys(self.loops, weight)

    def squared_errors(self, values: gtsam.Values) -> Weights:
        """Squared Mahalanobis length of the error of every loop."""
        return {key: 2.0 * float(factor.error(values)) for key, factor in self._loop_factors.items()}

    def error(self, values: gtsam.Values, weights: Weights) -> float:
        """Error as GTSAM defines it, half of the squared Mahalanobis length, with weighted loops."""
        squares = self.squared_errors(values)
        return float(self._factors.error(values)) + 0.5 * sum(weights[key] * squares[key] for key in weights)

    def truncated_cost(self, values: gtsam.Values, weights: Weights) -> float:
        """Squared Mahalanobis length of all errors, where a loop of weight 0 costs `LOOP_LIMIT`."""
        return 2.0 * self.error(values, weights) + LOOP_LIMIT * sum(weight == 0 for weight in weights.values())

    def solve(self, start: gtsam.Values, weights: Weights) -> gtsam.Values:
        """Poses of least error. Raises RuntimeError, as GTSAM does, if there is no solution."""
        factors = gtsam.NonlinearFactorGraph(self._factors)
        for key, edge in self.loops.items():
            if weights[key] > 0:
                factors.add(_factor(edge, _gaussian(edge, weights[key])))
        values = gtsam.LevenbergMarquardtOptimizer(factors, start, gtsam.LevenbergMarquardtParams()).optimize()
        if not np.isfinite(self.error(values, self.uniform_weights(1.0))):
            raise RuntimeError("the solution is not finite")
        return values


def _is_contradicted(weights: Weights, squares: Weights) -> bool:
    """Whether an enabled loop has an error above `LOOP_LIMIT`, or a disabled one an error below it."""
    return any((weights[key] > 0.5) != (squares[key] <= LOOP_LIMIT) for key in weights)


def _truncated_least_squares(problem: _Problem, graph: KeyframeGraph) -> tuple[gtsam.Values, Weights]:
    """Poses and weights of truncated least squares over the loops.

    The better of two solutions: GNC started from a largest set of pairwise consistent loops, and from all loops. The
    former is more robust against many false loops, but cannot compare loops that are far apart.
    """
    consistent = consistent_loops([*problem.loops.values()], graph)
    solutions = [
        _graduate(problem, {(edge.i, edge.j) for edge in chosen}) for chosen in (consistent, problem.loops.values())
    ]
    return min(solutions, key=lambda solution: problem.truncated_cost(*solution))


def _graduate(problem: _Problem, initial: Set[tuple[int, int]]) -> tuple[gtsam.Values, Weights]:
    """Poses and weights of GNC over the initial loops; then all other loops that fit join."""
    weights = {key: float(key in initial) for key in problem.loops}
    values = problem.solve(problem.start, weights)
    worst = max((problem.squared_errors(values)[key] for key in initial), default=0.0)
    mu = LOOP_LIMIT / max(2.0 * worst - LOOP_LIMIT, 1e-9)
    for _ in range(MAX_GNC_ROUNDS):
        squares = problem.squared_errors(values)
        weights = {key: _gnc_weight(squares[key], mu) if key in initial else 0.0 for key in weights}
        values = problem.solve(values, weights)
        if mu > 1.0 and all(weight in (0.0, 1.0) for weight in weights.values()):
            break
        mu *= MU_FACTOR
    for _ in range(MAX_JOINING_ROUNDS):
        squares = problem.squared_errors(values)
        joined = {key: float(squares[key] <= LOOP_LIMIT) for key in weights}
        if joined == weights:
            break
        weights = joined
        values = problem.solve(values, weights)
    return values, weights


def _gnc_weight(square: float, mu: float) -> float:
    """Weight of a loop with this squared error, under the surrogate cost with control parameter mu (equation 14)."""
    if square <= mu / (mu + 1.0) * LOOP_LIMIT:
        return 1.0
    if square >= (mu + 1.0) / mu * LOOP_LIMIT:
        return 0.0
    return float(np.clip(np.sqrt(LOOP_LIMIT * mu * (mu + 1.0) / square) - mu, 0.0, 1.0))


def _factor(edge: Edge, noise: gtsam.noiseModel.Base) -> gtsam.BetweenFactorSimilarity3:
    return gtsam.BetweenFactorSimilarity3(edge.i, edge.j, to_similarity3(edge.i_from_j), noise)


def _gaussian(edge: Edge, weight: float) -> gtsam.noiseModel.Diagonal:
    """Noise model of an edge, its information scaled by a weight and by the edge's evidence fraction."""
    sigmas = edge.sigmas / np.sqrt(weight * edge.evidence_fraction)
    sigmas[3:6] /= edge.i_from_j.scale  # GTSAM's translation is T / s
    return gtsam.noiseModel.Diagonal.Sigmas(sigmas)


def to_similarity3(pose: Similarity) -> gtsam.Similarity3:
    """The similarity in GTSAM's convention s * (R p + t)."""
    return gtsam.Similarity3(gtsam.Rot3(pose.rotation), pose.translation / pose.scale, pose.scale)


def from_similarity3(pose: gtsam.Similarity3) -> Similarity:
    """Inverse of `to_similarity3`."""
    return Similarity(pose.rotation().matrix(), pose.translation() * pose.scale(), pose.scale())

"""Relative poses of many image pairs and the lens that they share, fitted to matched points by Sampson distance.

All pairs are refined at once, in arrays padded to the same number of points. The lens is a vector of five numbers: the
logarithm of the focal length, two of radial distortion in the division model (Fitzgibbon, "Simultaneous linear
estimation of multiple view geometry and lens distortion", CVPR 2001), undistorted = distorted / (1 + a r^2 + b r^4)
with r = |distorted|, and the offset of the principal point. Points, focal length and offset are in one unit of length
in the image plane.

For every pair y_j . E x_i = 0 with E = [d]x R, R = j_from_i_rotation and d the direction of the translation. Sampson
distances (Sampson 1982) are measured where the points were, in the distorted image, under the bounded loss of Geman and
McClure, so that a wrong match that some fundamental matrix allows does not decide on the lens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from relocalizer.geometry import FloatArray, skew

LOG_FOCAL, DIVISION, DIVISION_R4, OFFSET_X, OFFSET_Y = range(5)
REACH = 4.0  # standard deviations: a match twice as far off counts no more than one ten times as far
_STEP = 1e-6  # of the numerical derivatives
_LARGEST_TURN, _LARGEST_CHANGE = 0.5, 0.3  # of one step: radians; logarithm of the focal length, or a distortion
_SMALL = 1e-12
_SMALL_GAIN, _SMALL_CHANGE = 1e-5, 3e-4  # of the loss, and of a lens number: what ends a fit
_TWIST = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
_GENERATORS = np.array([skew(axis) for axis in np.eye(3)])
# Directions of translation that a pose is looked for from, besides that of the fundamental matrix, which says little
# where the scene is nearly flat. The sign of a direction does not change the epipolar lines.
_DIRECTIONS = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.6, 0.0, 0.8], [-0.6, 0.0, 0.8]])


@dataclass(frozen=True, slots=True, eq=False)
class PairBatch:
    """Matched points of P pairs, at most M each.

    Attributes:
        x, y: (P, M, 2) points in the first and the second image of each pair, from the assumed principal point.
        weight: (P, M) 1 for a match, 0 for padding.
        noise: standard deviation of a coordinate.
    """

    x: FloatArray
    y: FloatArray
    weight: FloatArray
    noise: float

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: NDArray[np.int64]) -> PairBatch:
        return PairBatch(self.x[rows], self.y[rows], self.weight[rows], self.noise)

    def loss(self, distances: FloatArray) -> FloatArray:
        """Of each pair, (P,), from Sampson distances (P, M)."""
        scaled = (distances / (REACH * self.noise)) ** 2
        return np.asarray(0.5 * REACH**2 * (self.weight * scaled / (1.0 + scaled)).sum(axis=1))

    def robust_weight(self, distances: FloatArray) -> FloatArray:
        """What each match counts in a step, (P, M), in inverse variances."""
        return np.asarray(self.weight / (1.0 + (distances / (REACH * self.noise)) ** 2) ** 2 / self.noise**2)


@dataclass(frozen=True, slots=True, eq=False)
class EpipolarFit:
    """Rotations (P, 3, 3) and unit directions (P, 3), second from first; the lens (5,); the loss of each pair (P,)."""

    rotation: FloatArray
    direction: FloatArray
    lens: FloatArray
    loss: FloatArray

    def take(self, rows: NDArray[np.int64]) -> EpipolarFit:
        return EpipolarFit(self.rotation[rows], self.direction[rows], self.lens, self.loss[rows])

    def moved(self, steps: FloatArray) -> EpipolarFit:
        """With each pose changed by (P, 5): a rotation vector, and two steps of the direction."""
        u, v = _tangents(self.direction)
        direction = self.direction + u * steps[:, 3:4] + v * steps[:, 4:5]
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        rotation = Rotation.from_rotvec(steps[:, :3]).as_matrix() @ self.rotation
        return replace(self, rotation=rotation, direction=direction)


@dataclass(frozen=True, slots=True, eq=False)
class LensPull:
    """A weak prior that holds the lens where the points say nothing: mean and standard deviations, (5,)."""

    mean: FloatArray
    sigma: FloatArray

    def loss(self, lens: FloatArray, free: list[int]) -> float:
        return float(0.5 * (((lens - self.mean)[free] / self.sigma[free]) ** 2).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """What each pair says of the free lens numbers at a fit, the poses eliminated.

    Attributes:
        information: (P, N, N).
        gradient: (P, N); with the prior's the sum is zero at the optimum.
        total: (N, N) all information, the prior's included.
    """

    information: FloatArray
    gradient: FloatArray
    total: FloatArray


class _Rays:
    """The points of a batch under one lens: undistorted, on the plane z = 1, and how they got there."""

    def __init__(self, batch: PairBatch, lens: FloatArray) -> None:
        self._q_x, self.x, self._a_x, self._b_x = _undistorted(batch.x, lens)
        self._q_y, self.y, self._a_y, self._b_y = _undistorted(batch.y, lens)

    def sampson(self, E: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Signed distances (P, M) to essential matrices (P, 3, 3), and what the algebraic ones were divided by."""
        line_y = self.x @ E[:, :, :2].transpose(0, 2, 1) + E[:, None, :, 2]
        line_x = self.y @ E[:, :2, :] + E[:, None, 2, :]
        algebraic = (self.y * line_y[..., :2]).sum(axis=-1) + line_y[..., 2]
        slope_y = self._a_y * line_y[..., :2] - self._b_y * (self._q_y * line_y[..., :2]).sum(-1)[..., None] * self._q_y
        slope_x = self._a_x * line_x[..., :2] - self._b_x * (self._q_x * line_x[..., :2]).sum(-1)[..., None] * self._q_x
        slope = np.maximum(np.sqrt((slope_x**2).sum(axis=-1) + (slope_y**2).sum(axis=-1)), _SMALL)
        return np.asarray(algebraic / slope), slope

    def products(self) -> FloatArray:
        """(P, M, 9): the algebraic distance to E is their inner product with its rows."""
        one = np.ones((*self.x.shape[:2], 1))
        first, second = np.concatenate([self.x, one], axis=2), np.concatenate([self.y, one], axis=2)
        return np.asarray((second[..., :, None] * first[..., None, :]).reshape(*one.shape[:2], 9))


def _undistorted(points: FloatArray, lens: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Points (P, M, 2) from the principal point, and undistorted on the plane z = 1, whose derivative by them is
    a I - b q q^T."""
    q, focal = points - lens[OFFSET_X:], np.exp(lens[LOG_FOCAL])
    squared = (q**2).sum(axis=-1, keepdims=True)
    shrink = 1.0 / (1.0 + squared * (lens[DIVISION] + squared * lens[DIVISION_R4]))
    slope = 2.0 * lens[DIVISION] + 4.0 * squared * lens[DIVISION_R4]
    return q, q * shrink / focal, shrink / focal, slope * shrink**2 / focal


def undistorted(points: FloatArray, lens: FloatArray) -> FloatArray:
    """Points (N, 2) from the principal point, without the distortion, in the same unit."""
    squared = (points**2).sum(axis=-1, keepdims=True)
    return np.asarray(points / (1.0 + squared * (lens[DIVISION] + squared * lens[DIVISION_R4])))


def refine_poses(batch: PairBatch, fit: EpipolarFit, *, iterations: int) -> EpipolarFit:
    """The poses fitted under the lens as it is, Levenberg-Marquardt for each pair."""
    rays = _Rays(batch, fit.lens)
    products, damping = rays.products(), np.full(len(batch), 1e-3)
    distance, slope = rays.sampson(_essential(fit))
    fit = replace(fit, loss=batch.loss(distance))
    for _ in range(iterations):
        jacobian = products @ _essential_derivatives(fit).transpose(0, 2, 1) / slope[..., None]
        weighted = jacobian * batch.robust_weight(distance)[..., None]
        H, b = weighted.transpose(0, 2, 1) @ jacobian, (weighted * distance[..., None]).sum(axis=1)
        tried = fit.moved(-_solved(_damped(H, damping), b))
        tried_distance, tried_slope = rays.sampson(_essential(tried))
        tried = replace(tried, loss=batch.loss(tried_distance))
        better = tried.loss < fit.loss
        fit = _chosen(better, tried, fit)
        distance = np.where(better[:, None], tried_distance, distance)
        slope = np.where(better[:, None], tried_slope, slope)
        damping = np.where(better, damping / 10, damping * 10)
    return fit


def fit_poses(batch: PairBatch, F: FloatArray, lens: FloatArray, *, iterations: int = 6) -> EpipolarFit:
    """Poses from fundamental matrices (P, 3, 3) of the undistorted points, and from rotations with several directions;
    of each pair the one that fits best."""
    best = refine_poses(batch, poses_of_fundamental(F, lens), iterations=iterations)
    rotation = _rotations_alone(batch, lens)
    for direction in _DIRECTIONS:
        start = EpipolarFit(rotation, np.tile(direction, (len(batch), 1)), lens, best.loss)
        best = best_of(best, refine_poses(batch, start, iterations=iterations))
    return best


def poses_of_fundamental(F: FloatArray, lens: FloatArray) -> EpipolarFit:
    """One of the two rotations and the direction of each essential matrix that is nearest to K^T F K, unrefined."""
    K = np.diag([np.exp(lens[LOG_FOCAL])] * 2 + [1.0])
    U, _, Vt = np.linalg.svd(K @ F @ K)
    U, Vt = (M * np.sign(np.linalg.det(M))[:, None, None] for M in (U, Vt))
    return EpipolarFit(U @ _TWIST @ Vt, U[:, :, 2], lens, np.full(len(F), np.inf))


def fundamental_distances(batch: PairBatch, F: FloatArray, lens: FloatArray) -> FloatArray:
    """Signed Sampson distances (P, M) to fundamental matrices (P, 3, 3) of points undistorted by `lens`, whose focal
    length is one unit."""
    return _Rays(batch, lens).sampson(F)[0]


def best_of(a: EpipolarFit, b: EpipolarFit) -> EpipolarFit:
    """Of each pair the pose with the smaller loss; the lens is a's."""
    return _chosen(b.loss < a.loss, b, a)


def refine_lens(batch: PairBatch, fit: EpipolarFit, free: list[int], pull: LensPull, *, iterations: int) -> EpipolarFit:
    """Poses and the free lens numbers fitted together, Levenberg-Marquardt with the poses eliminated."""
    damping = 1e-3
    total = float(fit.loss.sum()) + pull.loss(fit.lens, free)
    for _ in range(iterations):
        tried, change = _joint_step(batch, fit, free, pull, damping)
        now = float(tried.loss.sum()) + pull.loss(tried.lens, free)
        if now < total:
            converged = total - now < _SMALL_GAIN * total and change < _SMALL_CHANGE
            fit, total, damping = tried, now, max(damping / 10, 1e-9)
            if converged:
                break
        else:
            damping *= 10
            if damping > 1e7:
                break
    return fit


def _joint_step(
    batch: PairBatch, fit: EpipolarFit, free: list[int], pull: LensPull, damping: float
) -> tuple[EpipolarFit, float]:
    """The fit after one damped step, and the largest change of a lens number in it."""
    A, B, S, b, q = _normal_equations(batch, fit, free)
    A = _damped(A, np.full(len(A), damping))
    inverse_B = np.linalg.solve(A, B)
    H = (S - B.transpose(0, 2, 1) @ inverse_B).sum(axis=0) + np.diag(1.0 / pull.sigma[free] ** 2)
    gradient = (q - (inverse_B * b[..., None]).sum(axis=1)).sum(axis=0)
    gradient = gradient + (fit.lens - pull.mean)[free] / pull.sigma[free] ** 2
    step = np.clip(
        -np.linalg.solve(H + damping * np.diag(np.diag(H)), gradient), -_LARGEST_CHANGE, _LARGEST_CHANGE
    )  # fmt: skip
    lens = fit.lens.copy()
    lens[free] += step
    tried = replace(fit.moved(-_solved(A, b + B @ step)), lens=lens)
    loss = batch.loss(_Rays(batch, lens).sampson(_essential(tried))[0])
    return replace(tried, loss=loss), float(np.abs(step).max())


def influence(batch: PairBatch, fit: EpipolarFit, free: list[int], pull: LensPull) -> Influence:
    """What each pair says of the free lens numbers at `fit`."""
    A, B, S, b, q = _normal_equations(batch, fit, free)
    inverse_B = np.linalg.solve(_damped(A, np.full(len(A), 0.0)), B)
    information = S - B.transpose(0, 2, 1) @ inverse_B
    gradient = q - (inverse_B * b[..., None]).sum(axis=1)
    return Influence(information, gradient, information.sum(axis=0) + np.diag(1.0 / pull.sigma[free] ** 2))


def _normal_equations(
    batch: PairBatch, fit: EpipolarFit, free: list[int]
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Of poses (P, 5, 5), between (P, 5, N), of the lens (P, N, N), and gradients (P, 5), (P, N); by differences."""
    rays, E = _Rays(batch, fit.lens), _essential(fit)
    derivatives = _essential_derivatives(fit).reshape(len(batch), 5, 3, 3)
    distance = rays.sampson(E)[0]
    jacobian = np.empty((*distance.shape, 5 + len(free)))
    for k in range(5):
        jacobian[..., k] = (rays.sampson(E + _STEP * derivatives[:, k])[0] - distance) / _STEP
    for n, k in enumerate(free):
        lens = fit.lens.copy()
        lens[k] += _STEP
        jacobian[..., 5 + n] = (_Rays(batch, lens).sampson(E)[0] - distance) / _STEP
    weighted = jacobian * batch.robust_weight(distance)[..., None]
    H, b = weighted.transpose(0, 2, 1) @ jacobian, (weighted * distance[..., None]).sum(axis=1)
    return H[:, :5, :5], H[:, :5, 5:], H[:, 5:, 5:], b[:, :5], b[:, 5:]


def _essential(fit: EpipolarFit) -> FloatArray:
    return _skew(fit.direction) @ fit.rotation


def _essential_derivatives(fit: EpipolarFit) -> FloatArray:
    """(P, 5, 9) of the essential matrices by the steps of `EpipolarFit.moved`."""
    u, v = _tangents(fit.direction)
    d = _skew(fit.direction)
    turning = [d @ generator @ fit.rotation for generator in _GENERATORS]
    return np.stack([*turning, _skew(u) @ fit.rotation, _skew(v) @ fit.rotation], axis=1).reshape(len(d), 5, 9)


def _rotations_alone(batch: PairBatch, lens: FloatArray) -> FloatArray:
    """The rotation (P, 3, 3) that takes the rays of each pair nearest to one another (Kabsch), reweighted."""
    rays = _Rays(batch, lens)
    one = np.ones((*rays.x.shape[:2], 1))
    first, second = (np.concatenate([points, one], axis=2) for points in (rays.x, rays.y))
    first, second = (v / np.linalg.norm(v, axis=2, keepdims=True) for v in (first, second))
    weight, rotation = batch.weight, np.tile(np.eye(3), (len(batch), 1, 1))
    for _ in range(5):
        U, _, Vt = np.linalg.svd((second * weight[..., None]).transpose(0, 2, 1) @ first)
        U[:, :, 2] *= np.sign(np.linalg.det(U @ Vt))[:, None]
        rotation = U @ Vt
        away = np.linalg.norm(second - first @ rotation.transpose(0, 2, 1), axis=2)
        middle = np.nanmedian(np.where(batch.weight > 0, away, np.nan), axis=1)[:, None]
        weight = batch.weight / (1.0 + (away / np.maximum(middle, _SMALL)) ** 2)
    return rotation


def _chosen(which: NDArray[np.bool_], a: EpipolarFit, b: EpipolarFit) -> EpipolarFit:
    """Poses of `a` where `which` (P,), else of b; the lens is b's."""
    return EpipolarFit(
        np.where(which[:, None, None], a.rotation, b.rotation),
        np.where(which[:, None], a.direction, b.direction),
        b.lens,
        np.where(which, a.loss, b.loss),
    )


def _damped(H: FloatArray, damping: FloatArray) -> FloatArray:
    """Matrices (P, N, N) with their diagonals grown by shares (P,), and never singular."""
    diagonal = np.einsum("pii->pi", H)
    floor = 1e-9 * diagonal.max(axis=1, keepdims=True) + _SMALL
    return np.asarray(H + (damping[:, None] * diagonal + floor)[..., None] * np.eye(H.shape[1]))


def _solved(A: FloatArray, b: FloatArray) -> FloatArray:
    """Steps (P, N) of systems (P, N, N), none of them large."""
    return np.clip(np.linalg.solve(A, b[..., None])[..., 0], -_LARGEST_TURN, _LARGEST_TURN)


def _tangents(direction: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Two unit vectors (P, 3) at right angles to each unit vector (P, 3) and to one another."""
    x, y, z = direction.T
    zero, along_x = np.zeros(len(x)), np.abs(x) < 0.7
    u = np.where(along_x[:, None], np.stack([zero, z, -y], axis=1), np.stack([-z, zero, x], axis=1))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    return u, (_skew(direction) @ u[..., None])[..., 0]


def _skew(v: FloatArray) -> FloatArray:
    """[v]x (P, 3, 3) of vectors (P, 3)."""
    return np.asarray(np.einsum("kij,pk->pij", _GENERATORS, v))

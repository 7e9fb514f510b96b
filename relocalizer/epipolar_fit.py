"""Joint fit of the relative poses of many image pairs and of their common lens, by Sampson distances of matches.

All pairs are refined at once, in arrays padded to the same number of points. The lens is a vector of six parameters:
the logarithm of the focal length, two coefficients of radial distortion in the division model (Fitzgibbon,
"Simultaneous linear estimation of multiple view geometry and lens distortion", CVPR 2001), undistorted = distorted /
(1 + a r^2 + b r^4) with r = |distorted|, the offset of the principal point, and the logarithm of a stretch of the y
axis. Points, focal length and offset have the same unit of length in the image plane.

For every pair y_j . E x_i = 0 with E = [d]x R, R = j_from_i_rotation and d the direction of the translation. Sampson
distances (Sampson 1982) are measured in the distorted image, with the bounded loss of Geman and McClure, so that wrong
matches that are consistent with some fundamental matrix do not bias the lens.

Between the images of a camera that only turns, y_j is R x_i (Hartley, "Self-calibration from multiple views with a
rotating camera", ECCV 1994), and any d fulfills the equation. Two fixed ones, along the axes x and y, then measure the
two components of the distance between the two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from relocalizer.geometry import FloatArray, skew
from relocalizer.pair_fits import rotations_of

LOG_FOCAL, DIVISION, DIVISION_R4, OFFSET_X, OFFSET_Y, LOG_STRETCH = range(6)
REACH = 4.0  # width of the Geman-McClure kernel, in standard deviations
_STEP = 1e-6  # step of the numerical derivatives
# Maximum change per step: of a pose, radians; of the logarithm of the focal length or of a distortion coefficient.
_LARGEST_TURN, _LARGEST_CHANGE = 0.5, 0.3
_SMALL = 1e-12  # lower bound of divisors
_SMALL_GAIN, _SMALL_CHANGE = 1e-5, 3e-4  # convergence thresholds: relative decrease of the loss, lens parameter change
_TWIST = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # W of the decomposition of E by SVD
_GENERATORS = np.array([skew(axis) for axis in np.eye(3)])  # generators of SO(3)
# Initial directions of translation, besides that of the fundamental matrix, which is poorly determined in nearly planar
# scenes. The sign of a direction does not change the epipolar lines.
_DIRECTIONS = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.6, 0.0, 0.8], [-0.6, 0.0, 0.8]])


@dataclass(frozen=True, slots=True, eq=False)
class PairBatch:
    """Matched points of P pairs, at most M each.

    Attributes:
        x, y: (P, M, 2) points in the first and the second image of each pair, relative to the assumed principal point.
        weight: (P, M) 1 for a match, 0 for padding.
        noise: standard deviation of a coordinate.
        turns: (P,) whether the camera only turns between the images. The second half of the points of such a pair is a
            copy of the first one. M is even.
    """

    x: FloatArray
    y: FloatArray
    weight: FloatArray
    noise: float
    turns: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: NDArray[np.int64]) -> PairBatch:
        return PairBatch(self.x[rows], self.y[rows], self.weight[rows], self.noise, self.turns[rows])

    def thinned(self, every: int) -> PairBatch:
        """The same pairs with every n-th point of each half."""
        x, y, weight = (
            np.concatenate([half[:, ::every] for half in np.split(points, 2, axis=1)], axis=1)
            for points in (self.x, self.y, self.weight)
        )
        return replace(self, x=x, y=y, weight=weight)

    def loss(self, distances: FloatArray) -> FloatArray:
        """Robust loss (P,) of each pair, from Sampson distances (P, M)."""
        scaled = (distances / (REACH * self.noise)) ** 2
        return np.asarray(0.5 * REACH**2 * (self.weight * scaled / (1.0 + scaled)).sum(axis=1))

    def robust_weight(self, distances: FloatArray) -> FloatArray:
        """Weights (P, M) of the matches in the normal equations, inverse variances times robust weights."""
        return np.asarray(self.weight / (1.0 + (distances / (REACH * self.noise)) ** 2) ** 2 / self.noise**2)


@dataclass(frozen=True, slots=True, eq=False)
class EpipolarFit:
    """Rotations (P, 3, 3) and unit directions (P, 3), second from first; the lens (6,); the loss of each pair (P,)."""

    rotation: FloatArray
    direction: FloatArray
    lens: FloatArray
    loss: FloatArray

    def take(self, rows: NDArray[np.int64]) -> EpipolarFit:
        return EpipolarFit(self.rotation[rows], self.direction[rows], self.lens, self.loss[rows])

    def moved(self, steps: FloatArray) -> EpipolarFit:
        """The fit with each pose changed by `steps` (P, 5): a rotation vector and two tangential direction steps."""
        u, v = _tangents(self.direction)
        direction = self.direction + u * steps[:, 3:4] + v * steps[:, 4:5]
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        rotation = Rotation.from_rotvec(steps[:, :3]).as_matrix() @ self.rotation
        return replace(self, rotation=rotation, direction=direction)


@dataclass(frozen=True, slots=True, eq=False)
class LensPrior:
    """A weak Gaussian prior of the lens parameters: mean and standard deviations, (6,)."""

    mean: FloatArray
    sigma: FloatArray

    def loss(self, lens: FloatArray, free: list[int]) -> float:
        return float(0.5 * (((lens - self.mean)[free] / self.sigma[free]) ** 2).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """Contribution of each pair to the free lens parameters at a fit, with the poses eliminated.

    Attributes:
        information: (P, N, N).
        gradient: (P, N); including that of the prior, the sum is zero at the optimum.
        total: (N, N) sum of the information matrices, including that of the prior.
    """

    information: FloatArray
    gradient: FloatArray
    total: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class _Undistorted:
    """The points of one image of each pair, coordinate by coordinate, which is three times as fast as point by point.

    Attributes:
        q_x, q_y: (P, M) relative to the principal point, stretched.
        rays: (P, 3, M) undistorted, on the plane z = 1.
        a, b: (P, M) of the derivative a I - b q q^T of the undistorted points.
    """

    q_x: FloatArray
    q_y: FloatArray
    rays: FloatArray
    a: FloatArray
    b: FloatArray

    @staticmethod
    def of(points: FloatArray, lens: FloatArray) -> _Undistorted:
        """From points (P, M, 2) relative to the assumed principal point."""
        focal, stretch = np.exp(lens[[LOG_FOCAL, LOG_STRETCH]])
        q_x, q_y = points[..., 0] - lens[OFFSET_X], (points[..., 1] - lens[OFFSET_Y]) * stretch
        squared = q_x * q_x + q_y * q_y
        shrink = 1.0 / (1.0 + squared * (lens[DIVISION] + squared * lens[DIVISION_R4]))
        slope = 2.0 * lens[DIVISION] + 4.0 * squared * lens[DIVISION_R4]
        a = shrink / focal
        rays = np.stack([q_x * a, q_y * a, np.ones_like(a)], axis=1)
        return _Undistorted(q_x, q_y, rays, a, slope * shrink * a)

    def squared_slope(self, line: FloatArray, stretch: float) -> FloatArray:
        """Squared derivative (P, M), by the point in the image, of its product with a line (P, 3, M)."""
        along = self.b * (self.q_x * line[:, 0] + self.q_y * line[:, 1])
        slope_x, slope_y = self.a * line[:, 0] - along * self.q_x, self.a * line[:, 1] - along * self.q_y
        return np.asarray(slope_x * slope_x + stretch**2 * slope_y * slope_y)


class _Rays:
    """The points of a batch undistorted to the plane z = 1 under one lens, with the derivatives of that mapping.

    The two halves of the points of a pair are separate rows: (2 P, M / 2).
    """

    def __init__(self, batch: PairBatch, lens: FloatArray) -> None:
        self._shape = batch.weight.shape
        self._stretch = float(np.exp(lens[LOG_STRETCH]))
        halves = (2 * len(batch), -1, 2)
        self._first = _Undistorted.of(batch.x.reshape(halves), lens)
        self._second = _Undistorted.of(batch.y.reshape(halves), lens)

    @property
    def homogeneous(self) -> tuple[FloatArray, FloatArray]:
        """The points (P, M, 3), z = 1, of the two images."""
        first, second = self._first.rays.transpose(0, 2, 1), self._second.rays.transpose(0, 2, 1)
        return first.reshape(*self._shape, 3), second.reshape(*self._shape, 3)

    def sampson(self, E: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Signed Sampson distances (P, M) to essential matrices (2 P, 3, 3) of the halves, and the divisors of the
        algebraic ones."""
        line_y, line_x = E @ self._first.rays, E.transpose(0, 2, 1) @ self._second.rays
        x, y, _ = self._second.rays.transpose(1, 0, 2)
        algebraic = x * line_y[:, 0] + y * line_y[:, 1] + line_y[:, 2]
        squared = self._first.squared_slope(line_x, self._stretch) + self._second.squared_slope(line_y, self._stretch)
        slope = np.maximum(np.sqrt(squared), _SMALL)
        return (algebraic / slope).reshape(self._shape), slope.reshape(self._shape)

    def products(self) -> FloatArray:
        """Coefficients (2 P, M / 2, 9) of the algebraic distance as a linear function of the entries of E, row by
        row."""
        each = self._second.rays[:, :, None] * self._first.rays[:, None]
        return np.asarray(each.reshape(len(each), 9, -1).transpose(0, 2, 1))


def undistorted(points: FloatArray, lens: FloatArray) -> FloatArray:
    """Undistorted points (N, 2) of points relative to the principal point, in the same unit."""
    squared = (points**2).sum(axis=-1, keepdims=True)
    return np.asarray(points / (1.0 + squared * (lens[DIVISION] + squared * lens[DIVISION_R4])))


def refine_poses(batch: PairBatch, fit: EpipolarFit, *, iterations: int) -> EpipolarFit:
    """Refine the poses with a fixed lens, by Levenberg-Marquardt for each pair."""
    rays = _Rays(batch, fit.lens)
    products, damping = rays.products(), np.full(len(batch), 1e-3)
    distance, slope = rays.sampson(_essential(fit, batch))
    fit = replace(fit, loss=batch.loss(distance))
    for _ in range(iterations):
        by_pose = products @ _essential_derivatives(fit, batch).transpose(0, 2, 1)
        jacobian = by_pose.reshape(*slope.shape, 5) / slope[..., None]
        weighted = jacobian * batch.robust_weight(distance)[..., None]
        H, b = weighted.transpose(0, 2, 1) @ jacobian, (weighted * distance[..., None]).sum(axis=1)
        tried = fit.moved(-_solved(_damped(H, damping), b))
        tried_distance, tried_slope = rays.sampson(_essential(tried, batch))
        tried = replace(tried, loss=batch.loss(tried_distance))
        better = tried.loss < fit.loss
        fit = _chosen(better, tried, fit)
        distance = np.where(better[:, None], tried_distance, distance)
        slope = np.where(better[:, None], tried_slope, slope)
        damping = np.where(better, damping / 10, damping * 10)
    return fit


def fit_poses(batch: PairBatch, F: FloatArray, lens: FloatArray, *, iterations: int = 6) -> EpipolarFit:
    """Fit poses from several starts and keep the best per pair: the fundamental matrices (P, 3, 3) of the undistorted
    points, and the best pure rotation with several directions."""
    best = refine_poses(batch, poses_of_fundamental(F, lens), iterations=iterations)
    rotation = _rotations_alone(batch, lens)
    for direction in _DIRECTIONS:
        start = EpipolarFit(rotation, np.tile(direction, (len(batch), 1)), lens, best.loss)
        best = best_of(best, refine_poses(batch, start, iterations=iterations))
    return best


def poses_of_fundamental(F: FloatArray, lens: FloatArray) -> EpipolarFit:
    """One of the two rotations, and the direction, of the essential matrix nearest to each K^T F K, unrefined."""
    K = np.diag([np.exp(lens[LOG_FOCAL])] * 2 + [1.0])
    U, _, Vt = np.linalg.svd(K @ F @ K)
    U, Vt = (M * np.sign(np.linalg.det(M))[:, None, None] for M in (U, Vt))
    return EpipolarFit(U @ _TWIST @ Vt, U[:, :, 2], lens, np.full(len(F), np.inf))


def fundamental_distances(batch: PairBatch, F: FloatArray, lens: FloatArray) -> FloatArray:
    """Signed Sampson distances (P, M) to fundamental matrices (P, 3, 3) of points undistorted by `lens`, which has a
    focal length of 1."""
    return _Rays(batch, lens).sampson(np.repeat(F, 2, axis=0))[0]


def best_of(a: EpipolarFit, b: EpipolarFit) -> EpipolarFit:
    """The pose with the smaller loss for each pair; the lens is that of a."""
    return _chosen(b.loss < a.loss, b, a)


def refine_lens(
    batch: PairBatch, fit: EpipolarFit, free: list[int], prior: LensPrior, *, iterations: int
) -> EpipolarFit:
    """Refine poses and free lens parameters jointly, by Levenberg-Marquardt with the poses eliminated (Schur)."""
    damping = 1e-3
    total = float(fit.loss.sum()) + prior.loss(fit.lens, free)
    for _ in range(iterations):
        tried, change = _joint_step(batch, fit, free, prior, damping)
        now = float(tried.loss.sum()) + prior.loss(tried.lens, free)
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
    batch: PairBatch, fit: EpipolarFit, free: list[int], prior: LensPrior, damping: float
) -> tuple[EpipolarFit, float]:
    """The fit after one damped step, and the largest change of a lens parameter in it."""
    A, B, S, b, q = _normal_equations(batch, fit, free)
    A = _damped(A, np.full(len(A), damping))
    inverse_B = np.linalg.solve(A, B)
    H = (S - B.transpose(0, 2, 1) @ inverse_B).sum(axis=0) + np.diag(1.0 / prior.sigma[free] ** 2)
    gradient = (q - (inverse_B * b[..., None]).sum(axis=1)).sum(axis=0)
    gradient = gradient + (fit.lens - prior.mean)[free] / prior.sigma[free] ** 2
    step = np.clip(
        -np.linalg.solve(H + damping * np.diag(np.diag(H)), gradient), -_LARGEST_CHANGE, _LARGEST_CHANGE
    )  # fmt: skip
    lens = fit.lens.copy()
    lens[free] += step
    tried = replace(fit.moved(-_solved(A, b + B @ step)), lens=lens)
    loss = batch.loss(_Rays(batch, lens).sampson(_essential(tried, batch))[0])
    return replace(tried, loss=loss), float(np.abs(step).max())


def influence(batch: PairBatch, fit: EpipolarFit, free: list[int], prior: LensPrior) -> Influence:
    """Contribution of each pair to the free lens parameters at `fit`."""
    A, B, S, b, q = _normal_equations(batch, fit, free)
    inverse_B = np.linalg.solve(_damped(A, np.full(len(A), 0.0)), B)
    information = S - B.transpose(0, 2, 1) @ inverse_B
    gradient = q - (inverse_B * b[..., None]).sum(axis=1)
    return Influence(information, gradient, information.sum(axis=0) + np.diag(1.0 / prior.sigma[free] ** 2))


def _normal_equations(
    batch: PairBatch, fit: EpipolarFit, free: list[int]
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Blocks of the normal equations by numerical derivatives: poses (P, 5, 5), poses and lens (P, 5, N), lens
    (P, N, N), and the gradients (P, 5) and (P, N)."""
    rays, E = _Rays(batch, fit.lens), _essential(fit, batch)
    derivatives = _essential_derivatives(fit, batch).reshape(2 * len(batch), 5, 3, 3)
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


def _directions(fit: EpipolarFit, batch: PairBatch) -> FloatArray:
    """Directions (2 P, 3) of the translation for the two halves of the points of each pair."""
    directions = np.repeat(fit.direction[:, None], 2, axis=1)
    directions[batch.turns] = np.eye(3)[:2]
    return np.asarray(directions.reshape(-1, 3))


def _essential(fit: EpipolarFit, batch: PairBatch) -> FloatArray:
    """Essential matrices (2 P, 3, 3) for the two halves of the points of each pair."""
    return np.asarray(_skew(_directions(fit, batch)) @ np.repeat(fit.rotation, 2, axis=0))


def _essential_derivatives(fit: EpipolarFit, batch: PairBatch) -> FloatArray:
    """Derivatives (2 P, 5, 9) of the essential matrices by the steps of `EpipolarFit.moved`."""
    rotation = np.repeat(fit.rotation, 2, axis=0)
    d = _skew(_directions(fit, batch))
    moves = np.repeat(~batch.turns, 2)[:, None]
    u, v = (np.repeat(tangent, 2, axis=0) * moves for tangent in _tangents(fit.direction))
    by_rotation = [d @ generator @ rotation for generator in _GENERATORS]
    return np.stack([*by_rotation, _skew(u) @ rotation, _skew(v) @ rotation], axis=1).reshape(len(d), 5, 9)


def _rotations_alone(batch: PairBatch, lens: FloatArray) -> FloatArray:
    """Rotations (P, 3, 3) that best align the rays of each pair."""
    return rotations_of(*_Rays(batch, lens).homogeneous, batch.weight)


def _chosen(which: NDArray[np.bool_], a: EpipolarFit, b: EpipolarFit) -> EpipolarFit:
    """The poses of a where `which` (P,), else those of b; the lens is that of b."""
    return EpipolarFit(
        np.where(which[:, None, None], a.rotation, b.rotation),
        np.where(which[:, None], a.direction, b.direction),
        b.lens,
        np.where(which, a.loss, b.loss),
    )


def _damped(H: FloatArray, damping: FloatArray) -> FloatArray:
    """Matrices (P, N, N) with relative damping (P,) of their diagonals, and regularized."""
    diagonal = np.einsum("pii->pi", H)
    floor = 1e-9 * diagonal.max(axis=1, keepdims=True) + _SMALL
    return np.asarray(H + (damping[:, None] * diagonal + floor)[..., None] * np.eye(H.shape[1]))


def _solved(A: FloatArray, b: FloatArray) -> FloatArray:
    """Solutions (P, N) of linear systems (P, N, N), clipped to the maximum step."""
    return np.clip(np.linalg.solve(A, b[..., None])[..., 0], -_LARGEST_TURN, _LARGEST_TURN)


def _tangents(direction: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Two unit vectors (P, 3) orthogonal to each unit vector (P, 3) and to each other."""
    x, y, z = direction.T
    zero, along_x = np.zeros(len(x)), np.abs(x) < 0.7
    u = np.where(along_x[:, None], np.stack([zero, z, -y], axis=1), np.stack([-z, zero, x], axis=1))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    return u, (_skew(direction) @ u[..., None])[..., 0]


def _skew(v: FloatArray) -> FloatArray:
    """[v]x (P, 3, 3) of vectors (P, 3)."""
    return np.asarray(np.einsum("kij,pk->pij", _GENERATORS, v))

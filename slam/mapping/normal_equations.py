"""Normal equations of bundle adjustment, and their solution by the Schur complement.

The landmarks are eliminated, because their part of the Hessian is block diagonal. What is left is the reduced system of
the poses that move and, where it is estimated, the intrinsics.
Triggs et al., "Bundle adjustment - a modern synthesis", 2000, section 6.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.linalg import splu

from relocalizer.geometry import FloatArray
from slam.mapping.bundle_residuals import BY_INTRINSICS, BY_POINT, BY_POSE, BundleResiduals, Evaluation
from slam.mapping.bundle_unknowns import INTRINSICS

POSE = 6  # number of parameters of a pose
# Maximum number of moving poses for which the landmarks' rows are a dense matrix, which is faster for a window.
MAX_DENSE_ROWS = 24
# Maximum number of moving poses for which the reduced matrix is dense; that of a longer map is sparse.
MAX_DENSE_REDUCED = 400
FLOOR = 1e-6  # minimum damping of a parameter, relative to the largest of its block

Matrix = Any  # a dense array or a sparse one


class SingularSystemError(Exception):
    """The normal equations have no solution."""


@dataclass(frozen=True, slots=True, eq=False)
class Increment:
    """Increments of all poses (K, 6; zero for fixed ones), of the points (N, 3) and of the intrinsics (5,)."""

    poses: FloatArray
    points: FloatArray
    intrinsics: FloatArray


class Structure:
    """Which blocks of the normal equations each observation adds to; the same in every iteration.

    Attributes:
        free: (K,) row of each keyframe among the P poses that move; -1 for fixed ones.
        moving: rows of the F observations from poses that move.
        pose, point: (F,) pose, among those that move, and landmark of these.
    """

    def __init__(self, residuals: BundleResiduals, point_count: int) -> None:
        projections, self.free = residuals.projections, residuals.gauge.free
        pose = self.free[projections.keyframe]
        self.moving = np.flatnonzero(pose >= 0)
        self.pose, self.point = pose[self.moving], projections.point[self.moving]
        self.pose_count, self.point_count = int((self.free >= 0).sum()), point_count
        self.sum_by_point = _summation(projections.point, point_count)
        self.sum_by_pose = _summation(self.pose, self.pose_count)
        self._starts = np.searchsorted(self.point, np.arange(point_count + 1))

    def rows_of(self, blocks: FloatArray) -> Matrix:
        """Matrix (3 N, 6 P) of blocks (F, 3, 6) of the observations from moving poses."""
        shape = (3 * self.point_count, POSE * self.pose_count)
        if self.pose_count > MAX_DENSE_ROWS:
            return sparse.bsr_array((blocks, self.pose, self._starts), shape=shape)
        dense = np.zeros((self.point_count, 3, self.pose_count, POSE))
        dense[self.point, :, self.pose] = blocks  # a keyframe observes a landmark once
        return dense.reshape(shape)

    def matrix_of(self, i: NDArray[np.int64], j: NDArray[np.int64], blocks: FloatArray) -> Matrix:
        """Matrix (6 P, 6 P) with blocks (B, 6, 6) at the poses (B,) i and j added up; those of fixed poses left out."""
        moves = (i >= 0) & (j >= 0)
        i, j, blocks, count = i[moves], j[moves], blocks[moves], self.pose_count
        shape = (POSE * count, POSE * count)
        if count <= MAX_DENSE_REDUCED:
            dense = np.zeros((count, count, POSE, POSE))
            np.add.at(dense, (i, j), blocks)
            return dense.transpose(0, 2, 1, 3).reshape(shape)
        rows = np.broadcast_to(POSE * i[:, None, None] + np.arange(POSE)[:, None], blocks.shape)
        columns = np.broadcast_to(POSE * j[:, None, None] + np.arange(POSE), blocks.shape)
        return sparse.coo_array((blocks.ravel(), (rows.ravel(), columns.ravel())), shape=shape).tocsr()


class NormalEquations:
    """H x = g, linearized at some values; x are the increments of moving poses, free intrinsics and points."""

    def __init__(self, structure: Structure, residuals: BundleResiduals, at: Evaluation) -> None:
        self._structure = structure
        self._free = residuals.intrinsics.free
        jacobian = residuals.projections.jacobian(at.unknowns, at.in_cam, at.observations, self._free)
        by_point = jacobian[:, :, BY_POINT].transpose(0, 2, 1) @ jacobian
        self._rows = by_point[structure.moving, :, BY_POSE]
        by_point = _sums(structure.sum_by_point, by_point)
        self._H_points, self._g_points = by_point[:, :, BY_POINT], -by_point[:, :, -1]
        self._intrinsics_rows = by_point[:, :, BY_INTRINSICS]
        moving = jacobian[structure.moving]
        by_pose = _sums(structure.sum_by_pose, moving[:, :, BY_POSE].transpose(0, 2, 1) @ moving)
        self._g_poses, self._border = -by_pose[:, :, -1], by_pose[:, :, BY_INTRINSICS]
        self._H_poses = self._pose_matrix(by_pose[:, :, BY_POSE], residuals, at)
        by_intrinsics = np.einsum("mri,mrj->ij", jacobian[:, :, BY_INTRINSICS], jacobian[:, :, 9:])
        weight = residuals.intrinsics.weight
        self._H_intrinsics = by_intrinsics[:, :-1] + np.diag(weight**2)
        self._g_intrinsics = -by_intrinsics[:, -1] - weight * residuals.intrinsics.residuals(at.unknowns)

    def solve(self, damping: float) -> Increment:
        """The increment with the diagonal of H multiplied by 1 + damping (Marquardt).

        Raises:
            SingularSystemError: there is no solution.
        """
        structure = self._structure
        diagonal = np.einsum("nii->ni", self._H_points)
        reduced = self._reduced(self._H_points + _damping(diagonal, damping)[:, :, None] * np.eye(3), damping)
        x = _solution(reduced.H, reduced.g)
        poses, of_free = np.split(x, [POSE * structure.pose_count])
        rest = reduced.g_points - reduced.rows @ poses - reduced.intrinsics_rows @ of_free
        points = (rest.reshape(-1, 1, 3) @ reduced.whitening)[:, 0]
        increments = np.zeros((len(structure.free), POSE))
        increments[structure.free >= 0] = poses.reshape(-1, POSE)
        intrinsics = np.zeros(INTRINSICS)
        intrinsics[self._free] = of_free
        return Increment(increments, points, intrinsics)

    def intrinsics_information(self, weak_point: float) -> FloatArray:
        """Information matrix (F, F) of the free intrinsics, with all other values marginalized.

        Args:
            weak_point: information of a weak prior of every point, for those that nothing else constrains.

        Raises:
            SingularSystemError: other values are not determined.
        """
        H = self._reduced(self._H_points + weak_point * np.eye(3), 0.0).H
        poses, free = np.split(np.arange(H.shape[0]), [POSE * self._structure.pose_count])
        border = H[poses][:, free]
        border, corner = (m.toarray() if sparse.issparse(m) else m for m in (border, H[free][:, free]))
        return np.asarray(corner - border.T @ _solution(H[poses][:, poses], border))

    def _pose_matrix(self, diagonal: FloatArray, residuals: BundleResiduals, at: Evaluation) -> Matrix:
        """The part (6 P, 6 P) of H of the poses; the gradients of pairs and range are added to `_g_poses`.

        Args:
            diagonal: (P, 6, 6) of the observations.
        """
        free, gauge = self._structure.free, residuals.gauge
        pairs = residuals.pairs.linearize(at.unknowns, at.pairs)
        each = np.arange(self._structure.pose_count)
        i, j, blocks = [each], [each], [diagonal]
        ends = ((free[residuals.pairs.i], pairs.by_i), (free[residuals.pairs.j], pairs.by_j))
        for k, J in ends:
            gradient = np.einsum("pri,pr->pi", J, pairs.residuals)
            np.add.at(self._g_poses, k[k >= 0], -gradient[k >= 0])
            for other, J_other in ends:
                i, j, blocks = [*i, k], [*j, other], [*blocks, J.transpose(0, 2, 1) @ J_other]
        if gauge.fixes_range:
            k, J = free[[gauge.far]], gauge.jacobian(at.unknowns)
            self._g_poses[k] -= J * gauge.residual(at.unknowns)
            i, j, blocks = [*i, k], [*j, k], [*blocks, np.outer(J, J)[None]]
        return self._structure.matrix_of(np.concatenate(i), np.concatenate(j), np.concatenate(blocks))

    def _reduced(self, H_points: FloatArray, damping: float) -> _Reduced:
        """The reduced system, with the landmarks' part of H replaced by `H_points` (N, 3, 3)."""
        structure, count = self._structure, self._structure.point_count
        try:
            whitening = lower_inverse(np.asarray(np.linalg.cholesky(H_points), dtype=np.float64))
        except np.linalg.LinAlgError as error:
            raise SingularSystemError("the position of a landmark is not determined") from error
        rows = structure.rows_of(whitening[structure.point] @ self._rows)
        intrinsics_rows = (whitening @ self._intrinsics_rows).reshape(3 * count, len(self._free))
        g_points = (whitening @ self._g_points[:, :, None]).ravel()
        added = _damping(self._H_poses.diagonal().reshape(-1, POSE), damping).ravel()
        product = rows.T @ rows
        if sparse.issparse(self._H_poses):
            H = self._H_poses + sparse.diags_array(added) - product
        else:
            H = self._H_poses - (product.toarray() if sparse.issparse(product) else product) + np.diag(added)
        g = self._g_poses.ravel() - rows.T @ g_points
        if len(self._free):
            border = self._border.reshape(-1, len(self._free)) - rows.T @ intrinsics_rows
            corner = (
                self._H_intrinsics
                + damping * np.diag(self._H_intrinsics.diagonal())
                - intrinsics_rows.T @ intrinsics_rows
            )
            H = _bordered(H, border, corner)
            g = np.concatenate([g, self._g_intrinsics - intrinsics_rows.T @ g_points])
        return _Reduced(H, g, whitening, rows, intrinsics_rows, g_points)


@dataclass(frozen=True, slots=True, eq=False)
class _Reduced:
    """The reduced system H x = g, and what the increments of the landmarks are computed from.

    Attributes:
        whitening: (N, 3, 3) inverse Cholesky factors of the landmarks' blocks of the Hessian.
        rows, intrinsics_rows, g_points: (3 N, 6 P), (3 N, F) and (3 N,), multiplied by these.
    """

    H: Matrix
    g: FloatArray
    whitening: FloatArray
    rows: Matrix
    intrinsics_rows: FloatArray
    g_points: FloatArray


def lower_inverse(L: FloatArray) -> FloatArray:
    """Inverses (N, 3, 3) of lower triangular matrices (N, 3, 3)."""
    inverse = np.zeros_like(L)
    a, b, c = 1.0 / L[:, 0, 0], 1.0 / L[:, 1, 1], 1.0 / L[:, 2, 2]
    inverse[:, 0, 0], inverse[:, 1, 1], inverse[:, 2, 2] = a, b, c
    inverse[:, 1, 0] = -L[:, 1, 0] * a * b
    inverse[:, 2, 1] = -L[:, 2, 1] * b * c
    inverse[:, 2, 0] = (L[:, 1, 0] * L[:, 2, 1] * b - L[:, 2, 0]) * a * c
    return inverse


def _damping(diagonal: FloatArray, damping: float) -> FloatArray:
    """Terms to add to the diagonals (B, D) of blocks; one for a block that nothing constrains, which then stays."""
    largest = diagonal.max(axis=1, keepdims=True, initial=0.0)
    return np.where(largest > 0, damping * np.maximum(diagonal, FLOOR * largest), 1.0)


def _summation(rows: NDArray[np.int64], count: int) -> Matrix:
    """Sparse matrix (count, M) that adds up terms; `rows` (M,) are the rows of the terms."""
    return sparse.csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(count, len(rows)))


def _sums(summation: Matrix, terms: FloatArray) -> FloatArray:
    """Sums (count, I, J) of terms (M, I, J)."""
    _, i, j = terms.shape
    return np.asarray(summation @ terms.reshape(len(terms), i * j)).reshape(-1, i, j)


def _bordered(matrix: Matrix, border: FloatArray, corner: FloatArray) -> Matrix:
    """A symmetric matrix extended by more columns and rows."""
    if sparse.issparse(matrix):
        return sparse.block_array([[matrix, border], [border.T, corner]]).tocsr()
    return np.block([[matrix, border], [border.T, corner]])


def _solution(matrix: Matrix, right: FloatArray) -> FloatArray:
    """Solution of a symmetric positive definite system."""
    try:
        if sparse.issparse(matrix):
            options = {"SymmetricMode": True}
            factor = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
            return np.asarray(factor.solve(right))
        return np.asarray(cho_solve(cho_factor(matrix, lower=True, check_finite=False), right, check_finite=False))
    except (np.linalg.LinAlgError, RuntimeError) as error:  # RuntimeError: SuperLU's for a singular matrix
        raise SingularSystemError("the poses are not determined") from error

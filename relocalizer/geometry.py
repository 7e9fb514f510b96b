"""Rigid and similarity transforms, angles between them, and conversions.

Rigid transforms are `scipy.spatial.transform.RigidTransform`. A name `a_from_b` is a transform from
coordinates in b to coordinates in a; in a product, neighboring names are equal.
Camera axes: x right, y down, z forward. Radians everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import RigidTransform, Rotation

FloatArray = NDArray[np.float64]

MAX_COORDINATE = 1e12  # upper bound of the absolute value of a coordinate in a map, and of a scale
ORTHONORMAL = 1e-14  # maximum error of a product of two rows of a rotation matrix


def frozen_array(name: str, value: ArrayLike, shape: tuple[int | None, ...]) -> FloatArray:
    """A read-only float64 copy of `value`, checked for shape and finiteness.

    Args:
        name: name of the value in the error message, such as "PairEstimate.i_from_j_rotation".
        shape: expected shape; None is any length.

    Raises:
        ValueError: the shape differs, or an entry is NaN or infinite.
    """
    array = np.array(value, dtype=np.float64)
    fits = array.ndim == len(shape) and all(
        want is None or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = "(" + ", ".join("N" if n is None else str(n) for n in shape) + ")"
        raise ValueError(f"{name}: expected shape {wanted}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: holds NaN or infinity")
    array.setflags(write=False)
    return array


def rigid(rotation: ArrayLike, translation: ArrayLike) -> RigidTransform:
    """The transform x -> rotation @ x + translation, from a (3, 3) matrix and a (3,) vector.

    A matrix that is no rotation, which rounding may leave, is replaced by one near it.
    """
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    return _rigid_of(matrix)


def product(a_from_b: RigidTransform, b_from_c: RigidTransform) -> RigidTransform:
    """a_from_c; twice as fast as the operator, which normalizes rotations that need none."""
    return _rigid_of(np.asarray(a_from_b.as_matrix() @ b_from_c.as_matrix()))


def _rigid_of(matrix: FloatArray) -> RigidTransform:
    """The transform of a (4, 4) matrix. SciPy's normalization of its rotation takes most of the time of making one."""
    return RigidTransform(matrix, normalize=not _is_rotation(matrix))


def _is_rotation(matrix: FloatArray) -> bool:
    """Whether the rows of the (3, 3) part are orthonormal and right-handed; on Python's numbers, which is fastest."""
    (a, b, c, _), (d, e, f, _), (g, h, i, _) = matrix[:3].tolist()
    products = (a * d + b * e + c * f, a * g + b * h + c * i, d * g + e * h + f * i)
    lengths = (a * a + b * b + c * c - 1.0, d * d + e * e + f * f - 1.0, g * g + h * h + i * i - 1.0)
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return determinant > 0 and all(abs(error) < ORTHONORMAL for error in (*products, *lengths))  # False for NaN


def identity() -> RigidTransform:
    """The identity transform."""
    return RigidTransform.identity()


def rotation_matrix(a_from_b: RigidTransform) -> FloatArray:
    """The (3, 3) rotation of a rigid transform."""
    return np.array(a_from_b.as_matrix()[:3, :3])  # fifty times faster than by way of its `rotation`


def translation_of(a_from_b: RigidTransform) -> FloatArray:
    """The (3,) translation of a rigid transform: the position of b's origin in a."""
    return np.asarray(a_from_b.translation, dtype=np.float64)


def apply_inverse(a_from_b: RigidTransform, points_a: FloatArray) -> FloatArray:
    """Points (N, 3) in a to points in b; ten times as fast as by way of the inverse for a few hundred points."""
    return np.asarray((points_a - translation_of(a_from_b)) @ rotation_matrix(a_from_b))


def rotation_angle(rotation: ArrayLike) -> float:
    """Angle of a (3, 3) rotation, radians in [0, pi]; accurate near zero, where arccos of the trace is not."""
    R = np.asarray(rotation, dtype=np.float64)
    axis = np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]])
    return float(np.arctan2(np.linalg.norm(axis), np.trace(R) - 1.0))


def direction_angle(a: ArrayLike, b: ArrayLike) -> float:
    """Angle between two non-zero vectors, radians in [0, pi]; accurate near zero and near pi."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(np.arctan2(np.linalg.norm(np.cross(a, b)), float(a @ b)))


def inner_products(a: FloatArray, b: FloatArray) -> FloatArray:
    """Inner products (...) of vectors (..., D); two to three times faster than `sum` for few components."""
    return np.asarray(np.einsum("...d,...d->...", a, b))


def skew(v: ArrayLike) -> FloatArray:
    """The (3, 3) matrix [v]x with [v]x w = v x w."""
    x, y, z = np.asarray(v, dtype=np.float64)
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def exp_so3(omega: ArrayLike) -> FloatArray:
    """Rotation matrix (3, 3) of a rotation vector (3,), radians, by its quaternion; NaN if that is not finite."""
    x, y, z = np.asarray(omega, dtype=np.float64).tolist()
    angle = math.hypot(x, y, z)
    if not math.isfinite(angle):
        return np.full((3, 3), np.nan)
    # Half of sinc: below 1e-3 its series, whose next term is less than the rounding.
    half = math.sin(0.5 * angle) / angle if angle > 1e-3 else 0.5 - angle**2 / 48.0 + angle**4 / 3840.0
    x, y, z, w = half * x, half * y, half * z, math.cos(0.5 * angle)
    return np.array(
        [
            [1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - z * w), 2.0 * (x * z + y * w)],
            [2.0 * (x * y + z * w), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - x * w)],
            [2.0 * (x * z - y * w), 2.0 * (y * z + x * w), 1.0 - 2.0 * (x * x + y * y)],
        ]
    )


def exp_so3_of_each(omega: FloatArray) -> FloatArray:
    """Rotation matrices (N, 3, 3) of rotation vectors (N, 3), radians."""
    return np.asarray(Rotation.from_rotvec(omega).as_matrix(), dtype=np.float64).reshape(-1, 3, 3)


def log_so3(rotation: ArrayLike) -> FloatArray:
    """Rotation vector (3,) of a rotation matrix (3, 3), radians."""
    return np.asarray(Rotation.from_matrix(np.asarray(rotation, dtype=np.float64)).as_rotvec(), dtype=np.float64)


def nearest_rotation(matrix: ArrayLike) -> FloatArray:
    """The rotation (3, 3) nearest to a matrix in the Frobenius norm (orthogonal Procrustes)."""
    U, _, Vt = np.linalg.svd(np.asarray(matrix, dtype=np.float64))
    return np.asarray(U @ np.diag([1.0, 1.0, np.linalg.det(U @ Vt)]) @ Vt, dtype=np.float64)


def quaternion_xyzw_from_rotation(rotation: ArrayLike) -> FloatArray:
    """Unit quaternions (..., 4), ordered x, y, z, w with w >= 0 (TUM file format), of rotations (..., 3, 3)."""
    return np.asarray(Rotation.from_matrix(np.asarray(rotation)).as_quat(canonical=True), dtype=np.float64)


def quaternion_xyzw_of(a_from_b: RigidTransform) -> tuple[float, float, float, float]:
    """Unit quaternion x, y, z, w with w >= 0 of one rigid transform; fifty times as fast as by way of its `rotation`.

    By the largest of the four components, as Shepperd, "Quaternion from rotation matrix", 1978.
    """
    (a, b, c), (d, e, f), (g, h, i) = rotation_matrix(a_from_b).tolist()
    _, x, y, z, w = max(
        (a - e - i, 1.0 + a - e - i, b + d, c + g, h - f),
        (e - a - i, b + d, 1.0 + e - a - i, f + h, c - g),
        (i - a - e, c + g, f + h, 1.0 + i - a - e, d - b),
        (a + e + i, h - f, c - g, d - b, 1.0 + a + e + i),
        key=lambda candidate: candidate[0],
    )
    length = math.copysign(math.hypot(x, y, z, w), w)
    return x / length, y / length, z / length, w / length


def rotation_from_quaternion_xyzw(quaternion: ArrayLike) -> FloatArray:
    """Rotations (..., 3, 3) of quaternions (..., 4) ordered x, y, z, w; nonzero, of any norm."""
    return np.asarray(Rotation.from_quat(np.asarray(quaternion, dtype=np.float64)).as_matrix(), dtype=np.float64)


def rotation_from_quaternion_wxyz(quaternion: ArrayLike) -> FloatArray:
    """Rotations (..., 3, 3) of quaternions (..., 4) ordered w, x, y, z (EuRoC and COLMAP file formats)."""
    q = np.asarray(quaternion, dtype=np.float64)
    return np.asarray(Rotation.from_quat(q, scalar_first=True).as_matrix(), dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Similarity:
    """A similarity a_from_b: x_a = scale * rotation @ x_b + translation.

    The type of a keyframe's pose: `translation` is the camera center in map units, and `scale` converts the
    keyframe's own units (of its landmark depths and of the frames stored relative to it) to map units.
    """

    rotation: FloatArray
    translation: FloatArray
    scale: float = 1.0
    _rigid: RigidTransform | None = field(default=None, init=False, repr=False)  # computed on first access
    _affine: FloatArray | None = field(default=None, init=False, repr=False)  # computed on first access

    def __post_init__(self) -> None:
        object.__setattr__(self, "rotation", frozen_array("Similarity.rotation", self.rotation, (3, 3)))
        object.__setattr__(self, "translation", frozen_array("Similarity.translation", self.translation, (3,)))
        object.__setattr__(self, "scale", float(self.scale))
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"Similarity.scale: expected a positive number, got {self.scale}")

    @staticmethod
    def identity() -> Similarity:
        return Similarity(np.eye(3), np.zeros(3))

    @staticmethod
    def from_rigid(a_from_b: RigidTransform, scale: float = 1.0) -> Similarity:
        return Similarity(rotation_matrix(a_from_b), translation_of(a_from_b), scale)

    @property
    def is_in_range(self) -> bool:
        """Whether a map can hold it: coordinates below `MAX_COORDINATE`, and the scale between its inverse and it.

        Products of a few similarities in this range, and their inverses, are finite.
        """
        near = bool((np.abs(self.translation) < MAX_COORDINATE).all())
        return near and 1 / MAX_COORDINATE < self.scale < MAX_COORDINATE

    def __matmul__(self, b_from_c: Similarity) -> Similarity:
        """a_from_b @ b_from_c -> a_from_c."""
        return Similarity(
            self.rotation @ b_from_c.rotation,
            self.scale * self.rotation @ b_from_c.translation + self.translation,
            self.scale * b_from_c.scale,
        )

    def inverse(self) -> Similarity:
        """b_from_a."""
        back = self.rotation.T / self.scale
        return Similarity(self.rotation.T, -back @ self.translation, 1.0 / self.scale)

    def apply(self, points: ArrayLike) -> FloatArray:
        """Points (..., 3) in b to points in a."""
        points = np.asarray(points, dtype=np.float64)
        return np.asarray(self.scale * points @ self.rotation.T + self.translation)

    def compose_rigid(self, b_from_c: RigidTransform) -> RigidTransform:
        """The rigid pose of c in a, where c is stored relative to b in b's own units."""
        return rigid(self.rotation @ rotation_matrix(b_from_c), self.apply(translation_of(b_from_c)))

    @property
    def rigid(self) -> RigidTransform:
        """The pose without its scale."""
        if self._rigid is None:
            object.__setattr__(self, "_rigid", rigid(self.rotation, self.translation))
        assert self._rigid is not None
        return self._rigid

    @property
    def affine(self) -> FloatArray:
        """The matrix (3, 4) that maps homogeneous points."""
        if self._affine is None:
            matrix = np.column_stack([self.scale * self.rotation, self.translation])
            object.__setattr__(self, "_affine", matrix)
        assert self._affine is not None
        return self._affine

    def is_close(self, other: Similarity, *, atol: float = 1e-9) -> bool:
        return (
            np.allclose(self.rotation, other.rotation, atol=atol)
            and np.allclose(self.translation, other.translation, atol=atol)
            and abs(self.scale - other.scale) <= atol
        )


def align_points(points_a: ArrayLike, points_b: ArrayLike, *, with_scale: bool = True) -> Similarity:
    """The similarity a_from_b that minimizes the squared distances between corresponding points.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991,
    equations 34-43.

    Args:
        points_a, points_b: (N, 3) each, N >= 3.
        with_scale: False keeps scale at 1 (a rigid alignment).

    Raises:
        ValueError: fewer than three points, shapes that differ, or all points of b at one place.
    """
    a, b = np.asarray(points_a, dtype=np.float64), np.asarray(points_b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 3 or len(a) < 3:
        raise ValueError(f"align_points: expected two (N, 3) arrays with N >= 3, got {a.shape} and {b.shape}")
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    centered_a, centered_b = a - mean_a, b - mean_b
    variance_b = float((centered_b**2).sum() / len(b))
    if np.abs(centered_b).max() <= 1e-12 * np.abs(b).max():  # the mean of equal numbers is off by rounding
        raise ValueError("align_points: all points of b are at one place")
    U, singular, Vt = np.linalg.svd(centered_a.T @ centered_b / len(a))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])
    rotation = U @ np.diag(signs) @ Vt
    scale = float(singular @ signs) / variance_b if with_scale else 1.0
    return Similarity(rotation, mean_a - scale * rotation @ mean_b, scale)


def stack_matrices(transforms: Sequence[RigidTransform]) -> FloatArray:
    """(N, 4, 4) matrices of N rigid transforms."""
    return np.array([t.as_matrix() for t in transforms], dtype=np.float64).reshape(-1, 4, 4)

"""Motion averaging: the pose of one camera from its relative poses to several known cameras.

Each pair (i, j) of a known camera i and the unknown camera j gives the rotation of j and the direction from i to j,
but no length. Every pair therefore gives a full rotation, and a ray from i on which j lies. The rotations are averaged
and the rays intersected, both robustly, because some pair estimates are outliers.

Rotations: R. Hartley, J. Trumpf, Y. Dai, H. Li, "Rotation averaging", IJCV 2013: the chordal mean (section 5.3)
and the geodesic median by Weiszfeld's iteration on SO(3) (section 6, "L1 rotation averaging"). They work on
matrices, so the two signs of a quaternion cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform, Rotation

from relocalizer.config import AveragingConfig
from relocalizer.geometry import FloatArray, exp_so3, nearest_rotation, rigid, rotation_matrix, translation_of
from relocalizer.interfaces import PairEstimate

GATE_IN_SIGMAS = 3.0  # inlier threshold, in standard deviations
# Minimum standard deviations: the poses of the known cameras have errors that a pair's sigmas do not include.
LEAST_ROTATION_SIGMA_RAD = float(np.radians(0.2))
LEAST_DIRECTION_SIGMA_RAD = float(np.radians(0.5))
LEAST_WEIGHT = 0.05  # minimum weight of a pair; with zero confidence it can still decide a tie
_MEDIAN_ROUNDS = 20  # maximum number of Weiszfeld iterations
_RAY_ROUNDS = 20  # maximum number of reweighted least-squares iterations
_MIN_STEP_RAD = 1e-6  # convergence threshold of the median, and minimum distance from a sample in its weights
_PARALLEL = 1e-9  # sine of the angle below which two rays are parallel and their intersection is undefined


@dataclass(frozen=True, slots=True, eq=False)
class RelativePoseObservation:
    """Pose of a known camera i, and the relative pose of the unknown camera j: `estimate` is i_from_j.

    An estimate of the pair (j, i) has to be reversed first.
    """

    world_from_i: RigidTransform
    estimate: PairEstimate


@dataclass(frozen=True, slots=True, eq=False)
class RotationAverage:
    """An averaged rotation (3, 3), its inliers (K,), and its standard deviation per axis."""

    rotation: FloatArray
    inliers: NDArray[np.bool_]
    sigma_rad: float


@dataclass(frozen=True, slots=True, eq=False)
class RayIntersection:
    """The intersection point (3,) of rays, its covariance (3, 3), and the inlier rays (K,)."""

    point: FloatArray
    covariance: FloatArray
    inliers: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class NoIntersection:
    """Rays without a well-constrained intersection; `reason` is a sentence with the value and the threshold."""

    reason: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AveragedPose:
    """A pose averaged from K relative poses.

    Attributes:
        rotation: world_from_cam (3, 3). rotation_sigma_rad: standard deviation per axis.
        position: camera center (3,) in map units; None when it is not observable.
        position_covariance: (3, 3) in the world's axes.
        rotation_inliers, position_inliers: (K,) inliers of the rotation and of the position.
        position_unknown: reason why the position is None.
    """

    rotation: FloatArray
    rotation_sigma_rad: float
    rotation_inliers: NDArray[np.bool_]
    position: FloatArray | None
    position_covariance: FloatArray | None
    position_inliers: NDArray[np.bool_]
    position_unknown: str = ""

    @property
    def world_from_cam(self) -> RigidTransform | None:
        return None if self.position is None else rigid(self.rotation, self.position)

    @property
    def covariance(self) -> FloatArray | None:
        """Covariance (6, 6) of a left perturbation (rotation, translation) of cam_from_world, as in `PoseFit`."""
        if self.position_covariance is None:
            return None
        covariance = np.zeros((6, 6))
        covariance[:3, :3] = self.rotation_sigma_rad**2 * np.eye(3)
        # A left translation dt of cam_from_world moves the camera center by -R dt.
        covariance[3:, 3:] = self.rotation.T @ self.position_covariance @ self.rotation
        return covariance


def average_pose(
    observations: Sequence[RelativePoseObservation], config: AveragingConfig | None = None
) -> AveragedPose:
    """The pose of one camera from relative poses to known cameras.

    A relative pose with an outlier rotation is excluded from the position too, because a pair fails as a whole.

    Raises:
        ValueError: there are no relative poses.
    """
    if not observations:
        raise ValueError("average_pose: no sightings")
    config = config or AveragingConfig()
    rotations = np.array([rotation_matrix(s.world_from_i) @ s.estimate.i_from_j_rotation for s in observations])
    weights = np.array([max(s.estimate.confidence, LEAST_WEIGHT) for s in observations])
    sigmas = np.array([s.estimate.rotation_sigma_rad for s in observations])
    average = average_rotations(rotations, sigmas, weights, gate_rad=float(np.radians(config.rotation_gate_deg)))
    position = _average_position(observations, average.inliers, weights, config)
    position_inliers = np.zeros(len(observations), dtype=bool)
    if isinstance(position, RayIntersection):
        position_inliers[_with_direction(observations, average.inliers)] = position.inliers
    found = position if isinstance(position, RayIntersection) else None
    return AveragedPose(
        rotation=average.rotation,
        rotation_sigma_rad=average.sigma_rad,
        rotation_inliers=average.inliers,
        position=None if found is None else found.point,
        position_covariance=None if found is None else found.covariance,
        position_inliers=position_inliers,
        position_unknown=position.reason if isinstance(position, NoIntersection) else "",
    )


def _with_direction(observations: Sequence[RelativePoseObservation], among: NDArray[np.bool_]) -> NDArray[np.int64]:
    known = [s.estimate.i_from_j_direction is not None for s in observations]
    return np.flatnonzero(among & np.array(known))


def _average_position(
    observations: Sequence[RelativePoseObservation],
    among: NDArray[np.bool_],
    weights: FloatArray,
    config: AveragingConfig,
) -> RayIntersection | NoIntersection:
    rows = _with_direction(observations, among)
    if len(rows) < 2:
        return NoIntersection(f"{len(rows)} of {len(observations)} views give a direction, 2 needed for a position")
    rays = [(observations[k].world_from_i, observations[k].estimate) for k in rows]
    return intersect_rays(
        np.array([translation_of(pose) for pose, _ in rays]),
        np.array([rotation_matrix(pose) @ estimate.i_from_j_direction for pose, estimate in rays]),
        np.array([estimate.direction_sigma_rad for _, estimate in rays]),
        weights[rows],
        gate_rad=float(np.radians(config.direction_gate_deg)),
        max_relative_sigma=config.max_relative_sigma,
    )


# --- rotations ------------------------------------------------------------------------------------------


def average_rotations(
    rotations: FloatArray, sigmas_rad: FloatArray, weights: FloatArray | None = None, *, gate_rad: float
) -> RotationAverage:
    """Robust average of `rotations` (K, 3, 3).

    The sample with the least robust cost initializes the geodesic median of all samples, whose inliers are averaged by
    a chordal mean with inverse-variance weights.

    Args:
        sigmas_rad: (K,) standard deviations per axis.
        weights: (K,) weights of the samples in the median; None is 1.
        gate_rad: minimum inlier threshold; the threshold is three sigmas where that is larger.
    """
    weights = np.ones(len(rotations)) if weights is None else weights
    sigmas = np.maximum(sigmas_rad, LEAST_ROTATION_SIGMA_RAD)
    gates = np.maximum(gate_rad, GATE_IN_SIGMAS * sigmas)
    angles = rotation_angles(rotations[:, None], rotations[None])
    cost = (weights * np.minimum(angles / gates, 1.0) ** 2).sum(axis=1)
    near = angles[int(cost.argmin())] < gates
    start = chordal_mean(rotations[near], weights[near])
    median = geodesic_median(rotations, weights, start)
    inliers = rotation_angles(rotations, median) < gates
    if not inliers.any():  # the median lies between two clusters, near neither
        inliers, median = near, start
    information = weights[inliers] / sigmas[inliers] ** 2
    mean = chordal_mean(rotations[inliers], information)
    return RotationAverage(mean, inliers, _sigma_of_mean(rotations[inliers], mean, sigmas[inliers], information))


def _sigma_of_mean(rotations: FloatArray, mean: FloatArray, sigmas: FloatArray, information: FloatArray) -> float:
    """Standard deviation of the mean per axis, inflated when the residuals exceed the sigmas (reduced chi-square)."""
    weights = information / information.sum()
    formal = float(np.sqrt((weights**2 * sigmas**2).sum()))
    if len(rotations) < 2:
        return formal
    reduced_chi2 = float(((rotation_angles(rotations, mean) / sigmas) ** 2).sum()) / (3 * (len(rotations) - 1))
    return formal * float(np.sqrt(max(reduced_chi2, 1.0)))


def rotation_angles(a: FloatArray, b: FloatArray) -> FloatArray:
    """Angles between rotations (..., 3, 3), radians; computed from the chord, which is accurate near zero."""
    chord = np.linalg.norm(a - b, axis=(-2, -1)) / np.sqrt(8.0)
    return np.asarray(2.0 * np.arcsin(np.minimum(chord, 1.0)), dtype=np.float64)


def chordal_mean(rotations: FloatArray, weights: FloatArray) -> FloatArray:
    """The rotation (3, 3) with the least weighted sum of squared chords to rotations (K, 3, 3)."""
    return nearest_rotation(np.einsum("k,kij->ij", weights, rotations))


def geodesic_median(rotations: FloatArray, weights: FloatArray, start: FloatArray) -> FloatArray:
    """The rotation (3, 3) with the least weighted sum of angles to rotations (K, 3, 3), found from `start`."""
    median = start
    for _ in range(_MEDIAN_ROUNDS):
        steps = Rotation.from_matrix(rotations @ median.T).as_rotvec().reshape(-1, 3)
        weight = weights / np.maximum(np.linalg.norm(steps, axis=1), _MIN_STEP_RAD)
        step = (weight[:, None] * steps).sum(axis=0) / weight.sum()
        median = exp_so3(step) @ median
        if np.linalg.norm(step) < _MIN_STEP_RAD:
            break
    return median


# --- rays -----------------------------------------------------------------------------------------------


def intersect_rays(
    centers: FloatArray,
    directions: FloatArray,
    sigmas_rad: FloatArray,
    weights: FloatArray | None = None,
    *,
    gate_rad: float,
    max_relative_sigma: float,
) -> RayIntersection | NoIntersection:
    """Robust intersection of rays (half lines, because a direction points away from the camera).

    The intersection of every two rays is a hypothesis, scored by its angles to all rays; the best one initializes
    iteratively reweighted least squares (Tukey) on the angles.

    Args:
        centers, directions: (K, 3) each, K >= 2, directions of unit length.
        sigmas_rad: (K,) standard deviations of the directions per axis.
        weights: (K,) weights of the rays; None is 1.
        gate_rad: minimum inlier threshold; the threshold is three sigmas where that is larger.
        max_relative_sigma: maximum standard deviation of the point along its least certain axis, as a fraction of its
            distance; exceeded when the rays are nearly collinear.
    """
    weights = np.ones(len(centers)) if weights is None else weights
    sigmas = np.maximum(sigmas_rad, LEAST_DIRECTION_SIGMA_RAD)
    gates = np.maximum(gate_rad, GATE_IN_SIGMAS * sigmas)
    proposals = _pairwise_intersections(centers, directions)
    if len(proposals) == 0:
        return _no_intersection(directions)
    cost = (weights * np.minimum(_angles_to(proposals, centers, directions) / gates, 1.0) ** 2).sum(axis=1)
    point = proposals[int(cost.argmin())]
    for _ in range(_RAY_ROUNDS):
        off = _angles_to(point[None], centers, directions)[0] / gates
        tukey = np.where(off < 1.0, (1.0 - off**2) ** 2, 0.0)
        information = _information(point, centers, directions, sigmas, weights * tukey)
        moved = _least_squares(information, centers)
        if moved is None:
            break
        step, point = float(np.linalg.norm(moved - point)), moved
        if step < 1e-12 * (1.0 + float(np.linalg.norm(point))):
            break
    return _accepted(point, centers, directions, sigmas, weights, gates, max_relative_sigma)


def _accepted(
    point: FloatArray,
    centers: FloatArray,
    directions: FloatArray,
    sigmas: FloatArray,
    weights: FloatArray,
    gates: FloatArray,
    max_relative_sigma: float,
) -> RayIntersection | NoIntersection:
    """The point with its covariance and inliers, or the reason why it is rejected."""
    off = _angles_to(point[None], centers, directions)[0]
    inliers = off < gates
    count = int(inliers.sum())
    if count < 2:
        return NoIntersection(f"{count} of {len(centers)} rays agree with one position, 2 needed")
    parts = _information(point, centers[inliers], directions[inliers], sigmas[inliers], np.ones(count))
    distance = float(np.median(np.linalg.norm(centers[inliers] - point, axis=1)))
    values, axes = np.linalg.eigh(parts.sum(axis=0))
    excess = max(1.0, float(((off[inliers] / sigmas[inliers]) ** 2).sum()) / max(2 * count - 3, 1))
    worst = np.inf if values[0] <= 0 else float(np.sqrt(excess / values[0]))
    if not worst < max_relative_sigma * distance:
        along = "unknown" if worst > 10 * distance else f"known to {worst / distance:.0%} of the distance"
        return NoIntersection(
            f"{count} rays lie within {_angle_off_one_line(directions[inliers]):.1f} deg of one line: "
            f"the position along it is {along} (limit {max_relative_sigma:.0%})"
        )
    return RayIntersection(point, excess * (axes / values) @ axes.T, inliers)


def _pairwise_intersections(centers: FloatArray, directions: FloatArray) -> FloatArray:
    """Intersection points (H, 3) of all pairs of rays that meet in front of both cameras, nearer to the shorter ray."""
    a, b = np.triu_indices(len(centers), k=1)
    u, v, between = directions[a], directions[b], centers[b] - centers[a]
    cosine = (u * v).sum(axis=1)
    squared_sine = 1.0 - cosine**2
    squared_sine = np.where(squared_sine > _PARALLEL**2, squared_sine, np.nan)
    along_u, along_v = (between * u).sum(axis=1), (between * v).sum(axis=1)
    s = (along_u - cosine * along_v) / squared_sine
    t = (cosine * along_u - along_v) / squared_sine
    front = (s > 0) & (t > 0)
    s, t = s[front][:, None], t[front][:, None]
    on_a, on_b = centers[a[front]] + s * u[front], centers[b[front]] + t * v[front]
    return np.asarray((t * on_a + s * on_b) / (s + t))


def _angles_to(points: FloatArray, centers: FloatArray, directions: FloatArray) -> FloatArray:
    """Angles (H, K) between each ray and the line from its center to each point; pi behind the center."""
    sight = points[:, None] - centers[None]
    across = np.linalg.norm(np.cross(sight, directions[None]), axis=2)
    return np.asarray(np.arctan2(across, (sight * directions[None]).sum(axis=2)))


def _information(
    point: FloatArray, centers: FloatArray, directions: FloatArray, sigmas: FloatArray, weights: FloatArray
) -> FloatArray:
    """Information matrices (K, 3, 3) of the point from each ray: across the ray, with sigma times the distance."""
    squared_distance = np.maximum(((point - centers) ** 2).sum(axis=1), 1e-300)
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    return np.asarray(across * (weights / (sigmas**2 * squared_distance))[:, None, None])


def _least_squares(information: FloatArray, centers: FloatArray) -> FloatArray | None:
    """The least-squares intersection (3,) of the rays; None when it is not unique."""
    total = information.sum(axis=0)
    if not np.linalg.eigvalsh(total)[0] > 1e-12 * np.trace(total):
        return None
    return np.asarray(np.linalg.solve(total, np.einsum("kij,kj->i", information, centers)))


def _no_intersection(directions: FloatArray) -> NoIntersection:
    spread = _angle_off_one_line(directions)
    if spread < 0.1:
        return NoIntersection(f"{len(directions)} rays lie within {spread:.1f} deg of one line: no position along it")
    return NoIntersection(f"no two of {len(directions)} rays meet in front of their cameras")


def _angle_off_one_line(directions: FloatArray) -> float:
    """Largest angle between a ray and the best-fitting axis of all rays, ignoring their signs, degrees."""
    line = np.linalg.svd(directions)[2][0]
    return float(np.degrees(np.arcsin(np.clip(np.linalg.norm(np.cross(directions, line), axis=1).max(), 0.0, 1.0))))

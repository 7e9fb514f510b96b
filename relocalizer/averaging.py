"""Motion averaging: one camera's pose from what several known cameras say of it.

Each pair (i, j) of a known camera i and the unknown camera j says how j is turned and in which direction it lies
seen from i, never how far. Every pair therefore gives the whole rotation, and half of a line on which j lies. The
rotations are averaged, the rays intersected; both robustly, for some pairs are wrong and do not say so.

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

GATE_IN_SIGMAS = 3.0
# Poses of references have errors of their own, which no pair's sigma knows of.
LEAST_ROTATION_SIGMA_RAD = float(np.radians(0.2))
LEAST_DIRECTION_SIGMA_RAD = float(np.radians(0.5))
LEAST_WEIGHT = 0.05  # of a pair without any confidence: it may still be the one that settles a tie
_MEDIAN_ROUNDS = 20
_RAY_ROUNDS = 20
_AT_A_SAMPLE_RAD = 1e-6
_PARALLEL = 1e-9  # sine of an angle; below it two rays have no point in common that could be computed


@dataclass(frozen=True, slots=True, eq=False)
class RelativePoseObservation:
    """A camera of known pose, and what it says of the unknown camera j: `estimate` is i_from_j of the pair (i, j).

    An estimate of the pair (j, i) has to be reversed first.
    """

    world_from_i: RigidTransform
    estimate: PairEstimate


@dataclass(frozen=True, slots=True, eq=False)
class RotationAverage:
    """A rotation (3, 3), who agrees with it (K,), and its standard deviation per axis."""

    rotation: FloatArray
    agrees: NDArray[np.bool_]
    sigma_rad: float


@dataclass(frozen=True, slots=True, eq=False)
class RayIntersection:
    """Where rays meet (3,), the covariance of it (3, 3), and the rays that agree (K,)."""

    point: FloatArray
    covariance: FloatArray
    agrees: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class NoIntersection:
    """Rays that do not tell a point; `reason` is a sentence with the number and the threshold."""

    reason: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AveragedPose:
    """A pose from K sightings.

    Attributes:
        rotation: world_from_cam (3, 3). rotation_sigma_rad: per axis.
        position: camera center (3,) in map units, or None, and then `position_unknown` says why.
        position_covariance: (3, 3) in the world's axes.
        rotation_agrees, position_agrees: (K,) which sightings agree with either.
    """

    rotation: FloatArray
    rotation_sigma_rad: float
    rotation_agrees: NDArray[np.bool_]
    position: FloatArray | None
    position_covariance: FloatArray | None
    position_agrees: NDArray[np.bool_]
    position_unknown: str = ""

    @property
    def world_from_cam(self) -> RigidTransform | None:
        return None if self.position is None else rigid(self.rotation, self.position)

    @property
    def covariance(self) -> FloatArray | None:
        """(6, 6) of a left perturbation (rotation, translation) of cam_from_world, as `PoseFit.information` has it."""
        if self.position_covariance is None:
            return None
        covariance = np.zeros((6, 6))
        covariance[:3, :3] = self.rotation_sigma_rad**2 * np.eye(3)
        # cam_from_world moved by dt on its left has its center moved by -R dt.
        covariance[3:, 3:] = self.rotation.T @ self.position_covariance @ self.rotation
        return covariance


def average_pose(sightings: Sequence[RelativePoseObservation], config: AveragingConfig | None = None) -> AveragedPose:
    """The pose of the camera that all sightings speak of.

    A sighting whose rotation is an outlier has no say in the position: a pair goes wrong as a whole.

    Raises:
        ValueError: no sightings.
    """
    if not sightings:
        raise ValueError("average_pose: no sightings")
    config = config or AveragingConfig()
    rotations = np.array([rotation_matrix(s.world_from_i) @ s.estimate.i_from_j_rotation for s in sightings])
    weights = np.array([max(s.estimate.confidence, LEAST_WEIGHT) for s in sightings])
    sigmas = np.array([s.estimate.rotation_sigma_rad for s in sightings])
    turned = average_rotations(rotations, sigmas, weights, gate_rad=float(np.radians(config.rotation_gate_deg)))
    placed = _average_position(sightings, turned.agrees, weights, config)
    agrees = np.zeros(len(sightings), dtype=bool)
    if isinstance(placed, RayIntersection):
        agrees[_with_direction(sightings, turned.agrees)] = placed.agrees
    found = placed if isinstance(placed, RayIntersection) else None
    return AveragedPose(
        rotation=turned.rotation,
        rotation_sigma_rad=turned.sigma_rad,
        rotation_agrees=turned.agrees,
        position=None if found is None else found.point,
        position_covariance=None if found is None else found.covariance,
        position_agrees=agrees,
        position_unknown=placed.reason if isinstance(placed, NoIntersection) else "",
    )


def _with_direction(sightings: Sequence[RelativePoseObservation], among: NDArray[np.bool_]) -> NDArray[np.int64]:
    known = [s.estimate.i_from_j_direction is not None for s in sightings]
    return np.flatnonzero(among & np.array(known))


def _average_position(
    sightings: Sequence[RelativePoseObservation], among: NDArray[np.bool_], weights: FloatArray, config: AveragingConfig
) -> RayIntersection | NoIntersection:
    rows = _with_direction(sightings, among)
    if len(rows) < 2:
        return NoIntersection(f"{len(rows)} of {len(sightings)} views give a direction, 2 needed for a position")
    rays = [(sightings[k].world_from_i, sightings[k].estimate) for k in rows]
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
    """The rotation most of `rotations` (K, 3, 3) agree with, then the mean of those that do.

    The sample that lies best among the others starts, the geodesic median over all of them decides who agrees, and
    the chordal mean of those, weighted by their variances, is the answer.

    Args:
        sigmas_rad: (K,) standard deviations per axis.
        weights: (K,) how much each is believed; None is 1.
        gate_rad: an angle under this agrees, whatever the sigma; beyond it, one under three sigmas.
    """
    weights = np.ones(len(rotations)) if weights is None else weights
    sigmas = np.maximum(sigmas_rad, LEAST_ROTATION_SIGMA_RAD)
    gates = np.maximum(gate_rad, GATE_IN_SIGMAS * sigmas)
    apart = rotation_angles(rotations[:, None], rotations[None])
    cost = (weights * np.minimum(apart / gates, 1.0) ** 2).sum(axis=1)
    near = apart[int(cost.argmin())] < gates
    start = chordal_mean(rotations[near], weights[near])
    median = geodesic_median(rotations, weights, start)
    agrees = rotation_angles(rotations, median) < gates
    if not agrees.any():  # the median was drawn into a void between two camps
        agrees, median = near, start
    information = weights[agrees] / sigmas[agrees] ** 2
    mean = chordal_mean(rotations[agrees], information)
    return RotationAverage(mean, agrees, _sigma_of_mean(rotations[agrees], mean, sigmas[agrees], information))


def _sigma_of_mean(rotations: FloatArray, mean: FloatArray, sigmas: FloatArray, information: FloatArray) -> float:
    """Per axis; larger than the stated sigmas give where the rotations disagree by more than these say."""
    share = information / information.sum()
    stated = float(np.sqrt((share**2 * sigmas**2).sum()))
    if len(rotations) < 2:
        return stated
    squared = float(((rotation_angles(rotations, mean) / sigmas) ** 2).sum()) / (3 * (len(rotations) - 1))
    return stated * float(np.sqrt(max(squared, 1.0)))


def rotation_angles(a: FloatArray, b: FloatArray) -> FloatArray:
    """Angles between rotations (..., 3, 3), radians; from the chord, which is accurate near zero."""
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
        pull = weights / np.maximum(np.linalg.norm(steps, axis=1), _AT_A_SAMPLE_RAD)
        step = (pull[:, None] * steps).sum(axis=0) / pull.sum()
        median = exp_so3(step) @ median
        if np.linalg.norm(step) < _AT_A_SAMPLE_RAD:
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
    """The point most rays point at: half lines, as what lies behind a camera was not seen in front of it.

    Every two rays propose where they meet, the angles at which the others see the proposals score them, and
    iteratively reweighted least squares (Tukey) on the angles finishes.

    Args:
        centers, directions: (K, 3) each, K >= 2, directions of unit length.
        sigmas_rad: (K,) standard deviations of the directions per axis.
        gate_rad: an angle under this agrees, whatever the sigma; beyond it, one under three sigmas.
        max_relative_sigma: a point less certain than this share of its distance is refused, as rays (nearly)
            along one line leave it.
    """
    weights = np.ones(len(centers)) if weights is None else weights
    sigmas = np.maximum(sigmas_rad, LEAST_DIRECTION_SIGMA_RAD)
    gates = np.maximum(gate_rad, GATE_IN_SIGMAS * sigmas)
    proposals = _meetings(centers, directions)
    if len(proposals) == 0:
        return _no_meeting(directions)
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
    return _judge(point, centers, directions, sigmas, weights, gates, max_relative_sigma)


def _judge(
    point: FloatArray,
    centers: FloatArray,
    directions: FloatArray,
    sigmas: FloatArray,
    weights: FloatArray,
    gates: FloatArray,
    max_relative_sigma: float,
) -> RayIntersection | NoIntersection:
    """The point with its covariance, or why it is none."""
    off = _angles_to(point[None], centers, directions)[0]
    agrees = off < gates
    count = int(agrees.sum())
    if count < 2:
        return NoIntersection(f"{count} of {len(centers)} rays agree with one position, 2 needed")
    parts = _information(point, centers[agrees], directions[agrees], sigmas[agrees], np.ones(count))
    distance = float(np.median(np.linalg.norm(centers[agrees] - point, axis=1)))
    values, axes = np.linalg.eigh(parts.sum(axis=0))
    excess = max(1.0, float(((off[agrees] / sigmas[agrees]) ** 2).sum()) / max(2 * count - 3, 1))
    worst = np.inf if values[0] <= 0 else float(np.sqrt(excess / values[0]))
    if not worst < max_relative_sigma * distance:
        along = "unknown" if worst > 10 * distance else f"known to {worst / distance:.0%} of the distance"
        return NoIntersection(
            f"{count} rays lie within {_angle_off_one_line(directions[agrees]):.1f} deg of one line: "
            f"the position along it is {along} (limit {max_relative_sigma:.0%})"
        )
    return RayIntersection(point, excess * (axes / values) @ axes.T, agrees)


def _meetings(centers: FloatArray, directions: FloatArray) -> FloatArray:
    """Points (H, 3) where two rays come nearest to each other, both in front; nearer to the shorter ray."""
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
    """(H, K) angle between each ray and the sight of each point from its center; pi behind it."""
    sight = points[:, None] - centers[None]
    across = np.linalg.norm(np.cross(sight, directions[None]), axis=2)
    return np.asarray(np.arctan2(across, (sight * directions[None]).sum(axis=2)))


def _information(
    point: FloatArray, centers: FloatArray, directions: FloatArray, sigmas: FloatArray, weights: FloatArray
) -> FloatArray:
    """(K, 3, 3) what each ray says about the point: across the ray, to sigma times its distance."""
    squared_distance = np.maximum(((point - centers) ** 2).sum(axis=1), 1e-300)
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    return np.asarray(across * (weights / (sigmas**2 * squared_distance))[:, None, None])


def _least_squares(information: FloatArray, centers: FloatArray) -> FloatArray | None:
    """The point (3,) that fits all rays; None where they leave a direction open."""
    total = information.sum(axis=0)
    if not np.linalg.eigvalsh(total)[0] > 1e-12 * np.trace(total):
        return None
    return np.asarray(np.linalg.solve(total, np.einsum("kij,kj->i", information, centers)))


def _no_meeting(directions: FloatArray) -> NoIntersection:
    spread = _angle_off_one_line(directions)
    if spread < 0.1:
        return NoIntersection(f"{len(directions)} rays lie within {spread:.1f} deg of one line: no position along it")
    return NoIntersection(f"no two of {len(directions)} rays meet in front of their cameras")


def _angle_off_one_line(directions: FloatArray) -> float:
    """Largest angle (degrees) of a ray from the line that fits them best; a ray and its reverse are one line."""
    line = np.linalg.svd(directions)[2][0]
    return float(np.degrees(np.arcsin(np.clip(np.linalg.norm(np.cross(directions, line), axis=1).max(), 0.0, 1.0))))

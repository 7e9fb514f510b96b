"""How far to trust a pair: the network says each direction by itself, and where the two differ it is unsure.

The disagreement of the two answers is turned into a standard deviation and into a chance of being right by a
calibration: measured on pairs of known pose, or assumed from the network's published errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi, ncx2

from relocalizer.geometry import FloatArray, direction_angle, nearest_rotation, rotation_angle
from relocalizer.interfaces import NoEstimate, PairEstimate

ROTATION_AXES, DIRECTION_AXES = 3, 2
RIGHT_ROTATION_RAD, RIGHT_DIRECTION_RAD = np.radians(5.0), np.radians(20.0)  # "right" in `confidence`
LEAST_SIGMA = 0.5  # of the median: an error that both answers share does not show in their agreement
FIRM_MARGIN = 2.0  # of nine numbers with orthonormal rows

_GRID_POINTS = 400
_KNOTS_RAD = np.radians([0, 0.25, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 60, 90, 120, 180])


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorLevel:
    """Errors of a predictor over a set of pairs: Gaussian per axis, with a scale that differs by pair.

    Attributes:
        median_rad: median of that scale; its logarithm is Gaussian.
        log_sd: standard deviation of its natural logarithm.
        correlation: of the errors of a pair's two answers. Assumed: nothing published tells.
    """

    median_rad: float
    log_sd: float
    correlation: float = 0.5


# Medians and spreads that give the published ScanNet1500 AUC@5/10/20 within 0.9 points (512: 35.1/57.7/76.2
# for 34.8/58.4/75.6; 224: 28.7/51.7/72.3 for 28.3/52.6/71.6), with rotations five times as exact as directions.
PUBLISHED_DIRECTION = {
    512: ErrorLevel(median_rad=np.radians(3.0), log_sd=0.74),
    224: ErrorLevel(median_rad=np.radians(3.6), log_sd=0.69),
}
PUBLISHED_ROTATION = {
    512: ErrorLevel(median_rad=np.radians(0.60), log_sd=0.74),
    224: ErrorLevel(median_rad=np.radians(0.72), log_sd=0.69),
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Calibration:
    """From a disagreement to a standard deviation and a chance of being right, linear between knots.

    Attributes:
        disagreement_rad: (K,) increasing.
        sigma_rad: (K,) standard deviation per axis.
        right: (K,) chance that the error is below the bound of `confidence`.
    """

    disagreement_rad: FloatArray
    sigma_rad: FloatArray
    right: FloatArray

    def sigma(self, disagreement_rad: float) -> float:
        return float(np.interp(disagreement_rad, self.disagreement_rad, self.sigma_rad))

    def chance(self, disagreement_rad: float) -> float:
        return float(np.interp(disagreement_rad, self.disagreement_rad, self.right))

    @staticmethod
    def assumed(level: ErrorLevel, *, axes: int, right_rad: float) -> Calibration:
        """The error of an answer given its disagreement with the other, by Bayes' rule on a grid of scales.

        Each of the two answers errs by a Gaussian of the pair's scale on every axis, correlated as `level`
        says. Given their difference d, half of d is the answer's own and the rest of its error is Gaussian
        again, of variance (1 + correlation) / 2 times the squared scale.
        """
        steps = np.linspace(-4, 6, _GRID_POINTS)
        scale = level.median_rad * np.exp(level.log_sd * steps)
        spread = scale * np.sqrt(2 * (1 - level.correlation))
        # At a disagreement of exactly zero the density of every scale vanishes; just above, it does not.
        knots = np.maximum(_KNOTS_RAD, 1e-3 * level.median_rad)[:, None]
        posterior = np.exp(-0.5 * steps**2) * chi.pdf(knots / spread, axes) / spread
        posterior /= posterior.sum(axis=1, keepdims=True)
        rest = (1 + level.correlation) / 2 * scale**2
        variance = (posterior * (rest + (knots / 2) ** 2 / axes)).sum(axis=1)
        right = (posterior * ncx2.cdf(right_rad**2 / rest, axes, (knots / 2) ** 2 / rest)).sum(axis=1)
        sigma = np.clip(np.sqrt(variance), LEAST_SIGMA * level.median_rad, np.pi)
        return Calibration(disagreement_rad=_KNOTS_RAD, sigma_rad=sigma, right=right)

    @staticmethod
    def measured(
        disagreement_rad: ArrayLike, error_rad: ArrayLike, *, axes: int, right_rad: float, bins: int = 10
    ) -> Calibration:
        """From N pairs of known pose: their disagreements and errors, in bins of equal count.

        A larger disagreement never means a smaller sigma.

        Raises:
            ValueError: the arrays differ in length, or hold fewer than ten pairs per bin.
        """
        found, error = np.asarray(disagreement_rad, float), np.asarray(error_rad, float)
        if found.shape != error.shape or found.ndim != 1 or len(found) < 10 * bins:
            raise ValueError(
                f"calibration: expected two (N,) arrays with N >= {10 * bins}, got {found.shape} and {error.shape}"
            )
        parts = np.array_split(np.argsort(found, kind="stable"), bins)
        sigma = np.array([np.sqrt((error[p] ** 2).mean() / axes) for p in parts])
        right = np.array([(error[p] < right_rad).mean() for p in parts])
        return Calibration(
            disagreement_rad=np.array([found[p].mean() for p in parts]),
            sigma_rad=np.maximum.accumulate(np.maximum(sigma, 1e-6)),
            right=np.minimum.accumulate(right),
        )


@dataclass(frozen=True, slots=True, eq=False)
class PairCalibration:
    """Calibrations of the rotation and of the direction."""

    rotation: Calibration
    direction: Calibration

    @staticmethod
    def published(variant: int) -> PairCalibration:
        """The default, from the published errors of the 224 or the 512 network."""
        return PairCalibration(
            Calibration.assumed(PUBLISHED_ROTATION[variant], axes=ROTATION_AXES, right_rad=RIGHT_ROTATION_RAD),
            Calibration.assumed(PUBLISHED_DIRECTION[variant], axes=DIRECTION_AXES, right_rad=RIGHT_DIRECTION_RAD),
        )


@dataclass(frozen=True, slots=True, eq=False)
class TwoWayPose:
    """What the network says of a pair, once from each side.

    Attributes:
        i_from_j, j_from_i: (4, 4) poses; the lengths of their translations mean nothing.
        margin: the smaller of how firmly the two rotations were fixed, 2 for firm, 0 for not at all.
    """

    i_from_j: FloatArray
    j_from_i: FloatArray
    margin: float

    @property
    def rotation_disagreement_rad(self) -> float:
        return rotation_angle(self.i_from_j[:3, :3] @ self.j_from_i[:3, :3])

    @property
    def direction_disagreement_rad(self) -> float:
        """Angle between the direction to camera i, in j's axes, by either answer."""
        return direction_angle(self.j_from_i[:3, 3], -self.i_from_j[:3, :3].T @ self.i_from_j[:3, 3])


def estimate_of(pose: TwoWayPose, calibration: PairCalibration) -> PairEstimate | NoEstimate:
    """The network's answer i_from_j, with sigmas and a confidence from how well j_from_i agrees with it.

    The confidence is the chance that the rotation is right to 5 and the direction to 20 degrees.
    """
    if not (np.isfinite(pose.i_from_j).all() and np.isfinite(pose.j_from_i).all()):
        return NoEstimate("the network's answer is not finite")
    length = float(np.linalg.norm(pose.i_from_j[:3, 3]))
    if length == 0.0 or not pose.j_from_i[:3, 3].any():
        return NoEstimate("the network gave a translation of exactly zero, which has no direction")
    rotation_off, direction_off = pose.rotation_disagreement_rad, pose.direction_disagreement_rad
    # A rotation reacts to its nine numbers like the inverse of their margin.
    looseness = FIRM_MARGIN / max(pose.margin, 1e-3)
    rotation_sigma = calibration.rotation.sigma(rotation_off) * max(1.0, looseness)
    chance = calibration.rotation.chance(rotation_off) * calibration.direction.chance(direction_off)
    return PairEstimate(
        i_from_j_rotation=nearest_rotation(pose.i_from_j[:3, :3]),
        i_from_j_direction=pose.i_from_j[:3, 3] / length,
        confidence=float(np.clip(chance * min(1.0, 1.0 / looseness), 0.0, 1.0)),
        rotation_sigma_rad=min(rotation_sigma, np.pi),
        direction_sigma_rad=calibration.direction.sigma(direction_off),
    )

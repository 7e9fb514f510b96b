"""Uncertainty of the network's relative poses, from the disagreement of its two outputs for a pair.

The network estimates i_from_j and j_from_i independently. A calibration maps their disagreement to a standard deviation
and to a probability of being correct. It is measured on pairs with known poses, or assumed from published errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi, ncx2

from relocalizer.geometry import FloatArray, direction_angle, nearest_rotation, rotation_angle
from relocalizer.interfaces import NoEstimate, PairEstimate

ROTATION_AXES, DIRECTION_AXES = 3, 2  # degrees of freedom
RIGHT_ROTATION_RAD, RIGHT_DIRECTION_RAD = np.radians(5.0), np.radians(20.0)  # error bounds of a correct pair, radians
LEAST_SIGMA = (
    0.5  # minimum sigma relative to the median error; common errors of both outputs do not show as disagreement
)
FIRM_MARGIN = 2.0  # SVD margin of nine numbers with orthonormal rows

_GRID_POINTS = 400  # number of error scales of the numerical integration
# Disagreements at which a calibration is tabulated, radians.
_KNOTS_RAD = np.radians([0, 0.25, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 60, 90, 120, 180])


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorLevel:
    """Error distribution of a predictor over pairs: Gaussian per axis, with a log-normal scale per pair.

    Attributes:
        median_rad: median of the scale.
        log_sd: standard deviation of the scale's natural logarithm.
        correlation: correlation of the errors of a pair's two outputs. An assumption, because it is not published.
    """

    median_rad: float
    log_sd: float
    correlation: float = 0.5


# Error levels that reproduce the published ScanNet1500 AUC@5/10/20 within 0.9 points (512: 35.1/57.7/76.2
# for 34.8/58.4/75.6; 224: 28.7/51.7/72.3 for 28.3/52.6/71.6), assuming rotations five times as accurate as directions.
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
    """Mapping from a disagreement to a standard deviation and a probability, linear between knots.

    Attributes:
        disagreement_rad: (K,) increasing.
        sigma_rad: (K,) standard deviation per axis.
        correct_probability: (K,) probability that the error is below the bound of a correct pair.
    """

    disagreement_rad: FloatArray
    sigma_rad: FloatArray
    correct_probability: FloatArray

    def sigma(self, disagreement_rad: float) -> float:
        return float(np.interp(disagreement_rad, self.disagreement_rad, self.sigma_rad))

    def probability(self, disagreement_rad: float) -> float:
        return float(np.interp(disagreement_rad, self.disagreement_rad, self.correct_probability))

    @staticmethod
    def assumed(level: ErrorLevel, *, axes: int, right_rad: float) -> Calibration:
        """Error distribution of an output given its disagreement with the other, by Bayes' rule on a grid of scales.

        The errors of both outputs are Gaussian per axis with the pair's scale, and correlated as in `level`. Given
        their difference d, the error of an output is d / 2 plus a Gaussian with variance (1 + correlation) / 2 times
        the squared scale.
        """
        steps = np.linspace(-4, 6, _GRID_POINTS)
        scale = level.median_rad * np.exp(level.log_sd * steps)
        spread = scale * np.sqrt(2 * (1 - level.correlation))
        # The density of every scale vanishes at a disagreement of exactly zero, so a small value replaces it.
        knots = np.maximum(_KNOTS_RAD, 1e-3 * level.median_rad)[:, None]
        posterior = np.exp(-0.5 * steps**2) * chi.pdf(knots / spread, axes) / spread
        posterior /= posterior.sum(axis=1, keepdims=True)
        remaining = (1 + level.correlation) / 2 * scale**2
        variance = (posterior * (remaining + (knots / 2) ** 2 / axes)).sum(axis=1)
        correct = (posterior * ncx2.cdf(right_rad**2 / remaining, axes, (knots / 2) ** 2 / remaining)).sum(axis=1)
        sigma = np.clip(np.sqrt(variance), LEAST_SIGMA * level.median_rad, np.pi)
        return Calibration(disagreement_rad=_KNOTS_RAD, sigma_rad=sigma, correct_probability=correct)

    @staticmethod
    def measured(
        disagreement_rad: ArrayLike, error_rad: ArrayLike, *, axes: int, right_rad: float, bins: int = 10
    ) -> Calibration:
        """Calibration from the disagreements and errors of N pairs with known poses, in bins of equal count.

        Sigma is made monotonic in the disagreement.

        Raises:
            ValueError: the arrays differ in length, or have fewer than ten pairs per bin.
        """
        found, error = np.asarray(disagreement_rad, float), np.asarray(error_rad, float)
        if found.shape != error.shape or found.ndim != 1 or len(found) < 10 * bins:
            raise ValueError(
                f"calibration: expected two (N,) arrays with N >= {10 * bins}, got {found.shape} and {error.shape}"
            )
        parts = np.array_split(np.argsort(found, kind="stable"), bins)
        sigma = np.array([np.sqrt((error[p] ** 2).mean() / axes) for p in parts])
        correct = np.array([(error[p] < right_rad).mean() for p in parts])
        return Calibration(
            disagreement_rad=np.array([found[p].mean() for p in parts]),
            sigma_rad=np.maximum.accumulate(np.maximum(sigma, 1e-6)),
            correct_probability=np.minimum.accumulate(correct),
        )


@dataclass(frozen=True, slots=True, eq=False)
class PairCalibration:
    """Calibrations of the rotation and of the direction."""

    rotation: Calibration
    direction: Calibration

    @staticmethod
    def published(variant: int) -> PairCalibration:
        """The default calibration, from the published errors of the 224 or the 512 network."""
        return PairCalibration(
            Calibration.assumed(PUBLISHED_ROTATION[variant], axes=ROTATION_AXES, right_rad=RIGHT_ROTATION_RAD),
            Calibration.assumed(PUBLISHED_DIRECTION[variant], axes=DIRECTION_AXES, right_rad=RIGHT_DIRECTION_RAD),
        )


@dataclass(frozen=True, slots=True, eq=False)
class TwoWayPose:
    """The network's two outputs for a pair.

    Attributes:
        i_from_j, j_from_i: (4, 4) poses; the lengths of their translations are meaningless.
        svd_margin: smaller SVD margin of the two rotations, from 0 (undetermined) to 2, see `rotation_margin`.
    """

    i_from_j: FloatArray
    j_from_i: FloatArray
    svd_margin: float

    @property
    def rotation_disagreement_rad(self) -> float:
        return rotation_angle(self.i_from_j[:3, :3] @ self.j_from_i[:3, :3])

    @property
    def direction_disagreement_rad(self) -> float:
        """Angle between the two outputs' directions to camera i, in j's axes."""
        return direction_angle(self.j_from_i[:3, 3], -self.i_from_j[:3, :3].T @ self.i_from_j[:3, 3])


def estimate_of(
    pose: TwoWayPose, calibration: PairCalibration, confidence: float | None = None
) -> PairEstimate | NoEstimate:
    """The network's output i_from_j, with sigmas and a confidence from its disagreement with j_from_i.

    The confidence is the probability of a rotation error below 5 degrees and a direction error below 20 degrees; a
    head of the network that was trained to tell it may give it as `confidence`.
    """
    if not (np.isfinite(pose.i_from_j).all() and np.isfinite(pose.j_from_i).all()):
        return NoEstimate("the network's answer is not finite")
    length = float(np.linalg.norm(pose.i_from_j[:3, 3]))
    if length == 0.0 or not pose.j_from_i[:3, 3].any():
        return NoEstimate("the network gave a translation of exactly zero, which has no direction")
    rotation_off, direction_off = pose.rotation_disagreement_rad, pose.direction_disagreement_rad
    # The sensitivity of a rotation to its nine numbers is the inverse of their SVD margin.
    sensitivity = FIRM_MARGIN / max(pose.svd_margin, 1e-3)
    rotation_sigma = calibration.rotation.sigma(rotation_off) * max(1.0, sensitivity)
    if confidence is None:
        probability = calibration.rotation.probability(rotation_off) * calibration.direction.probability(direction_off)
        confidence = probability * min(1.0, 1.0 / sensitivity)
    return PairEstimate(
        i_from_j_rotation=nearest_rotation(pose.i_from_j[:3, :3]),
        i_from_j_direction=pose.i_from_j[:3, 3] / length,
        confidence=float(np.clip(confidence, 0.0, 1.0)),
        rotation_sigma_rad=min(rotation_sigma, np.pi),
        direction_sigma_rad=calibration.direction.sigma(direction_off),
    )

"""Radial projection profile of a lens model: image radius as a function of the angle from the optical axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relocalizer.geometry import FloatArray

STEP_DEG = 0.1  # sampling step of the angle, degrees
WIDEST_DEG = {"pinhole": 89.9, "radtan": 89.9, "fisheye": 180.0}  # largest sampled angle per camera model, degrees


@dataclass(frozen=True, slots=True, eq=False)
class RadialProfile:
    """Samples of the radial profile, up to the angle at which the lens model folds back.

    A polynomial fitted to the middle of an image may have a maximum farther out. Beyond it two angles project to the
    same radius, and the model is invalid. Tangential distortion is ignored.

    Attributes:
        angles: (N,) from the optical axis, radians, ascending from 0.
        radii: (N,) distances from the principal point divided by the focal length, strictly increasing.
    """

    angles: FloatArray
    radii: FloatArray

    @classmethod
    def of(cls, model: str, distortion: Sequence[float]) -> RadialProfile:
        """The profile of a camera model, with its distortion in OpenCV's order."""
        angles = np.radians(np.arange(0.0, WIDEST_DEG[model], STEP_DEG))
        with np.errstate(all="ignore"):  # a denominator may reach zero, where the model ends
            radii = _fisheye(angles, distortion) if model == "fisheye" else _radtan(np.tan(angles), distortion)
        grows = np.diff(radii) > 0  # False for NaN
        count = len(angles) if grows.all() else int(np.argmin(grows)) + 1
        return cls(angles[:count], radii[:count])

    @property
    def widest(self) -> float:
        """Largest angle from the axis for which the model is valid, radians."""
        return float(self.angles[-1])

    def angle_at(self, radius: float) -> float | None:
        """The angle that projects to this radius; None beyond the fold."""
        return float(np.interp(radius, self.radii, self.angles)) if radius <= self.radii[-1] else None


def _fisheye(angles: FloatArray, distortion: Sequence[float]) -> FloatArray:
    """Kannala and Brandt, A Generic Camera Model (PAMI 2006), with k1 to k4 as in OpenCV."""
    k1, k2, k3, k4 = distortion
    squared = angles**2
    return np.asarray(angles * (1 + squared * (k1 + squared * (k2 + squared * (k3 + squared * k4)))))


def _radtan(radii: FloatArray, distortion: Sequence[float]) -> FloatArray:
    """Ratio of two radial polynomials (Brown), as in OpenCV's rational model."""
    k1, k2, _, _, k3, k4, k5, k6 = (*distortion, *[0.0] * (8 - len(distortion)))
    squared = radii**2
    above = 1 + squared * (k1 + squared * (k2 + squared * k3))
    below = 1 + squared * (k4 + squared * (k5 + squared * k6))
    return np.asarray(np.where(below > 0, radii * above / below, np.nan))

"""How far from its center a lens shows what it sees at an angle from its axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relocalizer.geometry import FloatArray

STEP_DEG = 0.1
WIDEST_DEG = {"pinhole": 89.9, "radtan": 89.9, "fisheye": 180.0}


@dataclass(frozen=True, slots=True, eq=False)
class RadialProfile:
    """Distances from the principal point, up to the angle at which the lens model folds back.

    A polynomial that was fitted to the middle of an image may have a maximum further out: beyond it a lens would
    show the same place twice, and what the model says there means nothing. Tangential distortion is left out.

    Attributes:
        angles: (N,) from the optical axis, radians, from 0 on.
        radii: (N,) on the plane z = 1 of an undistorted image, strictly increasing; pixels are these times the focal
            length.
    """

    angles: FloatArray
    radii: FloatArray

    @classmethod
    def of(cls, model: str, distortion: Sequence[float]) -> RadialProfile:
        """The profile of a camera model, with its distortion in OpenCV's order."""
        angles = np.radians(np.arange(0.0, WIDEST_DEG[model], STEP_DEG))
        with np.errstate(all="ignore"):  # a denominator may reach zero; that is where the model ends
            radii = _fisheye(angles, distortion) if model == "fisheye" else _radtan(np.tan(angles), distortion)
        grows = np.diff(radii) > 0  # false for what is no number
        count = len(angles) if grows.all() else int(np.argmin(grows)) + 1
        return cls(angles[:count], radii[:count])

    @property
    def widest(self) -> float:
        """The angle from the axis up to which the model can be believed, radians."""
        return float(self.angles[-1])

    def angle_at(self, radius: float) -> float | None:
        """The angle that is shown at this distance from the principal point; None beyond the fold."""
        return float(np.interp(radius, self.radii, self.angles)) if radius <= self.radii[-1] else None


def _fisheye(angles: FloatArray, distortion: Sequence[float]) -> FloatArray:
    """Kannala and Brandt, A Generic Camera Model (PAMI 2006), with k1 to k4 as in OpenCV."""
    k1, k2, k3, k4 = distortion
    squared = angles**2
    return np.asarray(angles * (1 + squared * (k1 + squared * (k2 + squared * (k3 + squared * k4)))))


def _radtan(radii: FloatArray, distortion: Sequence[float]) -> FloatArray:
    """Brown's radial polynomial over a second one, as OpenCV's rational model has it."""
    k1, k2, _, _, k3, k4, k5, k6 = (*distortion, *[0.0] * (8 - len(distortion)))
    squared = radii**2
    above = 1 + squared * (k1 + squared * (k2 + squared * k3))
    below = 1 + squared * (k4 + squared * (k5 + squared * k6))
    return np.asarray(np.where(below > 0, radii * above / below, np.nan))

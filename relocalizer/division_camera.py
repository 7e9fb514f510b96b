"""The camera model of images whose radial distortion is known in the division model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from relocalizer.camera import Camera
from relocalizer.intrinsics_correction import corners_of, radial_of

# Maximum error of radtan with k1 and k2, as a fraction of half the image's diagonal; a fisheye has 0.02 and more.
RADTAN_MISFIT = 0.003
RADII = 200  # number of radii at which the models are compared
MIN_STRETCH = 0.15  # minimum denominator of the division model for radtan, which has no inverse farther out


def distorted_camera(division: float, division_r4: float, pinhole: Camera) -> Camera:
    """The camera of the distorted images: radtan with k1 and k2 where it has this distortion, and fisheye elsewhere.

    The division model is exact enough for both, so it says which of the two the lens is like: perspective images with
    little distortion, or angles from the axis in proportion to the radius (Kannala and Brandt, "A generic
    camera model and calibration method for conventional, wide-angle, and fish-eye lenses", PAMI 2006).

    Args:
        division, division_r4: a and b of undistorted = distorted / (1 + a r^2 + b r^4), about the principal point,
            with r relative to half the image diagonal.
        pinhole: the camera of the undistorted images.
    """
    corner_px = float(np.linalg.norm(corners_of(pinhole) - (pinhole.cx, pinhole.cy), axis=1).max())
    half_diagonal = 0.5 * float(np.hypot(pinhole.width, pinhole.height))
    radius_px = np.linspace(0.0, corner_px, RADII)[1:]
    squared = (radius_px / half_diagonal) ** 2
    stretch = 1.0 + squared * (division + squared * division_r4)
    radius = radius_px / pinhole.mean_focal
    if stretch.min() > MIN_STRETCH:
        k1, k2 = radial_of(division, division_r4, pinhole)
        u = radius / stretch
        misfit_px = pinhole.mean_focal * np.abs(u * (1.0 + u**2 * (k1 + u**2 * k2)) - radius)
        if misfit_px.max() < RADTAN_MISFIT * half_diagonal:
            return replace(pinhole, model="radtan", distortion=(k1, k2, 0.0, 0.0))
    angle = np.arctan2(radius, stretch)
    powers = np.stack([angle**n for n in (3, 5, 7, 9)], axis=1)
    k = np.linalg.lstsq(powers, radius - angle, rcond=None)[0]
    return replace(pinhole, model="fisheye", distortion=tuple(k.tolist()))

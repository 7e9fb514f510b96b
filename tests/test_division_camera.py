"""The camera model of images whose distortion is known in the division model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from relocalizer.camera import Camera
from relocalizer.division_camera import distorted_camera

PINHOLE = Camera(width=480, height=360, fx=300.0, fy=300.0, cx=239.5, cy=179.5, assumed=True)
HALF_DIAGONAL = 0.5 * float(np.hypot(480, 360))


def pixels_of(division: float, division_r4: float, radius_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions (N, 2) on the plane z = 1 of pixels (N, 2) at these radii, toward the corner."""
    pixels = (PINHOLE.cx, PINHOLE.cy) + radius_px[:, None] * np.array([0.8, 0.6])
    squared = (radius_px[:, None] / HALF_DIAGONAL) ** 2
    return PINHOLE.normalized(pixels) / (1.0 + squared * (division + squared * division_r4)), pixels


@pytest.mark.parametrize(("division", "model"), [(0.05, "radtan"), (-0.08, "radtan"), (-0.5, "fisheye")])
def test_the_model_is_the_one_that_has_the_distortion(division: float, model: str) -> None:
    camera = distorted_camera(division, 0.0, PINHOLE)
    directions, pixels = pixels_of(division, 0.0, np.linspace(5.0, 295.0, 50))
    assert camera.model == model
    assert camera.assumed
    assert np.abs(camera.distorted(directions) - pixels).max() < 1.0


def test_a_fisheye_is_found_beyond_what_is_seen_by_a_pinhole_camera() -> None:
    """130 degrees within 232 px, as in the stress world; the corners are at more than 80 degrees from the axis."""
    lens = replace(PINHOLE, fx=205.0, fy=205.0)
    camera = distorted_camera(-0.692, -0.111, lens)
    angles = np.radians([10.0, 30.0, 50.0, 62.0])
    found = camera.distorted(np.stack([np.tan(angles), np.zeros(4)], axis=1))[:, 0] - camera.cx
    assert camera.model == "fisheye"
    assert found == pytest.approx(205.0 * angles, rel=0.02)

"""Sampson distances: the formula for one match by hand, and the derivatives against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, exp_so3, skew
from relocalizer.sampson import SampsonTerms

CAMERA_I = Camera(width=640, height=480, fx=500, fy=510, cx=320, cy=240)
CAMERA_J = Camera(width=800, height=600, fx=620, fy=600, cx=390, cy=310)
ROTATION = Rotation.from_euler("xyz", [0.1, -0.2, 0.05]).as_matrix()
DIRECTION = np.array([0.6, 0.0, 0.8])


@pytest.fixture(scope="module")
def terms() -> SampsonTerms:
    rng = np.random.default_rng(5)
    return SampsonTerms.of(rng.uniform(0, 480, (40, 2)), rng.uniform(0, 600, (40, 2)), CAMERA_I, CAMERA_J)


def by_definition(x_i: FloatArray, x_j: FloatArray, R: FloatArray, d: FloatArray) -> float:
    F = np.linalg.inv(CAMERA_I.matrix).T @ skew(d) @ R @ np.linalg.inv(CAMERA_J.matrix)
    line_i, line_j = F @ x_j, F.T @ x_i
    return float(x_i @ F @ x_j / np.sqrt(line_i[0] ** 2 + line_i[1] ** 2 + line_j[0] ** 2 + line_j[1] ** 2))


def test_distances_are_those_of_the_definition(terms: SampsonTerms) -> None:
    residual, _, _ = terms.linearize(ROTATION, DIRECTION)
    pairs = zip(terms.x_i.T, terms.x_j.T, strict=True)
    assert residual == pytest.approx([by_definition(x_i, x_j, ROTATION, DIRECTION) for x_i, x_j in pairs], rel=1e-9)


def test_derivatives_are_those_of_finite_differences(terms: SampsonTerms) -> None:
    _, jacobian, basis = terms.linearize(ROTATION, DIRECTION)
    assert basis.T @ basis == pytest.approx(np.eye(2), abs=1e-12)
    assert np.abs(basis.T @ DIRECTION).max() < 1e-12
    step = 1e-6
    for k in range(5):
        w, u = (step * np.eye(5)[k])[:3], (step * np.eye(5)[k])[3:]
        ahead = terms.linearize(ROTATION @ exp_so3(w), DIRECTION + basis @ u)[0]
        behind = terms.linearize(ROTATION @ exp_so3(-w), DIRECTION - basis @ u)[0]
        assert jacobian[k] == pytest.approx((ahead - behind) / (2 * step), rel=1e-5, abs=1e-4)

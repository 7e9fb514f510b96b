"""What a refinement finds of a lens, taken out of pixels and images and written as a calibration."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relocalizer.camera import Camera, Undistorter
from relocalizer.intrinsics_correction import CorrectionStep, IntrinsicsCorrection, radial_of

CAMERA = Camera(width=640, height=480, fx=500.0, fy=490.0, cx=322.0, cy=238.0)
GRID = np.stack(np.meshgrid(np.arange(0, 640, 53), np.arange(0, 480, 37)), axis=-1).reshape(-1, 2).astype(float)
coefficients = st.floats(-0.03, 0.03)
ratios = st.floats(0.9, 1.1)


def through_opencv(pixels, camera, radial):
    """Where a lens shows what the pinhole camera sees at `pixels`."""
    ahead = np.column_stack([camera.normalized(pixels), np.ones(len(pixels))]).reshape(-1, 1, 3)
    lens, none = np.array([*radial, 0.0, 0.0]), np.zeros(3)
    return cv2.projectPoints(ahead, none, none, camera.matrix, lens)[0].reshape(-1, 2)


@given(ratios, ratios, coefficients, coefficients)
def test_bending_undoes_straightening(rx, ry, k1, k2):
    step = CorrectionStep((rx, ry), (k1, k2))
    assert np.allclose(step.distorted_pixels(step.undistorted_pixels(GRID, CAMERA), CAMERA), GRID, atol=1e-6)


def test_the_distortion_is_opencvs():
    step = CorrectionStep(radial=(-0.03, 0.01))
    assert np.allclose(step.distorted_pixels(GRID, CAMERA), through_opencv(GRID, CAMERA, (-0.03, 0.01)), atol=1e-9)


def test_barrel_distortion_is_pushed_outwards():
    """k1 = -0.1 shows x/z = 0.5 at 0.5 * (1 - 0.1 * 0.25) = 0.4875."""
    step = CorrectionStep(radial=(-0.1, 0.0))
    [straight] = step.undistorted_pixels(np.array([[322.0 + 500 * 0.4875, 238.0]]), CAMERA)
    assert straight == pytest.approx([322.0 + 500 * 0.5, 238.0], abs=1e-6)


def test_a_longer_lens_alone_moves_no_pixel():
    step = CorrectionStep((1.1, 1.2))
    assert np.array_equal(step.undistorted_pixels(GRID, CAMERA), GRID)
    assert (step.camera(CAMERA).fx, step.camera(CAMERA).fy) == pytest.approx((550.0, 588.0))


def test_a_shift_of_the_principal_point_moves_no_pixel_and_is_in_the_calibration():
    step = CorrectionStep((1.1, 1.1), principal_px=(8.0, -3.0))
    camera = step.camera(CAMERA)
    assert (camera.cx, camera.cy) == (330.0, 235.0)
    assert np.allclose(step.undistorted_pixels(GRID, CAMERA), GRID)
    assert not CorrectionStep(principal_px=(8.0, -3.0)).is_nothing
    calibration = IntrinsicsCorrection().then(step, CAMERA).calibration(CAMERA)
    assert (calibration.cx, calibration.cy, calibration.fx) == pytest.approx((330.0, 235.0, 550.0), abs=1e-3)


@given(ratios, coefficients, st.floats(-10, 10))
def test_bending_about_another_principal_point_undoes_straightening(ratio, k1, shift_px):
    step = CorrectionStep((ratio, ratio), (k1, 0.0), principal_px=(shift_px, -shift_px))
    assert np.allclose(step.distorted_pixels(step.undistorted_pixels(GRID, CAMERA), CAMERA), GRID, atol=1e-6)


def test_focal_lengths_alone_displace_nothing():
    """Exactly, because the summary says how far images are distorted as soon as they are."""
    lens = IntrinsicsCorrection().then(CorrectionStep((1.1, 1.1)), CAMERA)
    lens = lens.then(CorrectionStep((0.97, 0.97)), lens.camera)
    assert lens.max_displacement_px == 0.0


def test_no_pixels_stay_none():
    assert CorrectionStep(radial=(0.1, 0.0)).undistorted_pixels(np.zeros((0, 2)), CAMERA).shape == (0, 2)


def test_a_step_that_says_nothing_leaves_the_camera_as_it_was():
    assert CorrectionStep().camera(CAMERA) is CAMERA


@given(ratios, coefficients, coefficients)
def test_two_steps_follow_each_other_and_back(ratio, k1, k2):
    first, second = CorrectionStep((ratio, ratio), (k1, 0.0)), CorrectionStep(radial=(k2, 0.01))
    lens = IntrinsicsCorrection().then(first, CAMERA).then(second, first.camera(CAMERA))
    one_by_one = second.undistorted_pixels(first.undistorted_pixels(GRID, CAMERA), first.camera(CAMERA))
    assert np.allclose(lens.undistorted_pixels(GRID), one_by_one)
    assert np.allclose(lens.distorted_pixels(one_by_one), GRID, atol=1e-6)
    assert lens.camera == second.camera(first.camera(CAMERA))


def test_without_corrections_nothing_has_corrections():
    assert (
        IntrinsicsCorrection().has_corrections,
        IntrinsicsCorrection().has_distortion,
        IntrinsicsCorrection().max_displacement_px,
    ) == (False, False, 0.0)
    assert IntrinsicsCorrection().calibration(CAMERA) is CAMERA


def test_an_assumed_camera_is_a_guess_until_its_focal_length_is_known():
    assumed = replace(CAMERA, assumed=True)
    assert CorrectionStep(radial=(0.01, 0.0)).camera(assumed).assumed
    assert CorrectionStep((0.9, 0.9), is_guess=True).camera(assumed).assumed
    assert not CorrectionStep((0.9, 0.9)).camera(assumed).assumed
    assert not CorrectionStep((0.9, 0.9), is_guess=True).camera(CAMERA).assumed


def test_an_image_is_straightened_as_its_pixels_are():
    lens = IntrinsicsCorrection().then(CorrectionStep(radial=(-0.1, 0.02)), CAMERA)
    image = np.zeros((480, 640, 3), np.uint8)
    cv2.circle(image, (80, 400), 4, (255, 255, 255), -1)
    rows, columns = np.nonzero(lens.undistort_image(image)[..., 0] > 127)
    assert [columns.mean(), rows.mean()] == pytest.approx(
        lens.undistorted_pixels(np.array([[80.0, 400.0]]))[0], abs=0.5
    )


def test_the_corner_says_how_far_images_are_distorted():
    lens = IntrinsicsCorrection().then(CorrectionStep(radial=(0.01, 0.0)), CAMERA)
    corner = np.array([[0.0, 479.0]])  # the farthest from the center
    assert lens.max_displacement_px == pytest.approx(np.linalg.norm(lens.undistorted_pixels(corner) - corner), rel=1e-9)


@pytest.mark.parametrize(
    "raw",
    [
        CAMERA,
        replace(CAMERA, assumed=True),
        replace(CAMERA, model="radtan", distortion=(-0.2, 0.05, 1e-3, -5e-4)),
        replace(CAMERA, model="radtan", distortion=(-0.2, 0.05, 1e-3, -5e-4, 0.01, 0.1, 0.02, 0.01)),
        replace(CAMERA, model="fisheye", distortion=(0.02, -0.01, 0.002, 0.0)),
    ],
)
def test_the_calibration_says_what_was_given_and_what_was_found(raw):
    """Undistorting by it is undistorting by the given one and straightening then."""
    undistorted = Undistorter(raw).camera
    lens = IntrinsicsCorrection().then(CorrectionStep((1.02, 1.02), (0.02, -0.01)), undistorted)
    found = lens.calibration(raw)
    directions = lens.camera.normalized(lens.undistorted_pixels(GRID))
    assert np.abs(found.distorted(directions) - raw.distorted(undistorted.normalized(GRID))).max() < 0.1
    assert not found.assumed


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (CorrectionStep(), True),
        (CorrectionStep((1.5, 1.5), (-0.1, 0.02)), True),
        (CorrectionStep(radial=(-0.5, 0.0)), False),  # 1 - 1.5 u^2 is none at u = 0.82, and the corner is at 0.81
        (CorrectionStep(radial=(0.4, -0.9)), False),
        (CorrectionStep((float("nan"), 1.0)), False),
        (CorrectionStep((-1.0, -1.0)), False),
        (CorrectionStep((0.0, 0.0)), False),
        (CorrectionStep(radial=(float("nan"), 0.0)), False),
        (CorrectionStep(radial=(1e9, 1e9)), False),
    ],
)
def test_a_lens_that_folds_the_image_over_itself_has_no_inverse(step, expected):
    assert IntrinsicsCorrection().then(step, CAMERA).is_invertible == expected


def test_two_corrections_can_fold_what_each_does_not():
    lens, camera, folded = IntrinsicsCorrection(), CAMERA, []
    for _ in range(6):
        step = CorrectionStep(radial=(-0.1, 0.0))
        lens, camera = lens.then(step, camera), step.camera(camera)
        folded.append(not lens.is_invertible)
    assert folded[0] is False
    assert folded[-1] is True


@given(st.floats(-0.12, 0.1), st.floats(-0.02, 0.02))
def test_the_polynomial_nearest_to_a_division_model_undoes_it(division, division_r4):
    """To a pixel, as far out as the corners."""
    camera = replace(CAMERA, fy=CAMERA.fx)
    center = np.array([camera.cx, camera.cy])
    squared = (((GRID - center) / (0.5 * np.hypot(640, 480))) ** 2).sum(axis=1, keepdims=True)
    true = center + (GRID - center) / (1.0 + squared * (division + squared * division_r4))
    step = CorrectionStep(radial=radial_of(division, division_r4, camera))
    assert np.abs(step.undistorted_pixels(GRID, camera) - true).max() < 1.0


def test_what_no_camera_says_has_no_calibration():
    lens = IntrinsicsCorrection().then(CorrectionStep(radial=(-0.5, 0.0)), CAMERA)
    assert lens.calibration(replace(CAMERA, model="fisheye", distortion=(0.0, 0.0, 0.0, 0.0))) is None


def test_a_guess_makes_a_calibration_that_says_so():
    assumed = replace(CAMERA, assumed=True)
    assert IntrinsicsCorrection().then(CorrectionStep((1.1, 1.1), is_guess=True), assumed).calibration(assumed).assumed


def test_a_calibration_is_for_images_of_the_size_that_was_given():
    """The run worked on images of half the size."""
    large = CAMERA.resized(1280, 960)
    lens = IntrinsicsCorrection().then(CorrectionStep(radial=(0.02, 0.0)), CAMERA)
    found = lens.calibration(large)
    assert (found.width, found.height) == (1280, 960)
    assert (found.fx, found.cx, found.cy) == pytest.approx((large.fx, large.cx, large.cy), abs=1e-3)
    assert found.distortion[:2] == pytest.approx((0.02, 0.0), abs=1e-4)

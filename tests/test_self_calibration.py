"""The focal length from matched points alone: true where they tell it, and no claim where they do not."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from relocalizer.calibration_pairs import ViewPair
from relocalizer.calibration_windows import is_worse
from relocalizer.camera import Camera
from relocalizer.epipolar_fit import EpipolarFit
from relocalizer.lens_estimates import AspectEstimate, Distortion, FocalEstimate, NotDetermined
from relocalizer.self_calibration import SelfCalibration

CAMERA = Camera(width=640, height=480, fx=460.0, fy=460.0, cx=319.5, cy=239.5)
ASSUMED = Camera.assume(640, 480, fov_deg=60.0)  # 554 px
POINTS = np.random.default_rng(5).uniform([-3.0, -2.0, 2.0], [3.0, 2.0, 7.0], (400, 3))


def footage(*, frames=10, camera=CAMERA, points=POINTS, turn=1.0, walk=1.0, noise_px=0.4, zoom=None, seed=0):
    """A camera that walks sideways and looks about, and pairs of its images up to three apart.

    Args:
        turn, walk: times the usual rotations, and the usual path.
        zoom: focal length of image n over that of `camera`; one by default.
    """
    rng, seen = np.random.default_rng(seed), []
    for n in range(frames):
        s = n / (frames - 1)
        rotation = Rotation.from_rotvec(
            turn * np.array([0.25 * np.sin(7 * s), 0.5 * np.cos(5 * s), 0.4 * np.sin(9 * s)])
        )
        center = walk * np.array([1.5 * s - 0.7, 0.3 * np.sin(6 * s), 0.4 * s])
        in_camera = rotation.inv().apply(points - center)
        ratio = 1.0 if zoom is None else zoom(n)
        lens = replace(camera, fx=camera.fx * ratio, fy=camera.fy * ratio)
        with np.errstate(all="ignore"):
            pixels = lens.distorted(in_camera[:, :2] / in_camera[:, 2:]) + noise_px * rng.normal(size=(len(points), 2))
        inside = (in_camera[:, 2] > 0.5) & (pixels >= 0).all(axis=1) & (pixels < [640, 480]).all(axis=1)
        seen.append((inside, pixels))
    pairs = []
    for i in range(frames):
        for j in range(i + 1, min(i + 4, frames)):
            both = np.flatnonzero(seen[i][0] & seen[j][0])
            second = seen[j][1][both]
            wrong = rng.random(len(both)) < 0.1
            second[wrong] = rng.uniform([0, 0], [640, 480], (int(wrong.sum()), 2))
            pairs.append(ViewPair(10 * i, 10 * j, seen[i][1][both], second))
    return pairs


def errors(found, truth=CAMERA.fx):
    """Of the logarithm of the focal length, and in standard deviations."""
    error = float(np.log(found.focal_px / truth))
    return abs(error), abs(error) / found.sigma


@pytest.mark.parametrize("seed", range(2))
def test_the_focal_length_is_estimated_within_its_standard_deviation(seed):
    found = SelfCalibration(footage(seed=seed), ASSUMED).estimate()
    assert isinstance(found, FocalEstimate)
    assert found.is_known
    error, deviations = errors(found)
    assert error < 0.02
    assert deviations < 2.0
    assert not found.distortion.is_significant
    assert found.change is None


def test_distortion_is_found_with_it():
    distorted = replace(CAMERA, model="radtan", distortion=(-0.25, 0.05, 0.0, 0.0))
    found = SelfCalibration(footage(camera=distorted), ASSUMED).estimate()
    assert found.distortion.is_clear
    assert found.distortion.division < -0.05
    assert errors(found)[1] < 2.5


@pytest.mark.parametrize(
    ("division", "sigma", "is_clear"), [(0.06, 0.008, True), (0.04, 0.008, False), (0.045, 0.0025, True)]
)
def test_a_distortion_is_clear_that_is_large_or_certain(division, sigma, is_clear):
    assert Distortion(division, sigma).is_clear is is_clear
    assert Distortion(-division, sigma).is_clear is is_clear


def test_a_certain_small_distortion_is_not_taken_for_a_focal_length():
    """A lens without distortion 6 % shorter explains most of it."""
    distorted = replace(CAMERA, model="radtan", distortion=(0.06, 0.0, 0.0, 0.0))
    found = SelfCalibration(footage(camera=distorted, noise_px=0.1), ASSUMED).estimate()
    assert found.distortion.is_clear
    assert found.is_known
    assert errors(found)[0] < 0.02


def test_a_camera_that_is_right_is_found_to_be_right():
    calibration = SelfCalibration(footage(), CAMERA)
    error, deviations = errors(calibration.check())
    assert error < 0.02
    assert deviations < 2.0
    assert not calibration.distortion().is_significant


@pytest.mark.parametrize("ratio", [1.0, 0.75, 1.25])
def test_the_aspect_is_estimated_whatever_is_assumed(ratio):
    """The images of a camera whose fy is taken to be another."""
    aspect = SelfCalibration(footage(), replace(CAMERA, fy=ratio * CAMERA.fy)).aspect()
    error = float(np.log(aspect.ratio / ratio))
    assert abs(error) < 0.02
    assert abs(error) < 2.0 * aspect.sigma < 0.06


def test_the_aspect_of_too_few_images_is_not_estimated():
    assert SelfCalibration(footage(frames=3), CAMERA).aspect() == AspectEstimate()


def test_matches_that_are_none_tell_no_aspect(rng):
    pairs = [ViewPair(n, n + 1, *rng.uniform(0, 480, (2, 80, 2))) for n in range(8)]
    assert SelfCalibration(pairs, CAMERA).aspect() == AspectEstimate()


def test_one_plane_determines_nothing():
    wall = np.column_stack([POINTS[:, :2], np.full(len(POINTS), 4.0)])
    found = SelfCalibration(footage(points=wall), ASSUMED).estimate()
    assert isinstance(found, NotDetermined)
    assert "show no parallax, or one plane" in found.reason


def test_a_camera_that_does_not_turn_claims_nothing():
    """Sideways without a turn a longer lens and a deeper scene look the same."""
    found = SelfCalibration(footage(turn=0.0), ASSUMED).estimate()
    assert isinstance(found, NotDetermined) or not found.is_known


@pytest.mark.parametrize("noise_px", [0.1, 0.8])
def test_a_camera_that_only_turns_tells_its_focal_length(noise_px):
    found = SelfCalibration(footage(walk=0.0, noise_px=noise_px), ASSUMED).estimate()
    assert found.is_known
    error, sigmas = errors(found)
    assert error < 0.015
    assert sigmas < 2.0


def test_a_turn_tells_the_distortion_too():
    distorted = replace(CAMERA, model="radtan", distortion=(-0.2, 0.03, 0.0, 0.0))
    found = SelfCalibration(footage(walk=0.0, camera=distorted), ASSUMED).estimate()
    error, sigmas = errors(found)
    assert error < 0.03
    assert sigmas < 2.0
    assert found.distortion.is_clear


def test_a_walk_along_a_wall_is_no_turn():
    """To a camera that does not turn, a wall that passes looks like a turn of a long lens."""
    wall = np.column_stack([POINTS[:, :2], np.full(len(POINTS), 4.0)])
    found = SelfCalibration(footage(points=wall, turn=0.0), ASSUMED).estimate()
    assert isinstance(found, NotDetermined) or found.flaw


def test_few_images_determine_nothing():
    found = SelfCalibration(footage(frames=3), ASSUMED).estimate()
    assert found == NotDetermined("3 of 3 pairs of images share enough points (needs 5)")


def test_matches_that_are_none_determine_nothing(rng):
    pairs = [ViewPair(n, n + 1, *rng.uniform(0, 480, (2, 80, 2))) for n in range(8)]
    assert isinstance(SelfCalibration(pairs, ASSUMED).estimate(), NotDetermined)


def test_pairs_on_which_opencv_fails_determine_nothing(monkeypatch):
    def fail(*_):
        raise cv2.error("(-215:Assertion failed) !model.empty() in function 'setModelParameters'")

    monkeypatch.setattr(cv2, "findFundamentalMat", fail)
    assert isinstance(SelfCalibration(footage(), CAMERA).estimate(), NotDetermined)


def test_no_pairs_determine_nothing():
    assert isinstance(SelfCalibration([], ASSUMED).check(), NotDetermined)


def test_a_zoom_is_a_change_and_no_focal_length():
    found = SelfCalibration(footage(frames=16, zoom=lambda n: 1.3 if n >= 8 else 1.0), CAMERA).check()
    assert found.change is not None
    assert found.change.share == pytest.approx(0.3, abs=0.1)
    assert found.change.from_frame < 80 < found.change.to_frame
    assert "the focal length changes by +" in str(found.change)


def test_every_stretch_of_a_zoom_tells_its_focal_length_whatever_is_assumed():
    deviations = []
    for seed in range(4):
        images = footage(frames=20, zoom=lambda n: 1.6 if 7 <= n < 14 else 1.0, seed=seed)
        found = SelfCalibration(images, ASSUMED).estimate().stretches
        for stretch, truth in zip(found, [460.0, 736.0, 460.0], strict=True):
            assert stretch.sigma < 0.05
            assert stretch.first < stretch.last
            deviations.append(abs(np.log(stretch.focal_px / truth)) / stretch.sigma)
        assert found[0].first == 0
        assert found[0].last < 70 <= found[1].first
        assert found[1].last < 140 <= found[2].first
        assert found[2].last == 190
    assert max(deviations) < 3.0
    assert sum(deviation < 2.0 for deviation in deviations) >= 0.9 * len(deviations)


@pytest.mark.parametrize("distortion", [0.03, -0.1])
def test_a_distortion_is_no_change(distortion):
    """Where a distortion is left out of the lens, windows differ in focal length as their points differ in radius."""
    distorted = replace(CAMERA, model="radtan", distortion=(distortion, 0.0, 0.0, 0.0))
    found = SelfCalibration(footage(frames=20, camera=distorted), ASSUMED).estimate()
    assert found.change is None
    assert found.stretches == ()


def fit_with_losses(losses):
    return EpipolarFit(np.tile(np.eye(3), (len(losses), 1, 1)), np.zeros((len(losses), 3)), np.zeros(6), losses)


def test_a_few_pairs_do_not_exclude_another_focal_length():
    """A quarter of the pairs is for one of the fits, the others are for the other."""
    best = fit_with_losses(np.full(24, 50.0))
    even = fit_with_losses(best.loss + np.tile([1.0, 2.0], 12))
    few = fit_with_losses(best.loss + np.repeat([-3.0, 15.0], [18, 6]))
    assert is_worse(even, best, 8.0)
    assert not is_worse(even, best, 50.0)
    assert few.loss.sum() == even.loss.sum()
    assert not is_worse(few, best, 8.0)


def test_the_same_pairs_give_the_same_estimate():
    first, second = (SelfCalibration(footage(frames=6), ASSUMED).estimate() for _ in range(2))
    assert first == second

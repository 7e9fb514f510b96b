"""The one place where a pair gets a length: exact where it can be known, and silent where it cannot."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relocalizer.geometry import exp_so3
from relocalizer.scale import LengthFit, NoLength, fit_length, fit_relative_scale, weighted_median

NOISE = 1.0 / 500  # a pixel of a camera with 500 pixels of focal length


class Pair:
    """Landmarks of camera i, seen in j; j lies `length` along `direction`."""

    def __init__(self, seed, *, length=0.3, count=60, turn=0.1, direction=None):
        rng = np.random.default_rng(seed)
        self.R = exp_so3(turn * rng.normal(size=3))
        d = rng.normal(size=3) if direction is None else np.asarray(direction, float)
        self.d = d / np.linalg.norm(d)
        self.length = length
        self.points = rng.uniform([-2, -1.5, 2], [2, 1.5, 6], (count, 3))
        in_j = (self.points - length * self.d) @ self.R
        self.seen = in_j[:, :2] / in_j[:, 2:]

    def fit(self, *, noise=NOISE, **changes):
        d = changes.pop("direction", self.d)
        return fit_length(self.points, self.seen, self.R, d, noise=noise, **changes)


# Exact


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.05, 1.0), st.integers(8, 200), st.floats(0.0, 0.3))
def test_without_noise_the_length_is_exact_whatever_the_geometry(seed, length, count, turn):
    found = Pair(seed, length=length, count=count, turn=turn).fit(noise=1e-6)
    assert isinstance(found, LengthFit)
    assert found.length == pytest.approx(length, rel=1e-9)
    assert found.inliers.all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.1, 1.0))
def test_three_of_ten_landmarks_may_be_somewhere_else(seed, length):
    pair, rng = Pair(seed, length=length, count=100), np.random.default_rng(seed + 1)
    pair.seen[:30] += rng.uniform(0.05, 0.5, (30, 2)) * rng.choice([-1, 1], (30, 2))
    found = pair.fit(noise=1e-6)
    assert isinstance(found, LengthFit)
    assert found.length == pytest.approx(length, rel=1e-6)
    assert not found.inliers[:30].any()
    assert found.inliers[30:].all()


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_the_length_is_in_the_units_of_the_landmarks(unit):
    pair = Pair(3)
    pair.points *= unit
    found = pair.fit()
    assert isinstance(found, LengthFit)
    assert found.length == pytest.approx(0.3 * unit, rel=1e-9)


def test_straight_ahead_is_a_direction_like_any_other():
    pair = Pair(4, direction=[0, 0, 1], turn=0.0)
    assert pair.fit().length == pytest.approx(0.3, rel=1e-9)


def test_a_landmark_behind_the_camera_has_no_say():
    pair = Pair(5)
    pair.points[:5, 2] *= -1
    found = pair.fit()
    assert found.length == pytest.approx(0.3, rel=1e-9)
    assert not found.inliers[:5].any()


def test_noise_moves_the_length_by_as_much_as_its_sigma_says():
    errors, sigmas = [], []
    for seed in range(200):
        pair, rng = Pair(1, length=0.4), np.random.default_rng(seed)
        pair.seen = pair.seen + rng.normal(0, NOISE, pair.seen.shape)
        found = pair.fit()
        errors.append(found.length - 0.4)
        sigmas.append(found.sigma)
    real = float(np.std(errors))
    assert abs(np.mean(errors)) < 0.3 * real
    assert real < np.median(sigmas) < 2.2 * real  # cautious, for the spread is that of two coordinates together


# Unobservable


def test_too_few_landmarks_give_no_length():
    assert Pair(6, count=7).fit() == NoLength("7 landmarks shared, 8 needed")
    assert Pair(6, count=0).fit() == NoLength("0 landmarks shared, 8 needed")


def test_the_least_number_of_landmarks_can_be_asked_for():
    assert Pair(6, count=19).fit(min_landmarks=20) == NoLength("19 landmarks shared, 20 needed")
    assert isinstance(Pair(6, count=20).fit(min_landmarks=20), LengthFit)


def test_landmarks_along_the_direction_of_motion_tell_no_length():
    pair = Pair(7, direction=[0, 0, 1], turn=0.0)
    pair.points[:, :2] = 0.0  # on the axis: however far the camera goes, they stay at the center
    pair.seen = np.zeros_like(pair.seen)
    assert pair.fit() == NoLength("0 landmarks lie beside the direction of motion, 8 needed")


def test_a_camera_that_only_turned_has_no_length():
    pair, rng = Pair(8, length=0.0), np.random.default_rng(8)
    pair.seen += rng.normal(0, NOISE, pair.seen.shape)
    found = pair.fit()
    assert isinstance(found, NoLength)
    assert "not distinguishable from zero (limit 50%)" in found.reason


@pytest.mark.parametrize("seed", range(20))
def test_landmarks_that_contradict_each_other_tell_no_length(seed):
    pair, rng = Pair(seed, count=60), np.random.default_rng(seed)
    pair.seen = rng.permutation(pair.seen)
    found = pair.fit()
    assert isinstance(found, NoLength)
    assert re.search(r"disagree by 0\.\d+ of the focal length \(limit 0\.2\)|agree on a length, 8 needed", found.reason)


@pytest.mark.parametrize("seed", range(10))
def test_a_direction_pointing_backwards_gives_no_length_never_a_negative_one(seed):
    pair = Pair(seed)
    found = pair.fit(direction=-pair.d)
    assert isinstance(found, NoLength)
    assert "length -0.3000" in found.reason


def test_a_length_less_sure_than_asked_is_refused_with_both_numbers():
    pair, rng = Pair(9, length=0.02), np.random.default_rng(9)
    pair.seen += rng.normal(0, 3 * NOISE, pair.seen.shape)
    found = pair.fit(max_relative_sigma=0.01)
    assert isinstance(found, NoLength)
    assert "limit 1%" in found.reason


# Relative scale


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.05, 20.0))
def test_the_relative_scale_is_exact_without_noise(seed, scale):
    depths = np.random.default_rng(seed).uniform(1, 10, 30)
    found, sigma = fit_relative_scale(scale * depths, depths)
    assert found == pytest.approx(scale, rel=1e-9)
    assert 0 < sigma < 1e-3


def test_the_relative_scale_turns_js_units_into_is():
    found, _ = fit_relative_scale(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert found == pytest.approx(2.0)


def test_three_of_ten_depths_may_be_wrong(rng):
    depths = rng.uniform(1, 10, 100)
    others = depths / 1.7
    others[:30] *= rng.uniform(3, 10, 30)
    found, _ = fit_relative_scale(depths, others)
    assert found == pytest.approx(1.7, rel=1e-9)


def test_the_sigma_of_the_relative_scale_is_what_repeating_shows():
    logs, sigmas = [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        depths = rng.uniform(1, 10, 40)
        scale, sigma = fit_relative_scale(depths * np.exp(rng.normal(0, 0.1, 40)), depths)
        logs.append(np.log(scale))
        sigmas.append(sigma)
    assert np.mean(sigmas) == pytest.approx(np.std(logs), rel=0.25)


# The median


def test_the_weighted_median_by_hand():
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 1.0])) == 2.0
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.array([10.0, 1.0, 1.0])) == 3.0

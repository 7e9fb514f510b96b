"""Points followed over real texture, and where new ones start."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from relocalizer.config import FeaturesConfig
from relocalizer.features import LocalFeatures
from slam.config.schema import TracksConfig
from slam.map.tracks import Tracks, among
from slam.tracking.klt import KltTracker, choose_new, window_size

WIDTH, HEIGHT, RIM = 320, 240, 100
CONFIG = TracksConfig()


def wall(seed, sigma=2.0):
    """Smooth random gray uint8, everywhere trackable, with `RIM` pixels around what the camera sees at first."""
    noise = np.random.default_rng(seed).normal(size=(HEIGHT + 2 * RIM, WIDTH + 2 * RIM)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma) + 2 * cv2.GaussianBlur(noise, (0, 0), 4 * sigma)
    low, high = smooth.min(), smooth.max()
    return np.rint((smooth - low) / (high - low) * 255).astype(np.uint8)


def texture(seed, sigma=2.0):
    """The image (H, W) of a wall before anything moved."""
    return np.ascontiguousarray(wall(seed, sigma)[RIM:-RIM, RIM:-RIM])


def after(seed, after_from_before, sigma=2.0):
    """The image whose point A p shows what `texture` shows at p, with A (2, 3)."""
    A = np.float64(after_from_before)
    from_wall = np.hstack([A[:, :2], A[:, 2:] - A[:, :2] @ [[RIM], [RIM]]])
    return cv2.warpAffine(wall(seed, sigma), from_wall, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC)


def moved(pixels, after_from_before):
    return (pixels @ np.float64(after_from_before)[:, :2].T + np.float64(after_from_before)[:, 2]).astype(np.float32)


def shift(dx, dy):
    return np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]])


def grid(margin=40, step=20):
    x, y = np.meshgrid(np.arange(margin, WIDTH - margin, step), np.arange(margin, HEIGHT - margin, step))
    return np.stack([x.ravel() + 0.25, y.ravel() + 0.5], axis=1).astype(np.float32)


@pytest.fixture
def tracker():
    return KltTracker(CONFIG, FeaturesConfig())


# Following


@pytest.mark.parametrize(
    "motion",
    [
        shift(0.0, 0.0),
        shift(0.37, -0.61),
        shift(7.3, 4.2),
        shift(-18.4, 11.9),
        np.array([[1.03, 0.02, -4.0], [-0.02, 1.03, 3.0]]),
        cv2.getRotationMatrix2D((160, 120), 2.0, 1.0),
    ],
    ids=["still", "less than a pixel", "some pixels", "many pixels", "growing", "turning"],
)
def test_points_are_followed_to_a_tenth_of_a_pixel(tracker, motion):
    pixels = grid()
    found, ok = tracker.follow(texture(1), after(1, motion), pixels, pixels)
    error = np.linalg.norm(found - moved(pixels, motion), axis=1)
    assert ok.mean() > 0.9
    assert np.median(error[ok]) < 0.1
    assert np.percentile(error[ok], 95) < 0.3


def test_a_guess_reaches_further_than_the_search_alone(tracker):
    pixels, motion = grid(margin=90), shift(75.0, 0.0)
    images = texture(2, sigma=1.2), after(2, motion, sigma=1.2)
    blind, blind_ok = tracker.follow(*images, pixels, pixels)
    predicted, predicted_ok = tracker.follow(*images, pixels, pixels + np.float32([74, 1]))
    truth = moved(pixels, motion)
    right = lambda found, ok: (ok & (np.linalg.norm(found - truth, axis=1) < 0.5)).mean()  # noqa: E731
    assert right(predicted, predicted_ok) > 0.9
    assert right(predicted, predicted_ok) > right(blind, blind_ok)


def test_points_that_something_covers_are_not_said_to_be_found(tracker):
    pixels, covered = grid(), after(3, shift(3.0, 2.0))
    covered[60:180, 100:220] = texture(4)[60:180, 100:220]
    truth = moved(pixels, shift(3.0, 2.0))
    deep = ((truth > (112, 72)) & (truth < (208, 168))).all(axis=1)
    clear = ((truth < (85, 45)) | (truth > (235, 195))).any(axis=1)
    _, ok = tracker.follow(texture(3), covered, pixels, pixels)
    assert deep.sum() > 15
    assert ok[deep].mean() < 0.15
    assert ok[clear].mean() > 0.9


def test_points_on_a_blank_wall_are_not_found(tracker):
    blank = np.full((HEIGHT, WIDTH), 128, np.uint8)
    _, ok = tracker.follow(blank, blank, grid(), grid())
    assert not ok.any()


def test_points_that_leave_the_image_are_not_found(tracker):
    pixels = np.array([[310.0, 120.0], [160.0, 120.0]], np.float32)
    found, ok = tracker.follow(texture(5), after(5, shift(15.0, 0.0)), pixels, pixels)
    assert ok.tolist() == [False, True]
    assert found[1] == pytest.approx([175.0, 120.0], abs=0.1)


def test_no_points_give_no_points(tracker):
    none = np.zeros((0, 2), np.float32)
    found, ok = tracker.follow(texture(6), texture(6), none, none)
    assert found.shape == (0, 2)
    assert ok.shape == (0,)


def test_following_changes_none_of_its_inputs(tracker):
    inputs = [texture(7), after(7, shift(2.0, 0.0)), grid(), grid() + np.float32([1, 0])]
    given = [array.copy() for array in inputs]
    tracker.follow(*inputs)
    for now, then in zip(inputs, given, strict=True):
        assert np.array_equal(now, then)


def test_the_same_images_give_the_same_bytes(tracker):
    images, pixels = (texture(8), after(8, shift(3.1, 1.7))), grid()
    first, second = (tracker.follow(*images, pixels, pixels) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()


# Looking


def test_gray_weighs_the_channels_as_the_eye_does(tracker):
    rgb = np.zeros((1, 3, 3), np.uint8)
    rgb[0, 0, 0] = rgb[0, 1, 1] = rgb[0, 2, 2] = 200  # red, green, blue
    assert tracker.gray(rgb)[0].tolist() == [60, 117, 23]


def test_detection_keeps_at_most_what_the_settings_say():
    few = KltTracker(CONFIG, FeaturesConfig(max_features=50)).detect(texture(9))
    assert 40 <= len(few) <= 50


def test_blurring_lowers_the_sharpness_and_brightness_does_not_raise_it(tracker):
    gray = texture(10) // 2
    assert tracker.sharpness(cv2.GaussianBlur(gray, (9, 1), 0)) < 0.7 * tracker.sharpness(gray)
    assert tracker.sharpness(gray + 60) == pytest.approx(tracker.sharpness(gray), rel=1e-3)


# Choosing


def features_at(pixels):
    pixels = np.asarray(pixels, np.float32).reshape(-1, 2)
    return LocalFeatures(pixels, np.zeros((len(pixels), 128), np.float32), np.ones(len(pixels), np.float32))


def choose(pixels, taken=(), count=1000, distance=9.0):
    taken = np.asarray(taken, np.float32).reshape(-1, 2)
    return choose_new(features_at(pixels), taken, count=count, min_distance_px=distance, size=(WIDTH, HEIGHT))


def least_distance(a, b):
    return np.linalg.norm(a[:, None] - b[None], axis=2).min()


def test_new_points_keep_their_distance_from_each_other_and_from_the_old(rng):
    pixels, taken = rng.uniform(0, [WIDTH - 1, HEIGHT - 1], (2000, 2)), rng.uniform(0, [320, 240], (60, 2))
    chosen = pixels[choose(pixels, taken)]
    rounding = np.sqrt(2.0)  # places are looked up at whole pixels
    apart = np.linalg.norm(chosen[:, None] - chosen[None], axis=2) + 1e9 * np.eye(len(chosen))
    assert len(chosen) > 150
    assert apart.min() > 9.0 - rounding
    assert least_distance(chosen, taken) > 9.0 - rounding


def test_every_point_left_out_was_too_near_to_another(rng):
    pixels, taken = rng.uniform(0, [WIDTH - 1, HEIGHT - 1], (2000, 2)), rng.uniform(0, [320, 240], (60, 2))
    indices = choose(pixels, taken)
    out = np.setdiff1d(np.arange(2000), indices)
    occupied = np.vstack([pixels[indices], taken])
    nearest = np.linalg.norm(pixels[out][:, None] - occupied[None], axis=2).min(axis=1)
    assert nearest.max() < 9.0 + np.sqrt(2.0)


def test_of_two_that_are_too_near_the_stronger_is_taken():
    assert choose([[50, 50], [53, 50], [90, 50]]).tolist() == [0, 2]


def test_the_strongest_come_first_and_no_more_than_asked_for():
    assert choose([[20 * k + 20, 50] for k in range(10)], count=3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [0, -1])
def test_when_none_are_wanted_none_are_chosen(count):
    assert len(choose([[50, 50]], count=count)) == 0


def test_points_outside_the_image_are_not_chosen():
    assert choose([[-3, 50], [50, -3], [WIDTH + 2, 50], [50, HEIGHT + 2], [50, 50]]).tolist() == [4]


def test_nothing_to_choose_from_gives_nothing():
    assert choose(np.zeros((0, 2))).dtype == np.int64
    assert len(choose(np.zeros((0, 2)))) == 0


# Tracks


def test_tracks_are_picked_and_joined_with_their_ids():
    a = Tracks(np.array([3, 4, 5]), np.array([[3, 0], [4, 0], [5, 0]], np.float32))
    b = a.where(np.array([True, False, True])).joined(Tracks(np.array([9]), np.array([[9, 0]], np.float32)))
    assert b.ids.tolist() == [3, 5, 9]
    assert b.pixels[:, 0].tolist() == [3, 5, 9]


def test_no_tracks_join_to_anything():
    a = Tracks(np.array([3]), np.array([[3, 0]], np.float32))
    assert len(Tracks.none()) == 0
    assert Tracks.none().joined(a).ids.tolist() == [3]
    assert Tracks.none().joined(a).ids.dtype == np.int64


def test_new_tracks_are_those_whose_name_and_pixel_are_free():
    tracks = Tracks(np.array([1, 2]), np.array([[5, 5], [8, 3]], np.float32))
    others = Tracks(np.array([2, 3, 4]), np.array([[1, 1], [8, 3], [3, 8]], np.float32))
    assert tracks.with_new(others).ids.tolist() == [1, 2, 4]
    assert tracks.with_new(others).pixels[2].tolist() == [3, 8]


@pytest.mark.parametrize("side", [5, 9, 15, 21, 31, 61])
def test_a_window_has_the_area_of_its_square_and_a_width_that_is_fast(side):
    width, height = window_size(side)
    assert width % 8 == 0
    assert height >= 3
    assert abs(width * height / side**2 - 1.0) < (0.05 if side > 5 else 0.1)


@pytest.mark.parametrize("others", [[], [7], [9, 2, 30], [1, 2, 3, 7, 9, 40], [50]])
def test_ids_among_others_are_found_in_any_order(others):
    ids = np.array([9, 1, 40, 7, 2])
    assert among(ids, np.array(others, np.int64)).tolist() == [int(n) in others for n in ids]
    assert among(np.zeros(0, np.int64), ids).tolist() == []

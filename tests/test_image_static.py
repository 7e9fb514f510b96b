"""Points static in the image: those drawn over it are distinguished from far ones and from a camera at rest."""

from __future__ import annotations

import numpy as np
import pytest

from relocalizer.camera import Camera
from relocalizer.geometry import exp_so3
from relocalizer.image_static import MOST, resting, share_of_image, standing_still
from relocalizer.two_view import Matches

CAMERA = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)


def anywhere(rng, count):
    return rng.uniform([0, 0], [639, 479], (count, 2))


def moved(pixels, depths, *, turn_deg=(0.0, 0.0, 0.0), step=(0.0, 0.0, 0.0)):
    """Where points (pixels (N, 2) and depths (N,)) are seen after a motion of the camera; depth may be infinite."""
    rays = np.column_stack([CAMERA.normalized(pixels), np.ones(len(pixels))])
    in_cam = rays - np.array(step) / np.asarray(depths)[:, None]
    return CAMERA.project(in_cam @ exp_so3(np.radians(turn_deg)))


def view(rng, *, far=0, overlay=0, nearest=2.0, farthest=20.0, count=400, noise=0.15, **motion):
    """Matches of a world, of points at infinity in it, and of an overlay over it; and which is which."""
    kind = np.repeat([0, 1, 2], [count, far, overlay])
    pixels = anywhere(rng, len(kind))
    depths = np.where(kind == 1, np.inf, np.exp(rng.uniform(np.log(nearest), np.log(farthest), len(kind))))
    now = np.where((kind == 2)[:, None], pixels, moved(pixels, depths, **motion))
    seen = CAMERA.contains(now)
    now = now + rng.normal(0, noise, now.shape)
    return Matches(pixels[seen], now[seen], CAMERA, CAMERA), kind[seen]


@pytest.mark.parametrize("turn_deg", [(0, 5, 0), (-4, 0, 0), (0, 4, 6)])
@pytest.mark.parametrize("step", [(0, 0, 0), (0.3, 0, 0), (0, 0.1, 0.4)])
@pytest.mark.parametrize("overlay", [10, 60, 300])
def test_what_is_drawn_over_the_image_is_found_while_the_camera_turns(rng, turn_deg, step, overlay):
    matches, kind = view(rng, overlay=overlay, far=40, turn_deg=turn_deg, step=step)
    found = standing_still(matches)
    assert found[kind == 2].mean() > 0.75
    assert found[kind != 2].sum() <= 2


def test_a_bonnet_that_fills_a_region_is_found_as_a_whole(rng):
    matches, _ = view(rng, turn_deg=(0, 5, 0), step=(0, 0, 0.3))
    world = matches.subset(matches.pixels_i[:, 1] < 320)
    bonnet = rng.uniform([0, 330], [639, 479], (180, 2))
    both = Matches(
        np.concatenate([world.pixels_i, bonnet]),
        np.concatenate([world.pixels_j, bonnet + rng.normal(0, 0.2, bonnet.shape)]),
        CAMERA,
        CAMERA,
    )
    found = standing_still(both)
    assert found[len(world) :].mean() > 0.95
    assert not found[: len(world)].any()


@pytest.mark.parametrize("step", [(0, 0, 0.4), (0.2, 0, 0), (0.1, 0.05, 0.3)])
def test_far_points_of_a_camera_that_does_not_turn_are_world(rng, step):
    matches, _ = view(rng, far=150, step=step)
    assert not standing_still(matches).any()


def test_points_that_the_camera_circles_are_world(rng):
    # At depth 5, a step of 0.5 to the right and a turn of 5.7 degrees to the left keep the center where it is.
    matches, _ = view(rng, turn_deg=(0, -np.degrees(0.1), 0), step=(0.5, 0, 0.02), nearest=3, farthest=8, count=1500)
    still = np.linalg.norm(matches.pixels_j - matches.pixels_i, axis=1) < 1
    assert still.sum() > 5
    assert standing_still(matches).sum() <= 2


def test_a_camera_that_rests_while_something_crosses_has_no_overlay(rng):
    matches, _ = view(rng, count=500)
    crossing = (matches.pixels_i[:, 0] < 250) & (matches.pixels_i[:, 1] > 200)
    now = np.where(crossing[:, None], matches.pixels_j + np.array([40, 3]), matches.pixels_j)
    assert not standing_still(Matches(matches.pixels_i, now, CAMERA, CAMERA)).any()


def test_the_same_view_again_with_wrong_matches_has_no_overlay(rng):
    matches, _ = view(rng, count=400)
    wrong = rng.random(len(matches)) < 0.5
    now = np.where(wrong[:, None], anywhere(rng, len(matches)), matches.pixels_j)
    assert not standing_still(Matches(matches.pixels_i, now, CAMERA, CAMERA)).any()


def test_nothing_is_said_of_two_cameras_or_of_nothing(rng):
    matches, _ = view(rng, overlay=60, turn_deg=(0, 3, 0))
    other = CAMERA.resized(320, 240)
    assert not standing_still(Matches(matches.pixels_i, matches.pixels_j, CAMERA, other)).any()
    assert standing_still(matches.subset(np.zeros(len(matches), bool))).shape == (0,)


# A camera that rests


def test_most_of_the_image_rests_while_something_crosses(rng):
    before = anywhere(rng, 500)
    crossing = (before[:, 0] < 250) & (before[:, 1] > 200)
    now = before + rng.normal(0, 0.2, before.shape) + crossing[:, None] * np.array([30.0, 5.0])
    share, moved_px = resting(before, now, CAMERA)
    assert share > MOST
    assert np.array_equal(moved_px > 15, crossing)


def test_points_carried_along_do_not_count_for_more_than_the_cells_they_are_in(rng):
    still, carried = anywhere(rng, 200), rng.uniform([300, 200], [420, 320], (400, 2))
    before = np.concatenate([still, carried - [60, 0]])
    now = np.concatenate([still, carried])
    share, _ = resting(before, now, CAMERA)
    assert share > MOST


def test_a_camera_that_trembles_on_its_tripod_rests(rng):
    before = anywhere(rng, 500)
    assert resting(before, before + np.array([2.1, -1.7]) + rng.normal(0, 0.3, before.shape), CAMERA)[0] > 0.9


@pytest.mark.parametrize("motion", [{"turn_deg": (0, 2, 0)}, {"step": (0, 0, 0.5)}, {"step": (0.2, 0, 0)}])
def test_a_camera_that_moves_or_turns_does_not_rest(rng, motion):
    matches, _ = view(rng, **motion)
    assert resting(matches.pixels_i, matches.pixels_j, CAMERA)[0] < 0.5


def test_the_share_of_the_image_counts_cells(rng):
    pixels = np.array([[10.0, 10.0]] * 90 + [[300.0, 10.0]] * 10)
    chosen = np.arange(100) < 90
    assert share_of_image(pixels, chosen, CAMERA) == pytest.approx(0.5)
    assert share_of_image(pixels[:0], chosen[:0], CAMERA) == 0.0
    assert resting(pixels[:0], pixels[:0], CAMERA)[0] == 0.0

"""A camera that stands still: judged by most of the image, and while that is covered by what stood still before."""

from __future__ import annotations

import numpy as np
import pytest

from relocalizer.camera import Camera
from slam.tracking.camera_at_rest import Rest

CAMERA = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)
CROSSING_PX = 24.0


@pytest.fixture
def points(rng):
    """Tracks all over the image: ids and pixels."""
    return np.arange(600), rng.uniform([0, 0], [639, 479], (600, 2)).astype(np.float32)


def jitter(rng, pixels):
    return pixels + rng.normal(0, 0.2, pixels.shape).astype(np.float32)


def test_what_crosses_a_quarter_of_the_image_is_found_and_said(rng, points):
    ids, before = points
    crosses = (before[:, 0] > 320) & (before[:, 1] > 240)
    now = jitter(rng, before) + crosses[:, None] * np.float32([30, 4])
    rest = Rest(CROSSING_PX)
    assert np.array_equal(rest.crossing(ids, before, now, CAMERA), crosses)
    assert "the camera does not move (7" in rest.reason
    assert f"{crosses.sum()} points that moved by 24 px or more" in rest.reason


def test_while_nothing_crosses_there_is_nothing_to_say(rng, points):
    ids, before = points
    rest = Rest(CROSSING_PX)
    found = rest.crossing(ids, before, jitter(rng, before), CAMERA)
    assert found is not None
    assert not found.any()
    assert rest.reason == ""
    assert not rest.is_witness(ids).any()


def test_a_camera_that_moves_has_nothing_that_crosses(rng, points):
    ids, before = points
    assert Rest(CROSSING_PX).crossing(ids, before, before + np.float32([9, 0]), CAMERA) is None
    spread = 40 * (before - np.float32([320, 240])) / 400
    assert Rest(CROSSING_PX).crossing(ids, before, before + spread, CAMERA) is None


def test_a_camera_that_rested_rests_on_while_something_large_hides_most_of_the_image(rng, points):
    ids, before = points
    rest = Rest(CROSSING_PX)
    rest.crossing(ids, before, jitter(rng, before), CAMERA)
    enters = before[:, 0] > 600
    rest.crossing(ids, before, before + enters[:, None] * np.float32([-30, 0]), CAMERA)
    hidden = before[:, 1] > 60  # seven eighths of the image, whose tracks are new ones on what hides it
    new_ids = np.where(hidden, ids + 1000, ids)
    now = before + hidden[:, None] * np.float32([-30, 0])
    assert np.array_equal(rest.crossing(new_ids, before, now, CAMERA), hidden)
    assert not rest.is_witness(new_ids[hidden]).any()
    assert rest.is_witness(new_ids[~hidden]).mean() > 0.8


def test_witnesses_that_move_end_the_rest(rng, points):
    ids, before = points
    rest = Rest(CROSSING_PX)
    rest.crossing(ids, before, jitter(rng, before), CAMERA)
    enters = before[:, 0] > 600
    rest.crossing(ids, before, before + enters[:, None] * np.float32([-30, 0]), CAMERA)
    assert rest.crossing(ids, before, before + np.float32([12, 3]), CAMERA) is None

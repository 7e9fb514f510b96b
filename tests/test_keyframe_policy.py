"""When a frame is kept: lost landmarks, turning, parallax, and blur that puts it off."""

from __future__ import annotations

import numpy as np
import pytest

from relocalizer.camera import Camera
from relocalizer.geometry import exp_so3
from slam.config.schema import KeyframesConfig
from slam.map.tracks import Tracks
from slam.tracking.keyframe_policy import MAX_PUT_OFF, KeyframePolicy, common_pixels, median_parallax_px

CAMERA = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)
CONFIG = KeyframesConfig(parallax_px=28.0, min_survival=0.6, rotation_deg=12.0, min_gap=2, blur_ratio=0.5)


def tracks(pixels, first=0):
    pixels = np.asarray(pixels, np.float32).reshape(-1, 2)
    return Tracks(np.arange(first, first + len(pixels)), pixels)


@pytest.fixture
def points(rng):
    return rng.uniform([200, 150], [440, 330], (100, 2)).astype(np.float32)


def ask(policy, before, now, *, turned=(0.0, 0.0, 0.0), frames_since=10, blurred=False):
    return policy.reason_to_keep(
        seen=now,
        in_keyframe=before,
        camera=CAMERA,
        keyframe_from_frame_rotation=exp_so3(turned),
        frames_since=frames_since,
        blurred=blurred,
    )


def pixels_after_turning(pixels, frame_from_keyframe_rotation):
    """Where pixels go when the camera turns, written out anew."""
    rays = np.hstack([(pixels - [CAMERA.cx, CAMERA.cy]) / CAMERA.fx, np.ones((len(pixels), 1))])
    turned = rays @ frame_from_keyframe_rotation.T
    return (CAMERA.fx * turned[:, :2] / turned[:, 2:] + [CAMERA.cx, CAMERA.cy]).astype(np.float32)


# Reasons


def test_a_frame_like_its_keyframe_is_not_kept(points):
    assert ask(KeyframePolicy(CONFIG), tracks(points), tracks(points + np.float32([5, 0]))) == ""


def test_parallax_calls_for_a_keyframe_and_says_how_much(points):
    reason = ask(KeyframePolicy(CONFIG), tracks(points), tracks(points + np.float32([30, 0])))
    assert reason == "parallax 30.0 px (limit 28)"


def test_parallax_at_the_limit_is_not_yet_enough(points):
    assert ask(KeyframePolicy(CONFIG), tracks(points), tracks(points + np.float32([27.5, 0]))) == ""


def test_lost_landmarks_call_for_a_keyframe_and_say_how_many_are_left(points):
    reason = ask(KeyframePolicy(CONFIG), tracks(points), tracks(points[:59]))
    assert reason == "59% of the keyframe's landmarks are left (limit 60%)"


@pytest.mark.parametrize(("left", "kept"), [(44, True), (46, False)])
def test_when_most_landmarks_are_lost_in_one_step_the_next_frame_is_kept(points, left, kept):
    reason = ask(KeyframePolicy(CONFIG), tracks(points), tracks(points[:left]), frames_since=1)
    assert bool(reason) is kept


@pytest.mark.parametrize(("left", "kept"), [(39, True), (40, False)])
def test_a_blurred_frame_is_kept_before_the_landmarks_run_out(points, left, kept):
    reason = ask(KeyframePolicy(CONFIG), tracks(points), tracks(points[:left]), blurred=True)
    assert bool(reason) is kept


def test_sixty_of_a_hundred_are_enough_when_the_limit_is_sixty(points):
    assert ask(KeyframePolicy(CONFIG), tracks(points), tracks(points[:60])) == ""


def test_landmarks_the_keyframe_never_saw_do_not_count_as_left(points):
    reason = ask(KeyframePolicy(CONFIG), tracks(points), tracks(points, first=50))
    assert reason.startswith("50% of")


def test_turning_calls_for_a_keyframe_and_says_by_how_much(points):
    turned = np.array([0.0, np.radians(13.0), 0.0])
    now = tracks(pixels_after_turning(points, exp_so3(-turned)))
    assert ask(KeyframePolicy(CONFIG), tracks(points), now, turned=turned) == "turned by 13.0 deg (limit 12)"


def test_turning_alone_is_no_parallax(points):
    turned = np.array([0.0, np.radians(10.0), np.radians(5.0)])  # under the limit, yet points move by 90 px
    now = pixels_after_turning(points, exp_so3(-turned))
    assert np.median(np.linalg.norm(now - points, axis=1)) > 60
    assert ask(KeyframePolicy(CONFIG), tracks(points), tracks(now), turned=turned) == ""


@pytest.mark.parametrize(("frames_since", "kept"), [(0, False), (1, False), (2, True)])
def test_keyframes_keep_their_distance_in_frames(points, frames_since, kept):
    reason = ask(
        KeyframePolicy(CONFIG), tracks(points), tracks(points + np.float32([90, 0])), frames_since=frames_since
    )
    assert bool(reason) == kept


def test_a_keyframe_without_landmarks_asks_for_another():
    assert ask(KeyframePolicy(CONFIG), Tracks.none(), Tracks.none()).startswith("0% of")


# Blur


def test_the_first_frames_are_never_called_blurred():
    policy = KeyframePolicy(CONFIG)
    assert not any(policy.is_blurred(s) for s in (100.0, 1.0, 1.0, 100.0, 0.0))


def test_a_frame_less_sharp_than_half_the_recent_median_is_blurred():
    policy = KeyframePolicy(CONFIG)
    for _ in range(10):
        policy.is_blurred(100.0)
    assert policy.is_blurred(49.0)
    assert not policy.is_blurred(51.0)


def test_a_stream_that_stays_soft_is_not_called_blurred_for_ever():
    policy = KeyframePolicy(CONFIG)
    for _ in range(30):
        policy.is_blurred(100.0)
    answers = [policy.is_blurred(10.0) for _ in range(30)]
    assert answers[0]
    assert not answers[-1]


def test_blur_puts_a_keyframe_off_but_not_for_ever(points):
    policy, far = KeyframePolicy(CONFIG), tracks(points + np.float32([40, 0]))
    answers = [ask(policy, tracks(points), far, blurred=True) for _ in range(MAX_PUT_OFF + 1)]
    assert answers[:-1] == [""] * MAX_PUT_OFF
    assert answers[-1] == "parallax 40.0 px (limit 28)"


def test_the_first_sharp_frame_ends_the_waiting(points):
    policy, far = KeyframePolicy(CONFIG), tracks(points + np.float32([40, 0]))
    assert ask(policy, tracks(points), far, blurred=True) == ""
    assert ask(policy, tracks(points), far, blurred=False) == "parallax 40.0 px (limit 28)"


def test_each_keyframe_may_be_put_off_anew(points):
    policy, far = KeyframePolicy(CONFIG), tracks(points + np.float32([40, 0]))
    for _ in range(2):
        answers = [ask(policy, tracks(points), far, blurred=True) for _ in range(MAX_PUT_OFF + 1)]
        assert [bool(a) for a in answers] == [False] * MAX_PUT_OFF + [True]


def test_blurred_frames_that_no_reason_calls_for_do_not_use_up_the_waiting(points):
    policy, far = KeyframePolicy(CONFIG), tracks(points + np.float32([40, 0]))
    for _ in range(20):
        assert ask(policy, tracks(points), tracks(points), blurred=True) == ""
    assert ask(policy, tracks(points), far, blurred=True) == ""


# Parts


def test_common_pixels_pair_up_by_id_whatever_their_order():
    a = Tracks(np.array([5, 1, 9]), np.array([[50, 0], [10, 0], [90, 0]], np.float32))
    b = Tracks(np.array([9, 2, 5]), np.array([[91, 0], [20, 0], [51, 0]], np.float32))
    before, now = common_pixels(a, b)
    assert before[:, 0].tolist() == [50, 90]
    assert now[:, 0].tolist() == [51, 91]


def test_parallax_is_what_turning_does_not_explain(points):
    turned = exp_so3([0.02, -0.1, 0.05])  # keyframe_from_frame
    now = pixels_after_turning(points + np.float32([12, 0]), turned.T)
    assert median_parallax_px(points, now, CAMERA, turned) == pytest.approx(12.0, abs=0.01)


def test_without_points_there_is_no_parallax():
    none = np.zeros((0, 2), np.float32)
    assert median_parallax_px(none, none, CAMERA, np.eye(3)) == 0.0

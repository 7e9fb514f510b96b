"""The state of tracking: state, reason and keyframe change together, and only so."""

from __future__ import annotations

import pytest

from slam.map.tracking_status import TrackingState
from slam.tracking.tracking_state import MIN_MAP_AGE_FRAMES, TrackingStateMachine


def tracked(*, restart_after: int | None = 5, began_at: int = 3) -> TrackingStateMachine:
    where = TrackingStateMachine(restart_after=restart_after)
    where.map_initialized(1, began_at)
    return where


def lost_for(where: TrackingStateMachine, frames: int, *, since: int = 100) -> TrackingStateMachine:
    where.set_lost(since, "3 landmarks tracked")
    for _ in range(frames - 1):
        where.still_lost("nothing looks alike")
    return where


def test_before_a_map_it_waits_and_says_for_what():
    where = TrackingStateMachine(restart_after=5)
    where.set_waiting("tracks moved 2 px")
    assert (where.state, where.reason, where.keyframe_id) == (TrackingState.INITIALIZING, "tracks moved 2 px", -1)
    assert not where.has_map


def test_a_map_begun_is_a_place_known_and_no_reason():
    where = tracked()
    assert where.is_tracking
    assert (where.reason, where.keyframe_id) == ("", 1)


def test_a_lost_camera_keeps_the_reason_of_the_first_frame_whatever_is_waited_for():
    where = lost_for(tracked(), 3)
    where.set_waiting("tracks moved 2 px")
    assert where.is_lost
    assert where.reason == "3 landmarks tracked"


def test_losing_does_not_forget_the_keyframe_seen_last():
    where = tracked()
    where.set_tracking(7)
    assert lost_for(where, 2).keyframe_id == 7


def test_every_lost_frame_is_counted_and_a_place_found_ends_the_count():
    where = lost_for(tracked(), 4)
    assert where.frames_lost == 4
    where.set_tracking(2)
    assert (where.frames_lost, where.reason, where.is_tracking) == (0, "", True)


def test_a_position_that_is_held_has_a_reason_until_the_camera_is_followed_again():
    where = tracked()
    where.set_rotation_only("it only turns")
    assert (where.is_tracking, where.reason) == (True, "it only turns")
    where.set_tracked()
    assert where.reason == ""


@pytest.mark.parametrize(("frames", "may"), [(4, False), (5, True)])
def test_a_new_map_may_begin_when_the_camera_was_lost_for_as_long_as_set(frames, may):
    assert lost_for(tracked(restart_after=5), frames).may_start_new_map is may


def test_a_map_lost_right_after_its_beginning_may_be_begun_again_at_once_and_is_named():
    where = lost_for(tracked(began_at=95), 1)
    assert where.may_start_new_map
    assert where.reason == "the map initialized at frame 95 did not hold: 3 landmarks tracked"


def test_a_map_that_held_for_long_enough_was_not_begun_wrongly():
    where = lost_for(tracked(began_at=100 - MIN_MAP_AGE_FRAMES), 1)
    assert not where.may_start_new_map
    assert where.reason == "3 landmarks tracked"


def test_the_next_map_is_given_its_time_again():
    where = lost_for(tracked(began_at=95), 1)
    where.map_initialized(2, 110)
    assert not lost_for(where, 1, since=300).may_start_new_map


def test_where_no_map_may_ever_begin_none_does():
    assert not lost_for(tracked(restart_after=None, began_at=95), 1000).may_start_new_map


def test_a_run_that_begins_in_a_map_says_why_it_is_not_found_there():
    where = TrackingStateMachine(restart_after=5)
    where.set_lost_in_map(41)
    assert (where.state, where.reason) == (TrackingState.LOST, "searching the map for a place")
    where.still_lost("8 points matched, 12 needed")
    assert (where.reason, where.keyframe_id) == ("not found in the map: 8 points matched, 12 needed", 41)
    assert not where.may_start_new_map


def test_once_found_in_the_map_a_later_loss_is_reported_as_any_other():
    where = TrackingStateMachine(restart_after=5)
    where.set_lost_in_map(41)
    where.set_tracking(40)
    assert lost_for(where, 3).reason == "3 landmarks tracked"

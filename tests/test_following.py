"""A map that must not change: with few landmarks left the place is recognised anew, and not before."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import RigidTransform

from slam.following import Following
from slam.front_end import NotLocated
from slam.recognition import Recognised
from slam.tracks import Tracks
from slam.whereabouts import Whereabouts


def tracks(count: int) -> Tracks:
    return Tracks(np.arange(count), np.zeros((count, 2), np.float32))


class Picture:
    """As much of a front end as it takes: the landmarks that the pose rests on."""

    def __init__(self, count: int) -> None:
        self.agreeing = tracks(count)

    def go_on_from(self, pose: RigidTransform, seen: Tracks) -> None:
        self.agreeing = seen


class Recognition:
    """Gives the same answer always, and counts how often it was asked."""

    def __init__(self, landmarks: int) -> None:
        self.asked = 0
        self._landmarks = landmarks

    def __call__(self, frame):
        self.asked += 1
        if not self._landmarks:
            return NotLocated("nothing looks alike")
        seen = tracks(self._landmarks)
        return Recognised(SimpleNamespace(frame=frame), RigidTransform.identity(), 9, seen, seen)


def followed(landmarks: int, *, recognises: int):
    """Recognised by 100 landmarks, of which so many are left."""
    picture, where, recognition = Picture(100), Whereabouts(restart_after=None), Recognition(recognises)
    where.at(4)
    following = Following(picture, where, recognition)
    following.count()
    picture.agreeing = tracks(landmarks)
    following.renew(None)
    return picture, where, recognition, following


@pytest.mark.parametrize(("left", "asked"), [(60, 0), (59, 1)])
def test_the_place_is_recognised_anew_when_few_landmarks_are_left(left, asked):
    _, _, recognition, _ = followed(left, recognises=80)
    assert recognition.asked == asked


def test_the_frame_goes_on_with_what_was_recognised():
    picture, where, _, _ = followed(30, recognises=80)
    assert len(picture.agreeing) == 80
    assert where.keyframe_id == 9


def test_a_place_that_is_not_recognised_leaves_the_frame_as_it_was():
    picture, where, _, _ = followed(30, recognises=0)
    assert len(picture.agreeing) == 30
    assert (where.keyframe_id, where.is_tracking) == (4, True)


def test_after_a_look_in_vain_it_looks_again_only_when_still_fewer_are_left():
    picture, _, recognition, following = followed(30, recognises=0)
    following.renew(None)
    assert recognition.asked == 1
    picture.agreeing = tracks(17)
    following.renew(None)
    assert recognition.asked == 2

"""A map that must not change: with few landmarks left the place is recognized anew, and not before."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import RigidTransform

from slam.map.frames import PoseNotFound
from slam.map.tracks import Tracks
from slam.relocalization.frame_relocalizer import RelocalizedFrame
from slam.relocalization.localization_mode import LocalizationMode
from slam.tracking.tracking_state import TrackingStateMachine


def tracks(count: int) -> Tracks:
    return Tracks(np.arange(count), np.zeros((count, 2), np.float32))


class Image:
    """As much of a front end as it takes: the landmarks that the pose rests on."""

    def __init__(self, count: int) -> None:
        self.inlier_tracks = tracks(count)

    def reset_to(self, pose: RigidTransform, seen: Tracks) -> None:
        self.inlier_tracks = seen


class Recognition:
    """Gives the same answer always, and counts how often it was asked."""

    def __init__(self, landmarks: int) -> None:
        self.asked = 0
        self._landmarks = landmarks

    def __call__(self, frame):
        self.asked += 1
        if not self._landmarks:
            return PoseNotFound("nothing looks alike")
        seen = tracks(self._landmarks)
        return RelocalizedFrame(SimpleNamespace(frame=frame), RigidTransform.identity(), 9, seen, seen)


def followed(landmarks: int, *, recognizes: int):
    """Recognized by 100 landmarks, of which `count` are left."""
    image, where, recognition = Image(100), TrackingStateMachine(restart_after=None), Recognition(recognizes)
    where.set_tracking(4)
    following = LocalizationMode(image, where, recognition)
    following.set_baseline()
    image.inlier_tracks = tracks(landmarks)
    following.replenish(None)
    return image, where, recognition, following


@pytest.mark.parametrize(("left", "asked"), [(60, 0), (59, 1)])
def test_the_place_is_recognized_anew_when_few_landmarks_are_left(left, asked):
    _, _, recognition, _ = followed(left, recognizes=80)
    assert recognition.asked == asked


def test_the_frame_continues_with_what_was_recognized():
    image, where, _, _ = followed(30, recognizes=80)
    assert len(image.inlier_tracks) == 80
    assert where.keyframe_id == 9


def test_a_place_that_is_not_recognized_leaves_the_frame_as_it_was():
    image, where, _, _ = followed(30, recognizes=0)
    assert len(image.inlier_tracks) == 30
    assert (where.keyframe_id, where.is_tracking) == (4, True)


def test_after_a_look_in_vain_it_looks_again_only_when_still_fewer_are_left():
    image, _, recognition, following = followed(30, recognizes=0)
    following.replenish(None)
    assert recognition.asked == 1
    image.inlier_tracks = tracks(17)
    following.replenish(None)
    assert recognition.asked == 2

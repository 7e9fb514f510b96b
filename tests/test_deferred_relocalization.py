"""Frames kept for later: as few as asked for, evenly, and tried again in an order that lets one help the next."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from relocalizer.camera import Camera
from slam.events import FrameNotLocalized
from slam.map.frame_log import FrameLog
from slam.map.frames import Frame, PoseNotFound
from slam.relocalization.deferred import DeferredRelocalizer, UnlocalizedFrames

CAMERA = Camera(width=64, height=48, fx=50.0, fy=50.0, cx=31.5, cy=23.5)


def frame(index: int) -> Frame:
    rough = np.random.default_rng(index).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = cv2.resize(rough, (64, 48), interpolation=cv2.INTER_CUBIC)
    return Frame(index=index, timestamp_ns=1000 * index, image=image, camera=CAMERA)


def kept(limit: int, count: int) -> UnlocalizedFrames:
    unplaced = UnlocalizedFrames(limit)
    for index in range(count):
        unplaced.keep(frame(index))
    return unplaced


def tried(unplaced: UnlocalizedFrames) -> list[int]:
    """Indices in the order in which frames are tried when none is ever placed."""
    order: list[int] = []
    unplaced.relocalize_all(lambda f: bool(order.append(f.index)))
    return order


def test_a_frame_comes_back_as_it_was_but_for_what_jpeg_loses():
    back: list[Frame] = []
    kept(5, 1).relocalize_all(lambda f: not back.append(f))
    assert (back[0].index, back[0].timestamp_ns, back[0].camera) == (0, 0, CAMERA)
    assert np.abs(back[0].image.astype(int) - frame(0).image).mean() < 4


def test_no_more_than_the_limit_are_kept_and_they_lie_evenly():
    unplaced = kept(8, 300)
    assert len(unplaced) <= 8
    indices = sorted(set(tried(unplaced)))
    assert len(set(np.diff(indices))) == 1
    assert indices[0] == 0
    assert indices[-1] > 200


def test_an_image_without_pixels_is_not_kept_as_there_is_nothing_to_look_for():
    unplaced = kept(5, 2)
    unplaced.keep(frame(2).without_image())
    assert [one.index for one in unplaced] == [0, 1]


def test_a_limit_of_none_keeps_none():
    assert len(kept(0, 10)) == 0


def test_frames_that_have_a_pose_meanwhile_are_not_tried():
    unplaced = kept(10, 6)
    unplaced.forget({1, 2, 9})
    assert set(tried(unplaced)) == {0, 3, 4, 5}


def test_a_frame_that_is_placed_helps_its_neighbors_on_both_sides():
    placed = {4}

    def beside_a_placed_one(f: Frame) -> bool:
        if not {f.index - 1, f.index + 1} & placed:
            return False
        placed.add(f.index)
        return True

    unplaced = kept(20, 10)
    unplaced.forget(placed)
    assert unplaced.relocalize_all(beside_a_placed_one) == 9
    assert len(unplaced) == 0


@pytest.mark.parametrize("count", [1, 7])
def test_frames_that_are_nowhere_are_tried_once_as_nothing_changes_in_between(count):
    assert tried(kept(20, count)) == list(range(count))


def test_only_frames_tried_before_the_last_success_are_tried_again():
    tries: list[int] = []
    kept(20, 6).relocalize_all(lambda f: not tries.append(f.index) and f.index == 2)
    assert tries == [0, 1, 2, 3, 4, 5, 1, 0]


def test_frames_that_are_placed_one_a_pass_do_not_cost_a_pass_each():
    tries: list[int] = []
    kept(20, 12).relocalize_all(lambda f: not tries.append(f.index) and f.index == len(tries) % 12)
    assert len(tries) <= 24


def test_a_frame_that_is_not_found_at_the_end_is_reported_with_the_reason():
    class Nowhere:
        """A frame tracker that returns the frame, and a relocalizer that finds nothing."""

        def extract_from(self, frame):
            return frame

        def relocalize(self, seen, active):
            return PoseNotFound(f"nothing in {seen.index} is known")

    nowhere, log, events = Nowhere(), FrameLog(), []
    log.nearest = lambda timestamp_ns: type("Record", (), {"keyframe_id": 0})
    looking_back = DeferredRelocalizer(10, log, nowhere, nowhere, events.append)
    for index in (3, 4):
        looking_back.keep(frame(index))
    looking_back.relocalize_all(lambda found, reason: None)
    looking_back.report_failures()
    assert events == [
        FrameNotLocalized(frame_index=3, timestamp_ns=3000, reason="nothing in 3 is known"),
        FrameNotLocalized(frame_index=4, timestamp_ns=4000, reason="nothing in 4 is known"),
    ]

"""Where images come in: what the tracker finds is believed as far as it lies in the image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracle import OracleTracker
from oracle_map import room

from relocalizer.features import LocalFeatures
from slam.config.schema import SlamConfig
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks
from slam.tracking.frame_tracker import FrameTracker

NOWHERE = [np.nan, np.inf, -np.inf, 1e30, -5.0]


class Spoiling(OracleTracker):
    """Every third point that is found or followed is at `where`, and the tracker is sure of it."""

    def __init__(self, world, where):
        super().__init__(world)
        self.where = where

    def detect(self, gray):
        found = super().detect(gray)
        pixels = found.pixels.copy()
        pixels[::3] = self.where
        return LocalFeatures(pixels, found.descriptors, found.scales)

    def follow(self, before, after, pixels, guess):
        places, _ = super().follow(before, after, pixels, guess)
        places = places.copy()
        places[::3] = self.where
        return places, np.ones(len(places), bool)


def frame_tracker(tracker):
    return FrameTracker(SlamConfig(), tracker, SlamMap())


def begun(world, tracker):
    """A front end that follows the points of frame 0."""
    front = frame_tracker(tracker)
    front.track(world.frame(0))
    seen = OracleTracker(world).detect(world.frame(0).image[:, :, 0])
    front.tracks = front._landmarks.start(seen.pixels, seen.descriptors, world.frame(0).image)
    return front


@pytest.fixture(scope="module")
def world():
    return room(30, 0.1)


@pytest.mark.parametrize("where", NOWHERE)
def test_a_track_that_is_followed_to_nowhere_is_lost(world, where):
    front = begun(world, Spoiling(world, where))
    before = len(front.tracks)
    front.track(world.frame(1))
    assert world.camera.contains(front.tracks.pixels).all()
    assert 0.5 * before < len(front.tracks) <= before * 2 / 3 + 1


@pytest.mark.parametrize("where", NOWHERE)
def test_a_feature_that_lies_nowhere_is_none(world, where):
    front = frame_tracker(Spoiling(world, where))
    front.track(world.frame(0))
    for seen in (front.extract(world.frame(0)), front.extract_from(world.frame(0))):
        assert len(seen.features) > 100
        assert world.camera.contains(seen.features.pixels).all()
        assert len(seen.features) == len(seen.features.descriptors) == len(seen.features.scales)


def test_a_feature_whose_looks_are_not_finite_is_none(world):
    class Blind(OracleTracker):
        def detect(self, gray):
            found = super().detect(gray)
            descriptors, scales = found.descriptors.copy(), found.scales.copy()
            descriptors[0], scales[1] = np.nan, np.inf
            return LocalFeatures(found.pixels, descriptors, scales)

    all_of_them = frame_tracker(OracleTracker(world)).extract_from(world.frame(0)).features
    seen = frame_tracker(Blind(world)).extract_from(world.frame(0)).features
    assert np.array_equal(seen.pixels, all_of_them.pixels[2:])


def test_features_that_are_all_right_are_passed_on_as_they_are(world):
    tracker, found = OracleTracker(world), []

    def detect(gray):
        found.append(OracleTracker.detect(tracker, gray))
        return found[-1]

    tracker.detect = detect
    assert frame_tracker(tracker).extract_from(world.frame(0)).features is found[0]


def test_an_image_without_pixels_shows_nothing_and_no_tracker_is_asked_of_it(world):
    front = begun(world, OracleTracker(world))
    empty = world.frame(1).without_image()
    front.track(empty)
    assert len(front.tracks) == 0
    assert len(front.extract(empty).features) == len(front.extract_from(empty).features) == 0
    front.track(world.frame(2))
    assert len(front.extract(world.frame(2)).features) > 100


def test_an_image_of_another_size_has_none_of_the_tracks(world):
    front = begun(world, OracleTracker(world))
    assert len(front.tracks) > 100
    small = replace(world.frame(1), image=np.ascontiguousarray(world.frame(1).image[:-1]))
    front.track(small)
    assert isinstance(front.tracks, Tracks)
    assert len(front.tracks) == 0

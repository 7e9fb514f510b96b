"""A map made ready for asking, on one small enough to see through: two keyframes and four landmarks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from relocalizer.camera import Camera
from relocalizer.maps.map_index import MapIndex
from relocalizer.maps.reference_map import (
    EdgeTable,
    FeatureTable,
    FrameTable,
    KeyframeTable,
    LandmarkTable,
    ObservationTable,
    Provenance,
    ReferenceMap,
)

CAMERA = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)


def small_map():
    """Keyframe 7 at the origin sees tracks 2, 3, 5; keyframe 9, a unit right of it with scale 2, sees 3, 5, 6.

    Track 4 lies on a feature of keyframe 9 and has no place.
    """
    features = np.eye(6, 128) * 200
    return ReferenceMap(
        provenance=Provenance(predictor="geometric", descriptor="vlad"),
        cameras=(CAMERA,),
        keyframes=KeyframeTable(
            ids=np.array([7, 9]),
            frame_indices=np.array([0, 1]),
            timestamps_ns=np.array([0, 1]),
            camera=np.zeros(2, np.int64),
            segment=np.zeros(2, np.int64),
            rotations=np.array([np.eye(3)] * 2),
            translations=np.array([[0.0, 0, 0], [1.0, 0, 0]]),
            scales=np.array([1.0, 2.0]),
            descriptors=np.eye(2, dtype=np.float32),
        ),
        features=FeatureTable(
            offsets=np.array([0, 3, 6]),
            pixels=np.zeros((6, 2), np.float32),
            scales=np.ones(6, np.float32),
            descriptors=features.astype(np.uint8),
            landmark=np.array([2, 3, -1, 4, 5, 6]),
        ),
        observations=ObservationTable(
            offsets=np.array([0, 3, 6]), landmark=np.array([2, 3, 5, 3, 5, 6]), pixels=np.zeros((6, 2), np.float32)
        ),
        landmarks=LandmarkTable(
            ids=np.array([2, 3, 5, 6]),
            anchor=np.array([7, 7, 7, 9]),
            points_in_anchor=np.array([[0, 0, 2.0], [0, 0, 4.0], [0, 3.0, 4.0], [0, 0, 3.0]]),
            inverse_depth_sigma=np.full(4, 0.01),
            descriptors=features[:4].astype(np.uint8),
            colors=np.zeros((4, 3), np.uint8),
        ),
        edges=EdgeTable.none(),
        frames=FrameTable.none(),
        image=lambda row: np.zeros((480, 640, 3), np.uint8),
    )


@pytest.fixture
def index():
    return MapIndex(small_map())


def test_features_are_those_whose_track_has_a_place_with_rows_of_landmarks(index):
    tracked = index.tracked_features(1)
    assert tracked.landmark.tolist() == [-1, 2, 3]
    np.testing.assert_allclose(tracked.features.descriptors[1:], np.eye(6, 128)[4:])


def test_landmarks_of_keyframes_are_named_once(index):
    assert index.observed_landmarks([0]).tolist() == [0, 1, 2]
    assert index.observed_landmarks([0, 1]).tolist() == [0, 1, 2, 3]
    assert index.observed_landmarks([]).tolist() == []


def test_relatives_see_the_most_of_the_landmarks(index):
    assert index.observers(np.array([0, 1]), 5) == [0, 1]
    assert index.observers(np.array([3]), 5) == [1]
    assert index.observers(np.array([1, 2]), 1) == [0]


def test_depths_are_distances_in_map_units(index):
    # Keyframe 7: 2, 4 and 5; keyframe 9 from (1, 0, 0): sqrt(17), sqrt(26) and 2 * 3.
    np.testing.assert_allclose(index.depths, [4.0, np.sqrt(26.0)])


def test_a_landmark_is_least_known_along_its_ray(index):
    # depth^2 * sigma of the inverse depth, along a ray of z = 1, in the anchor's units.
    np.testing.assert_allclose(index.depth_sigma_world(np.arange(4))[0], [0, 0, 0.04])
    np.testing.assert_allclose(index.depth_sigma_world(np.arange(4))[2], [0, 0.12, 0.16])
    np.testing.assert_allclose(index.depth_sigma_world(np.arange(4))[3], [0, 0, 0.18])


def test_without_landmarks_the_depth_is_how_far_the_keyframes_spread():
    small = small_map()
    table = small.landmarks
    none = LandmarkTable(**{name: getattr(table, name)[:0] for name in table.__dataclass_fields__})
    index = MapIndex(replace(small, landmarks=none))
    assert index.depth_of(0) == pytest.approx(0.5)
    assert (index.tracked_features(0).landmark == -1).all()

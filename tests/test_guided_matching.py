"""Known points looked for around where they should be, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from relocalizer.features import LocalFeatures, occupied_cells
from relocalizer.geometry import rigid
from relocalizer.guided_matching import expected_in, first_of_each, one_to_one, similar_nearby
from relocalizer.images import Camera

CAMERA = Camera(width=100, height=80, fx=50.0, fy=50.0, cx=50.0, cy=40.0)
LOOKS = np.eye(4, 128, dtype=np.float32)


def features_at(pixels, looks):
    return LocalFeatures(np.array(pixels, np.float32), LOOKS[looks], np.full(len(pixels), 4.0, np.float32))


def test_points_behind_and_beside_the_picture_are_not_expected():
    points = np.array([[0.0, 0.0, 2.0], [0.0, 0.0, -2.0], [9.0, 0.0, 2.0], [1.0, 0.0, 3.0]])
    rows, pixels = expected_in(points, rigid(np.eye(3), [0.0, 0.0, 1.0]), CAMERA)
    assert rows.tolist() == [0, 3]
    assert pixels == pytest.approx(np.array([[50.0, 40.0], [75.0, 40.0]]))


def test_a_point_is_found_by_its_looks_within_the_radius_alone():
    features = features_at([[10, 10], [13, 10], [60, 60]], [1, 0, 0])
    rows, columns = similar_nearby(np.array([[11.0, 10.0]]), LOOKS[[0]], features, radius_px=5.0, min_similarity=0.5)
    assert (rows.tolist(), columns.tolist()) == ([0], [1])


def test_features_that_are_taken_are_left_out():
    features = features_at([[10, 10], [12, 10]], [0, 0])
    _, columns = similar_nearby(
        np.array([[10.0, 10.0]]), LOOKS[[0]], features, radius_px=5.0, min_similarity=0.5, among=np.array([1])
    )
    assert columns.tolist() == [1]


@pytest.mark.parametrize(("points", "features"), [(0, 1), (1, 0)])
def test_nothing_on_one_side_gives_no_pairs(points, features):
    rows, columns = similar_nearby(
        np.zeros((points, 2)),
        LOOKS[:points],
        features_at(np.zeros((features, 2)), [0] * features),
        radius_px=5.0,
        min_similarity=0.5,
    )
    assert len(rows) == len(columns) == 0


def test_of_pairs_the_best_of_each_point_and_then_of_each_feature_stay():
    rows, columns = one_to_one(np.array([2, 0, 2, 1]), np.array([5, 5, 6, 7]))
    assert (rows.tolist(), columns.tolist()) == ([2, 1], [5, 7])


def test_the_first_of_each_value_stays_in_order():
    assert first_of_each(np.array([3, 1, 3, 2, 1])).tolist() == [0, 1, 3]


def test_cells_are_counted_once_and_the_border_belongs_to_the_picture():
    pixels = np.array([[0.0, 0.0], [1.0, 1.0], [99.9, 79.9], [100.0, 80.0], [50.0, 40.0]])
    assert occupied_cells(pixels, CAMERA) == 3

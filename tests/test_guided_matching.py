"""Guided matching of known points around their predicted pixels, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures, match_features, occupied_cells
from relocalizer.geometry import exp_so3, rigid, skew
from relocalizer.guided_matching import expected_in, first_of_each, match_along_lines, one_to_one, similar_nearby

CAMERA = Camera(width=100, height=80, fx=50.0, fy=50.0, cx=50.0, cy=40.0)
LOOKS = np.eye(4, 128, dtype=np.float32)


def features_at(pixels, looks):
    return LocalFeatures(np.array(pixels, np.float32), LOOKS[looks], np.full(len(pixels), 4.0, np.float32))


def test_points_behind_and_beside_the_image_are_not_expected():
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


def test_cells_are_counted_once_and_the_border_belongs_to_the_image():
    pixels = np.array([[0.0, 0.0], [1.0, 1.0], [99.9, 79.9], [100.0, 80.0], [50.0, 40.0]])
    assert occupied_cells(pixels, CAMERA) == 3


# Along epipolar lines


def along_rows(a, b, **changes):
    """Matches of two images of which the second was taken beside the first, so that lines are rows."""
    settings = {"ratio": 0.85, "min_similarity": 0.8, **changes}
    return match_along_lines(a, b, CAMERA, CAMERA, np.eye(3), np.array([1.0, 0.0, 0.0]), **settings).tolist()


def test_what_looks_alike_is_distinguished_by_the_lines_it_lies_on():
    left, right = features_at([[50, 20], [50, 60]], [0, 0]), features_at([[40, 60], [30, 20]], [0, 0])
    assert len(match_features(left, right, ratio=0.85)) == 0
    assert along_rows(left, right) == [[0, 1], [1, 0]]


def test_what_looks_alike_on_one_line_stays_unmatched():
    left, right = features_at([[50, 20], [70, 20]], [0, 0]), features_at([[40, 20], [30, 20]], [0, 0])
    assert along_rows(left, right) == []


@pytest.mark.parametrize(("apart", "matched"), [(2.0, True), (2.2, False)])
def test_a_partner_lies_within_the_band_shared_by_both_images(apart, matched):
    # To first order both images share what a match is off, so one and a half pixels are 2.1 of a difference in rows.
    left, right = features_at([[50, 20]], [0]), features_at([[40, 20 + apart]], [0])
    assert bool(along_rows(left, right)) is matched


def test_points_that_do_not_look_alike_are_not_matched_however_well_they_lie():
    assert along_rows(features_at([[50, 20]], [0]), features_at([[40, 20]], [1])) == []


def test_swapping_the_images_swaps_the_columns():
    left = features_at([[50, 20], [50, 40], [20, 60]], [0, 1, 0])
    right = features_at([[40, 60], [30, 20], [10, 40]], [0, 0, 1])
    there = along_rows(left, right)
    back = match_along_lines(
        right, left, CAMERA, CAMERA, np.eye(3), np.array([-1.0, 0.0, 0.0]), ratio=0.85, min_similarity=0.8
    )
    assert sorted(back[:, ::-1].tolist()) == there
    assert len(there) == 3


def test_an_image_without_points_has_no_matches():
    assert along_rows(features_at(np.zeros((0, 2)), []), features_at([[40, 20]], [0])) == []


def test_matches_along_lines_are_those_of_all_pairs_compared_with_one_another():
    rng = np.random.default_rng(5)
    points = rng.uniform([-1.0, -0.8, 2.0], [1.0, 0.8, 4.0], (300, 3))
    turn, step = exp_so3(np.array([0.02, -0.1, 0.05])), np.array([0.3, 0.1, 0.2])  # a_from_b
    looks = np.abs(rng.standard_normal((30, 128)))[rng.integers(0, 30, 300)]  # many points look nearly alike
    sides = []
    for seen in (points, (points - step) @ turn):
        descriptors = looks + 0.3 * np.abs(rng.standard_normal(looks.shape))
        descriptors = (descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)).astype(np.float32)
        pixels = (CAMERA.project(seen) + 0.3 * rng.standard_normal((300, 2))).astype(np.float32)
        sides.append(LocalFeatures(pixels, descriptors, np.full(300, 4.0, np.float32)))
    a, b = sides
    inverse = np.linalg.inv(CAMERA.matrix)
    fundamental = inverse.T @ skew(step) @ turn @ inverse
    x_a, x_b = (np.hstack([side.pixels, np.ones((300, 1))]) for side in sides)
    lines_a, lines_b = x_b @ fundamental.T, x_a @ fundamental
    squared_gradient = (lines_b[:, :2] ** 2).sum(axis=1)[:, None] + (lines_a[:, :2] ** 2).sum(axis=1)
    similarity = np.where((x_a @ lines_a.T) ** 2 < 1.5**2 * squared_gradient, a.descriptors @ b.descriptors.T, -1.0)

    def is_clear_best(i, j, among):
        second = np.delete(among, j).max()
        return among[j] == among.max() and 1 - among[j] < 0.8**2 * (1 - second)

    expected = [
        [i, j]
        for i, j in zip(*np.nonzero(similarity > 0.8), strict=True)
        if is_clear_best(i, j, similarity[i]) and is_clear_best(j, i, similarity[:, j])
    ]
    found = match_along_lines(a, b, CAMERA, CAMERA, turn, step, ratio=0.8, min_similarity=0.8)
    assert len(expected) > 50
    assert found.tolist() == expected

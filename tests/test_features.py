import weakref

import cv2
import numpy as np
import pytest

from relocalizer import features
from relocalizer.config import FeaturesConfig
from relocalizer.features import LocalFeatures, detect_features, match_features, root_sift, spread

cv2.setNumThreads(1)


def speckled(rng, height=240, width=320):
    """An image with corners everywhere, at several scales."""
    canvas = np.zeros((height, width), np.float32)
    for cell in (4, 8, 16):
        grid = rng.standard_normal((height // cell, width // cell)).astype(np.float32)
        canvas += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 40 * canvas, 0, 255).astype(np.uint8)


def unit_rows(rng, count, size=128):
    rows = np.abs(rng.standard_normal((count, size))).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_features_have_the_promised_shapes_types_and_unit_descriptors(rng):
    features = detect_features(speckled(rng), FeaturesConfig(max_features=200))
    assert len(features) == 200
    assert features.pixels.shape == (200, 2)
    assert features.descriptors.shape == (200, 128)
    assert features.scales.shape == (200,)
    assert {features.pixels.dtype, features.descriptors.dtype, features.scales.dtype} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1.0, atol=1e-5)


def test_the_same_image_gives_the_same_bytes(rng):
    image = speckled(rng)
    first, second = (detect_features(image.copy(), FeaturesConfig()) for _ in range(2))
    assert first.pixels.tobytes() == second.pixels.tobytes()
    assert first.descriptors.tobytes() == second.descriptors.tobytes()


@pytest.mark.parametrize(("scale", "alike"), [(0.7, 0.97), (0.5, 0.95), (1.0, 0.95)])
def test_descriptors_are_those_of_sift_in_the_doubled_image(rng, scale, alike):
    image = speckled(rng)
    features = detect_features(image, FeaturesConfig(max_features=200, detection_scale=scale))
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    sift = cv2.SIFT.create(contrastThreshold=0.01, enable_precise_upscale=True)
    keypoints = sift.detect(small, None)
    points = (np.float32([k.pt for k in keypoints]) + 0.5) / scale - 0.5
    # A keypoint with several orientations is there several times; the last of them is kept.
    nearest = [np.flatnonzero(np.abs(points - p).max(axis=1) < 1e-3)[-1] for p in features.pixels]
    _, raw = sift.compute(small, [keypoints[n] for n in nearest])
    similarity = (root_sift(raw) * features.descriptors).sum(axis=1)
    assert np.median(similarity) > alike
    assert np.quantile(similarity, 0.05) > alike - 0.03


def test_a_blank_image_has_no_features():
    features = detect_features(np.full((120, 160), 77, np.uint8), FeaturesConfig())
    assert len(features) == 0
    assert features.descriptors.shape == (0, 128)


def test_a_mask_keeps_points_out(rng):
    mask = np.zeros((240, 320), np.uint8)
    mask[:, 160:] = 255
    features = detect_features(speckled(rng), FeaturesConfig(), mask)
    assert len(features) > 20
    assert features.pixels[:, 0].min() > 155


def test_a_faint_half_keeps_points_that_a_strong_one_would_crowd_out(rng):
    image = speckled(rng).astype(np.float32)
    image[:, :160] = 128 + 0.2 * (image[:, :160] - 128)
    features = detect_features(image.astype(np.uint8), FeaturesConfig(max_features=100))
    assert (features.pixels[:, 0] < 160).sum() >= 20


def test_every_point_is_there_once(rng):
    features = detect_features(speckled(rng), FeaturesConfig())
    assert len(np.unique(features.pixels, axis=0)) == len(features)


@pytest.mark.parametrize("scale", [1.0, 0.7, 0.5])
def test_a_blob_is_found_at_its_center_whatever_the_detection_scale(scale):
    y, x = np.mgrid[:240, :320]
    blob = 40 + 180 * np.exp(-((x - 201.25) ** 2 + (y - 98.75) ** 2) / (2 * 5.0**2))
    features = detect_features(blob.astype(np.uint8), FeaturesConfig(detection_scale=scale))
    miss = np.linalg.norm(features.pixels - [201.25, 98.75], axis=1).min()
    assert miss < 0.15


def test_a_color_image_is_refused():
    with pytest.raises(ValueError, match=r"expected \(H, W\) uint8, got \(8, 8, 3\) uint8"):
        detect_features(np.zeros((8, 8, 3), np.uint8), FeaturesConfig())


def test_spread_takes_the_best_of_every_cell_before_the_second_best_of_any():
    pixels = np.array([[10, 10], [11, 10], [12, 10], [300, 200]], np.float32)
    strengths = np.array([9, 8, 7, 1], np.float32)
    assert spread(pixels, strengths, (240, 320), 2).tolist() == [0, 3]


def test_spread_returns_strongest_first(rng):
    pixels = rng.uniform(0, 200, (50, 2)).astype(np.float32)
    strengths = rng.random(50).astype(np.float32)
    chosen = spread(pixels, strengths, (200, 200), 50)
    assert sorted(chosen.tolist()) == list(range(50))
    assert (np.diff(strengths[chosen]) <= 0).all()


def test_root_sift_turns_the_inner_product_into_the_hellinger_kernel():
    histogram = np.array([[4.0, 0.0, 12.0], [1.0, 3.0, 0.0]], np.float32)
    rooted = root_sift(histogram)
    assert rooted[0] @ rooted[1] == pytest.approx(np.sqrt(0.25 * 0.25))


def test_matches_find_a_permutation_under_noise(rng):
    a = unit_rows(rng, 300)
    order = rng.permutation(300)
    b = a[order] + 0.01 * rng.standard_normal((300, 128)).astype(np.float32)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    found = match_features(a, b, ratio=0.8)
    assert len(found) == 300
    assert (order[found[:, 1]] == found[:, 0]).all()


def test_swapping_the_images_swaps_the_columns(rng):
    a, b = unit_rows(rng, 200, 16), unit_rows(rng, 150, 16)
    forth, back = match_features(a, b, ratio=0.95), match_features(b, a, ratio=0.95)
    assert len(forth) > 10
    assert sorted(map(tuple, forth.tolist())) == sorted(map(tuple, back[:, ::-1].tolist()))


def test_a_point_with_a_twin_is_not_matched(rng):
    a = unit_rows(rng, 20)
    b = np.concatenate([a, a[3:4]])
    assert 3 not in match_features(a, b, ratio=0.8)[:, 0]


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (1, 5), (5, 1)])
def test_without_a_second_nearest_nothing_is_matched(rng, sizes):
    found = match_features(unit_rows(rng, sizes[0]), unit_rows(rng, sizes[1]), ratio=0.8)
    assert found.shape == (0, 2)


def test_matching_leaves_its_input_alone(rng):
    features = LocalFeatures(np.zeros((30, 2), np.float32), unit_rows(rng, 30), np.ones(30, np.float32))
    before = features.descriptors.copy()
    match_features(features, features, ratio=0.8)
    assert (features.descriptors == before).all()


def features_of(rng, count):
    return LocalFeatures(np.zeros((count, 2), np.float32), unit_rows(rng, count, 16), np.ones(count, np.float32))


def test_two_images_are_matched_once_in_both_orders_and_for_every_ratio(rng, monkeypatch):
    a, b = features_of(rng, 200), features_of(rng, 150)
    expected = {ratio: match_features(a.descriptors, b.descriptors, ratio=ratio).tolist() for ratio in (0.7, 0.8, 0.85)}
    assert len(expected[0.7]) < len(expected[0.8]) < len(expected[0.85])
    match_features(a, b, ratio=0.8)[:] = -1  # a caller may change what it receives
    monkeypatch.setattr("relocalizer.features._nearest", None)
    for ratio, pairs in expected.items():
        assert match_features(a, b, ratio=ratio).tolist() == pairs
        assert match_features(b, a, ratio=ratio).tolist() == sorted([j, i] for i, j in pairs)


def test_the_matches_of_images_that_are_no_longer_in_use_are_dropped(rng):
    a, b = features_of(rng, 20), features_of(rng, 20)
    match_features(a, b, ratio=0.8)
    match_features(b, a, ratio=0.8)
    gone = [weakref.ref(a), weakref.ref(b)]
    del a
    assert gone[0]() is None
    assert not features._kept[b]
    del b
    assert gone[1]() is None


def test_an_image_of_little_contrast_gives_points_that_are_found_again(rng):
    image = speckled(rng, 480, 640)
    faint = np.rint(128 + (image.astype(np.float32) - 128) / 25).astype(np.uint8)
    moved = np.roll(faint, (3, 7), axis=(0, 1))
    config = FeaturesConfig()
    first, second = detect_features(faint, config), detect_features(moved, config)
    assert len(first) > 600
    pairs = match_features(first, second, ratio=0.8)
    shift = second.pixels[pairs[:, 1]] - first.pixels[pairs[:, 0]]
    assert (np.linalg.norm(shift - (7, 3), axis=1) < 1).sum() > 300


def test_a_blank_image_gives_no_points():
    assert len(detect_features(np.full((240, 320), 90, np.uint8), FeaturesConfig())) == 0

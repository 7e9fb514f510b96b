"""A map from posed images: its points are where they are, and wrong matches and wrong poses give no points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracle import CAMERA, OraclePredictor, OracleTracker, OracleWorld, room_path, room_points
from scipy.spatial import cKDTree

from relocalizer.config import PosedImagesConfig
from relocalizer.errors import MapError, SequenceError
from relocalizer.geometry import exp_so3, identity, rigid, rotation_matrix, translation_of
from relocalizer.maps.image_matching import PosedImage, choose_pairs, epipolar_px
from relocalizer.maps.map_from_poses import map_from_poses, thinned
from relocalizer.maps.map_rules import validate


@pytest.fixture(scope="module")
def world():
    world = OracleWorld(room_path(120), room_points(np.random.default_rng(3), 1500), pixel_noise=0.3)
    world.descriptors[:] = np.abs(world.descriptors)
    return world


@pytest.fixture(autouse=True)
def oracle_features(monkeypatch, world):
    """Features come from the world, without signs as those of real images."""
    tracker = OracleTracker(world)

    def detect(gray, *_):
        found = tracker.detect(gray)
        positive = np.maximum(found.descriptors, 0.0)
        return replace(found, descriptors=positive / np.linalg.norm(positive, axis=1, keepdims=True))

    monkeypatch.setattr("relocalizer.maps.image_matching.detect_features", detect)


def images_of(world, indices, *, moved=None):
    return [
        PosedImage(
            name=str(k),
            read=lambda k=k: world.frame(k).image,
            camera=world.camera,
            world_from_cam=world.poses[k] if moved is None else moved(world.poses[k], k),
            timestamp_ns=1000 * k,
        )
        for k in indices
    ]


def posed(pose):
    return PosedImage(name="p", read=lambda: None, camera=CAMERA, world_from_cam=pose)


def made(world, indices=range(0, 120, 6), *, moved=None, **config):
    return map_from_poses(
        images_of(world, indices, moved=moved), OraclePredictor(world), config=PosedImagesConfig(**config)
    )


def test_landmarks_lie_where_the_points_are(world):
    found = made(world)
    validate(found)
    off, nearest = cKDTree(world.points).query(found.points_world)
    assert len(found.landmarks) > 500
    assert np.median(off) < 0.01
    assert np.quantile(off, 0.95) < 0.08
    assert len(np.unique(nearest)) > 0.95 * len(nearest)  # a point is one landmark


def unreadable(image):
    def read():
        raise SequenceError(f"{image.name}.png: the image is cut off")

    return replace(image, read=read)


def test_images_that_cannot_be_read_are_left_out_and_reported(world, caplog):
    images = images_of(world, range(0, 60, 6))
    broken = [unreadable(p) if k in (0, 4) else p for k, p in enumerate(images)]
    found = map_from_poses(broken, OraclePredictor(world))
    without = map_from_poses([p for k, p in enumerate(images) if k not in (0, 4)], OraclePredictor(world))
    assert found.keyframes.frame_indices.tolist() == [1, 2, 3, 5, 6, 7, 8, 9]
    assert np.array_equal(found.points_world, without.points_world)
    assert "2 images cannot be read and are left out; the first: 0.png: the image is cut off" in caplog.text


def test_images_of_which_hardly_one_can_be_read_make_no_map(world):
    broken = [unreadable(p) for p in images_of(world, range(3))]
    with pytest.raises(MapError, match=r"got 0 \(3 cannot be read; the first: 0\.png: the image is cut off\)"):
        map_from_poses(broken, OraclePredictor(world))


@pytest.mark.parametrize(("units", "source"), [("meters", "the poses the images came with"), ("map units", "")])
def test_meters_come_from_the_poses(world, units, source):
    found = map_from_poses(images_of(world, range(0, 12, 6)), OraclePredictor(world), units=units)
    assert (found.provenance.units, found.provenance.scale_source) == (units, source)


def test_keyframes_keep_the_poses_and_times_that_were_given(world):
    found = made(world)
    for row, k in enumerate(range(0, 120, 6)):
        pose = found.keyframes.world_from_keyframe(row)
        np.testing.assert_allclose(pose.translation, translation_of(world.poses[k]))
        np.testing.assert_allclose(pose.rotation, rotation_matrix(world.poses[k]))
        assert found.keyframes.timestamps_ns[row] == 1000 * k


def test_every_feature_of_the_map_lies_on_a_landmark_that_projects_to_it(world):
    found = made(world)
    assert (found.features.landmark >= 0).all()
    for row in range(len(found.keyframes)):
        part = slice(found.features.offsets[row], found.features.offsets[row + 1])
        points = found.points_world[found.features.landmark[part]]
        local = np.asarray(found.keyframes.world_from_keyframe(row).rigid.inv().apply(points))
        off = np.linalg.norm(CAMERA.project(local) - found.features.pixels[part], axis=1)
        assert off.max() < 3.0


def test_the_same_images_give_the_same_map(world):
    a, b = made(world), made(world)
    np.testing.assert_array_equal(a.landmarks.points_in_anchor, b.landmarks.points_in_anchor)
    np.testing.assert_array_equal(a.features.landmark, b.features.landmark)


def test_poses_of_other_images_give_almost_no_landmarks(world):
    shuffled = np.random.default_rng(0).permutation(120)
    wrong = made(world, moved=lambda _, k: world.poses[shuffled[k]])
    assert len(wrong.landmarks) < 0.05 * len(made(world).landmarks)


def test_one_wrong_pose_spoils_its_own_image_only(world):
    lost = exp_so3([0.0, 0.4, 0.0])
    found = made(world, moved=lambda pose, k: pose * rigid(lost, [0.2, 0.0, 0.0]) if k == 60 else pose)
    off, _ = cKDTree(world.points).query(found.points_world)
    counts = np.diff(found.features.offsets)
    assert counts[10] < 0.1 * np.median(counts)
    assert np.quantile(off, 0.95) < 0.08


def test_progress_tells_images_and_pairs_to_the_last(world):
    reported = []
    map_from_poses(
        images_of(world, range(0, 16, 4)), OraclePredictor(world), on_progress=lambda *said: reported.append(said)
    )
    assert ("images", 4, 4) in reported
    assert [said for said in reported if said[0] == "pairs"][-1] == ("pairs", 6, 6)


def test_one_image_is_no_map(world):
    with pytest.raises(MapError, match="at least two images from different poses, got 1"):
        made(world, [5])


def test_images_from_one_place_give_no_landmarks_but_a_map(world):
    found = made(world, [5, 5, 5])
    validate(found)
    assert len(found.landmarks) == 0


# Which images


def test_without_limits_nothing_is_thinned_out(world):
    assert len(thinned(images_of(world, [0, 0, 1]), PosedImagesConfig())) == 3


def test_an_image_is_left_out_when_it_is_near_and_hardly_turned():
    config = PosedImagesConfig(min_distance=0.1, min_angle_deg=10)
    here, near = identity(), rigid(np.eye(3), [0.05, 0, 0])
    turned, far = rigid(exp_so3([0, 0.3, 0]), [0.05, 0, 0]), rigid(np.eye(3), [0.2, 0, 0])
    images = [posed(pose) for pose in (here, near, turned, far)]
    kept = thinned(images, config)
    assert kept == [images[0], images[2], images[3]]


def test_pairs_look_the_same_way_and_are_named_once(rng):
    poses = [rigid(exp_so3([0.0, angle, 0.0]), [0.0, 0.0, 0.0]) for angle in np.radians([0, 20, 50, 100, 180])]
    places = rng.random((5, 8), dtype=np.float32)
    pairs = choose_pairs(places, poses, PosedImagesConfig(max_angle_deg=60))
    assert pairs == [(0, 1), (0, 2), (1, 2), (2, 3)]


def test_of_many_images_each_is_matched_to_near_and_far_ones():
    places = np.array([[np.cos(a), np.sin(a)] for a in np.linspace(0, 1, 200)], dtype=np.float32)
    pairs = choose_pairs(places, [identity()] * 200, PosedImagesConfig(partners=10))
    apart = sorted(j - i for i, j in pairs if i == 0)
    assert apart[:3] == [1, 2, 3]
    assert apart[-1] > 30
    assert len(pairs) < 200 * 10


# Epipolar lines


def test_a_point_is_on_its_epipolar_line_and_off_it_by_what_it_is_moved_across():
    i, j = posed(identity()), posed(rigid(np.eye(3), [1.0, 0.0, 0.0]))
    pixels = np.array([[300.0, 200.0], [320.0, 240.0]], np.float32)
    along, across = np.array([[-40.0, 0.0]] * 2, np.float32), np.array([[0.0, 4.0]] * 2, np.float32)
    np.testing.assert_allclose(epipolar_px(i, j, pixels, pixels + along), [0.0, 0.0], atol=1e-3)
    np.testing.assert_allclose(epipolar_px(i, j, pixels, pixels + along + across), [4.0, 4.0], rtol=1e-3)


def test_from_one_place_a_point_must_be_where_turning_puts_it():
    i, j = posed(identity()), posed(identity())
    pixels = np.array([[300.0, 200.0]], np.float32)
    np.testing.assert_allclose(epipolar_px(i, j, pixels, pixels + 3.0), [np.sqrt(18.0)], rtol=1e-3)

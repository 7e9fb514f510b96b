"""The conventions, each pinned by a case small enough to check by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import gtsam
import numpy as np
import pytest

from relocalizer.camera import Camera
from relocalizer.geometry import (
    Similarity,
    exp_so3,
    log_so3,
    quaternion_xyzw_from_rotation,
    rigid,
    rotation_from_quaternion_wxyz,
    rotation_from_quaternion_xyzw,
    rotation_matrix,
    skew,
    translation_of,
)
from relocalizer.images import read_image
from relocalizer.interfaces import PairEstimate
from slam.evaluation.trajectory import nanoseconds_from_seconds
from slam.map.frames import Frame

HALF = np.sqrt(0.5)

# Turning by a quarter about y, the axis that points down: what was ahead (z) comes to lie right (x).
QUARTER_ABOUT_Y = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
QUARTER_ABOUT_Z = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def test_a_camera_one_unit_to_the_right_sees_a_point_one_unit_further_left() -> None:
    world_from_cam = rigid(np.eye(3), [1.0, 0.0, 0.0])
    assert np.allclose(world_from_cam.inv().apply([1.0, 0.0, 5.0]), [0.0, 0.0, 5.0])
    assert np.allclose(world_from_cam.inv().apply([0.0, 0.0, 5.0]), [-1.0, 0.0, 5.0])


def test_the_translation_of_a_pose_is_the_camera_center() -> None:
    world_from_cam = rigid(QUARTER_ABOUT_Y, [1.0, 2.0, 3.0])
    assert np.allclose(world_from_cam.apply([0.0, 0.0, 0.0]), [1.0, 2.0, 3.0])
    assert np.allclose(translation_of(world_from_cam), [1.0, 2.0, 3.0])


def test_a_camera_turned_a_quarter_to_the_right_looks_along_x() -> None:
    world_from_cam = rigid(QUARTER_ABOUT_Y, [0.0, 0.0, 0.0])
    assert np.allclose(world_from_cam.apply([0.0, 0.0, 1.0]), [1.0, 0.0, 0.0])


def test_i_from_j_is_the_pose_of_camera_j_seen_from_camera_i() -> None:
    world_from_i = rigid(QUARTER_ABOUT_Y, [0.0, 0.0, 0.0])  # at the origin, looking along world x
    world_from_j = rigid(QUARTER_ABOUT_Y, [2.0, 0.0, 0.0])  # two units further the way it looks
    i_from_j = world_from_i.inv() * world_from_j
    assert np.allclose(translation_of(i_from_j), [0.0, 0.0, 2.0])  # straight ahead
    assert np.allclose((world_from_i * i_from_j).as_matrix(), world_from_j.as_matrix())


def test_the_product_applies_its_right_factor_first() -> None:
    turn, step = rigid(QUARTER_ABOUT_Z, [0.0, 0.0, 0.0]), rigid(np.eye(3), [1.0, 0.0, 0.0])
    assert np.allclose((turn * step).apply([0.0, 0.0, 0.0]), [0.0, 1.0, 0.0])
    assert np.allclose((step * turn).apply([0.0, 0.0, 0.0]), [1.0, 0.0, 0.0])


def test_pixels_go_right_and_down_with_x_and_y() -> None:
    camera = Camera(width=640, height=480, fx=500.0, fy=400.0, cx=320.0, cy=240.0)
    pixels = camera.project(np.array([[0.0, 0.0, 2.0], [1.0, 0.0, 2.0], [0.0, 1.0, 2.0]]))
    assert np.allclose(pixels, [[320.0, 240.0], [570.0, 240.0], [320.0, 440.0]])
    assert np.allclose(camera.matrix, [[500.0, 0.0, 320.0], [0.0, 400.0, 240.0], [0.0, 0.0, 1.0]])


def test_pixel_zero_zero_is_the_center_of_the_first_pixel() -> None:
    # The four pixels of a 2x2 block have their common corner at (0.5, 0.5), where the one pixel of the halved
    # image has its center, (0, 0).
    camera = Camera(width=2, height=2, fx=2.0, fy=2.0, cx=0.5, cy=0.5)
    assert camera.resized(1, 1) == Camera(width=1, height=1, fx=1.0, fy=1.0, cx=0.0, cy=0.0)


def test_images_are_rgb_and_height_comes_first(tmp_path: Path) -> None:
    bgr = np.zeros((2, 3, 3), dtype=np.uint8)
    bgr[0, 2] = (10, 20, 30)  # blue 10, green 20, red 30; top right
    cv2.imwrite(str(tmp_path / "a.png"), bgr)
    image = read_image(tmp_path / "a.png")
    assert image.shape == (2, 3, 3)
    assert image[0, 2].tolist() == [30, 20, 10]


def test_a_frame_takes_no_distorted_camera_and_no_gray_image() -> None:
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    pinhole = Camera.assume(6, 4, fov_deg=60)
    distorted = Camera(width=6, height=4, fx=5, fy=5, cx=3, cy=2, model="fisheye", distortion=(0.0, 0.0, 0.0, 0.0))
    assert Frame(index=0, timestamp_ns=0, image=image, camera=pinhole).view.camera is pinhole
    with pytest.raises(ValueError, match="undistorted before"):
        Frame(index=0, timestamp_ns=0, image=image, camera=distorted)
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
        Frame(index=0, timestamp_ns=0, image=image[..., 0], camera=pinhole)


def test_rotation_vectors_turn_by_the_right_hand_rule() -> None:
    assert np.allclose(exp_so3([0.0, 0.0, np.pi / 2]), QUARTER_ABOUT_Z)
    assert np.allclose(exp_so3([0.0, np.pi / 2, 0.0]), QUARTER_ABOUT_Y)
    assert np.allclose(log_so3(QUARTER_ABOUT_Z), [0.0, 0.0, np.pi / 2])


def test_skew_puts_minus_z_in_the_first_row() -> None:
    assert skew([1.0, 2.0, 3.0]).tolist() == [[0.0, -3.0, 2.0], [3.0, 0.0, -1.0], [-2.0, 1.0, 0.0]]


def test_quaternion_orders_are_what_their_names_say() -> None:
    assert np.allclose(quaternion_xyzw_from_rotation(QUARTER_ABOUT_Z), [0.0, 0.0, HALF, HALF])
    assert np.allclose(rotation_from_quaternion_xyzw([0.0, HALF, 0.0, HALF]), QUARTER_ABOUT_Y)
    assert np.allclose(rotation_from_quaternion_wxyz([HALF, 0.0, HALF, 0.0]), QUARTER_ABOUT_Y)


def test_the_stack_of_quaternions_keeps_rows_apart() -> None:
    rows = quaternion_xyzw_from_rotation(np.stack([np.eye(3), QUARTER_ABOUT_Z]))
    assert np.allclose(rows, [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, HALF, HALF]])


def test_a_similarity_is_scale_times_rotation_plus_translation() -> None:
    a_from_b = Similarity(QUARTER_ABOUT_Z, np.array([10.0, 0.0, 0.0]), 2.0)
    assert np.allclose(a_from_b.apply([1.0, 0.0, 0.0]), [10.0, 2.0, 0.0])


def test_a_frame_half_a_keyframe_unit_away_is_one_map_unit_away_at_scale_two() -> None:
    world_from_keyframe = Similarity(np.eye(3), np.array([0.0, 0.0, 1.0]), 2.0)
    pose = world_from_keyframe.compose_rigid(rigid(np.eye(3), [0.5, 0.0, 0.0]))
    assert np.allclose(translation_of(pose), [1.0, 0.0, 1.0])
    assert np.allclose(rotation_matrix(pose), np.eye(3))


def test_a_reversed_estimate_says_where_camera_i_is_from_camera_j() -> None:
    # j stands ahead of i and looks to i's right, so that i is at j's own right hand: +x.
    forward = PairEstimate(
        i_from_j_rotation=QUARTER_ABOUT_Y,
        i_from_j_direction=np.array([0.0, 0.0, 1.0]),
        confidence=1.0,
        rotation_sigma_rad=0.01,
        direction_sigma_rad=0.02,
    )
    backward = forward.reversed()
    assert np.allclose(backward.i_from_j_rotation, QUARTER_ABOUT_Y.T)
    assert backward.i_from_j_direction is not None
    assert np.allclose(backward.i_from_j_direction, [1.0, 0.0, 0.0])


def test_time_is_integer_nanoseconds_with_every_digit() -> None:
    assert nanoseconds_from_seconds("1403636579.763555584") == 1403636579763555584
    assert nanoseconds_from_seconds("0.1") == 100_000_000


def test_gtsam_between_of_two_poses_is_i_from_j() -> None:
    world_from_i = gtsam.Pose3(gtsam.Rot3(QUARTER_ABOUT_Y), np.zeros(3))
    world_from_j = gtsam.Pose3(gtsam.Rot3(QUARTER_ABOUT_Y), np.array([2.0, 0.0, 0.0]))
    assert np.allclose(world_from_i.between(world_from_j).translation(), [0.0, 0.0, 2.0])


def test_gtsam_tangents_are_rotation_first() -> None:
    turned = gtsam.Pose3.Expmap(np.array([0.0, 0.0, np.pi / 2, 0.0, 0.0, 0.0]))
    assert np.allclose(turned.rotation().matrix(), QUARTER_ABOUT_Z)
    moved = gtsam.Pose3.Expmap(np.array([0.0, 0.0, 0.0, 1.0, 2.0, 3.0]))
    assert np.allclose(moved.translation(), [1.0, 2.0, 3.0])


def test_gtsam_scales_the_translation_of_a_similarity_too() -> None:
    S = gtsam.Similarity3(gtsam.Rot3(QUARTER_ABOUT_Z), np.array([5.0, 0.0, 0.0]), 2.0)
    ours = Similarity(QUARTER_ABOUT_Z, np.array([10.0, 0.0, 0.0]), 2.0)  # its t is our translation / scale
    point = np.array([1.0, 0.0, 0.0])
    assert np.allclose(S.transformFrom(point), ours.apply(point))

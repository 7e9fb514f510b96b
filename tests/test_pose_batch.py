"""The poses of many images at once: each is what `optimize_pose` gives for that image alone."""

from __future__ import annotations

import numpy as np
import pytest

from relocalizer.absolute_pose import optimize_pose
from relocalizer.camera import Camera
from relocalizer.geometry import exp_so3, rigid
from relocalizer.pose_batch import LandmarkObservations, optimize_poses

CAMERAS = [
    Camera(width=640, height=480, fx=500.0, fy=480.0, cx=310.0, cy=250.0),
    Camera(width=320, height=240, fx=300.0, fy=310.0, cx=159.5, cy=121.0),
]
NOISE_PX = 0.8


def observed(seed, count, *, wrong=0.0, off=0.02):
    """Points that an image observes with noise, some of them at wrong pixels, and its pose, off by about so much."""
    rng, camera = np.random.default_rng(seed), CAMERAS[seed % 2]
    pose = rigid(exp_so3(rng.normal(size=3)), rng.normal(size=3))
    in_cam = rng.uniform([-1, -0.8, 2], [1, 0.8, 6], (count, 3))
    pixels = camera.project(in_cam) + rng.normal(0, NOISE_PX, (count, 2))
    pixels[rng.random(count) < wrong] = rng.uniform(0, 200, 2)
    start = pose * rigid(exp_so3(off * rng.normal(size=3)), off * rng.normal(size=3))
    return LandmarkObservations(
        np.asarray(pose.apply(in_cam)), pixels.astype(np.float32), camera, np.asarray(start.as_matrix())
    )


def alone(image):
    start = rigid(image.world_from_cam[:3, :3], image.world_from_cam[:3, 3])
    return optimize_pose(image.points_world, image.pixels, image.camera, start, noise_px=NOISE_PX)


def test_each_pose_is_that_of_its_image_alone():
    images = [
        observed(n, count, wrong=wrong, off=off)
        for n, (count, wrong, off) in enumerate(
            [(200, 0.0, 0.0), (150, 0.3, 0.02), (8, 0.0, 0.1), (90, 0.6, 0.05), (40, 0.1, 0.5), (3, 0.0, 0.01)]
        )
    ]
    poses, inliers = optimize_poses(images, noise_px=NOISE_PX)
    for image, pose, count in zip(images, poses, inliers, strict=True):
        fit = alone(image)
        assert np.allclose(pose, fit.world_from_cam.as_matrix(), atol=1e-9)
        assert count == fit.inlier_count


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e200])
def test_numbers_that_no_pose_can_be_fitted_to_leave_their_pose_and_do_not_change_the_others(wrong):
    good, bad = observed(0, 50), observed(1, 60)
    bad = LandmarkObservations(bad.points_world, np.full((60, 2), wrong), bad.camera, bad.world_from_cam)
    poses, inliers = optimize_poses([good, bad], noise_px=NOISE_PX)
    assert np.allclose(poses[0], alone(good).world_from_cam.as_matrix(), atol=1e-9)
    assert np.allclose(poses[1], bad.world_from_cam)
    assert inliers[1] == 0


def test_a_landmark_behind_the_camera_is_no_inlier():
    image = observed(0, 50)
    behind = 2 * image.world_from_cam[:3, 3] - image.points_world[:1]
    more = LandmarkObservations(
        np.vstack([image.points_world, behind]),
        np.vstack([image.pixels, image.pixels[:1]]),
        image.camera,
        image.world_from_cam,
    )
    poses, inliers = optimize_poses([image, more], noise_px=NOISE_PX)
    assert np.allclose(poses[1], poses[0], atol=1e-9)
    assert inliers[1] == inliers[0]

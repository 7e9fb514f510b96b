"""The pose of a frame from landmarks and points without a depth, on drawn points with known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.geometry import exp_so3, rigid, rotation_angle, rotation_matrix, translation_of
from slam.map.tracks import Tracks
from slam.tracking.frame_pose import ObservedPoints, points_without_depth
from slam.tracking.tracked_map import ReferenceView

CAMERA = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)
NOISE_PX = 0.8


class Points:
    """Landmarks 0 to N - 1 at known places."""

    def __init__(self, points):
        self.points = points

    def is_triangulated(self, ids):
        return ids < len(self.points)

    def points_world(self, ids):
        return self.points[ids]


def drawn(rng, pose, *, landmarks, others, depth=(2.0, 8.0), noise_px=NOISE_PX):
    """The reference keyframe at the origin, landmarks and other points that both images show, and their pixels."""
    pixels = rng.uniform((80, 60), (560, 420), (landmarks + others, 2))
    rays = np.column_stack([CAMERA.normalized(pixels), np.ones(len(pixels))])
    points = rays * rng.uniform(*depth, len(rays))[:, None]
    seen = CAMERA.project(np.asarray(pose.inv().apply(points))) + rng.normal(0, noise_px, pixels.shape)
    ids = np.arange(len(pixels))
    first = Tracks(ids, pixels.astype(np.float32))
    reference = ReferenceView(
        frame_index=0,
        camera=CAMERA,
        world_from_keyframe=RigidTransform.identity(),
        landmarks=first.where(ids < landmarks),
        without_depth=first.where(ids >= landmarks),
    )
    return Points(points[:landmarks]), reference, Tracks(ids, seen.astype(np.float32))


def errors(fit, pose):
    error = fit.world_from_cam.inv() * pose
    return np.degrees(rotation_angle(rotation_matrix(error))), float(np.linalg.norm(translation_of(error)))


def fitted(rng, pose, **counts):
    """Errors (degrees, units) of the pose from the landmarks alone, and from all points."""
    view, reference, tracks = drawn(rng, pose, **counts)
    landmarks = tracks.where(view.is_triangulated(tracks.ids))
    observed = ObservedPoints(view.points_world(landmarks.ids), landmarks.pixels, CAMERA, NOISE_PX)
    alone, noise = observed.pose_from(RigidTransform.identity())
    others = points_without_depth(view, reference, tracks)
    assert others is not None
    return errors(alone, pose), errors(observed.pose_with(others, alone, noise), pose)


def test_points_without_a_depth_improve_the_pose_of_a_camera_that_turns_on_the_spot():
    pose = rigid(exp_so3(np.array([0.02, 0.08, -0.01])), np.zeros(3))
    found = np.array([fitted(np.random.default_rng(n), pose, landmarks=20, others=2000) for n in range(20)])
    alone, together = np.median(found[:, 0], axis=0), np.median(found[:, 1], axis=0)
    # A point whose depth may be anything constrains the pose across its epipolar line only: half of a landmark.
    assert (together < 0.65 * alone).all()  # rotation and position


def test_points_without_a_depth_do_not_bias_the_position():
    pose = rigid(exp_so3(np.array([0.0, 0.03, 0.01])), np.array([0.3, -0.1, 0.2]))
    # The other points are three times as near or far as the landmarks, whose median depth is assumed for them.
    found = np.array(
        [fitted(np.random.default_rng(n), pose, landmarks=40, others=300, depth=(1.0, 9.0)) for n in range(20)]
    )
    assert np.median(found[:, 1, 1]) <= np.median(found[:, 0, 1])


def test_without_such_points_or_landmarks_there_are_none():
    rng, pose = np.random.default_rng(0), RigidTransform.identity()
    for counts in ({"landmarks": 30, "others": 0}, {"landmarks": 0, "others": 30}):
        assert points_without_depth(*drawn(rng, pose, **counts)) is None


@pytest.mark.parametrize("ratio", [1.0, 2.0, 3.0])
def test_the_noise_of_a_frame_is_that_of_its_points(ratio):
    pose = rigid(exp_so3(np.array([0.0, 0.05, 0.0])), np.array([0.1, 0.0, 0.0]))
    view, _, tracks = drawn(np.random.default_rng(1), pose, landmarks=200, others=0, noise_px=ratio * NOISE_PX)
    observed = ObservedPoints(view.points, tracks.pixels, CAMERA, NOISE_PX)
    fit, noise = observed.pose_from(RigidTransform.identity())
    assert noise == pytest.approx(ratio * NOISE_PX, rel=0.15)
    assert fit.inlier_count > 0.88 * 200  # 95 % of the points are within the bound at the true noise


def test_wrong_tracks_are_outliers_and_not_noise():
    pose = rigid(exp_so3(np.array([0.0, 0.05, 0.0])), np.array([0.1, 0.0, 0.0]))
    view, _, tracks = drawn(np.random.default_rng(2), pose, landmarks=200, others=0)
    pixels = tracks.pixels.copy()
    pixels[:60] += (40.0, -30.0)
    fit, noise = ObservedPoints(view.points, pixels, CAMERA, NOISE_PX).pose_from(RigidTransform.identity())
    assert noise < 2 * NOISE_PX
    assert not fit.inliers[:60].any()
    assert fit.inliers[60:].mean() > 0.9
    assert errors(fit, pose)[0] < 0.1

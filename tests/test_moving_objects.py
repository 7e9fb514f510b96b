"""Moving objects are distinguished from a static scene by the common residuals of neighboring tracks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from slam.map.tracks import Tracks
from slam.tracking.moving_objects import MovingObjects
from slam.tracking.static_fit import EpipolarLines, Landmarks, StaticFit
from slam.tracking.tracked_map import ReferenceView

CAMERA = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)
NOISE_PX = 0.8  # assumed


def ids_found(speed_px: float, noise_px: float, frames: int = 14) -> tuple[MovingObjects, np.ndarray, np.ndarray]:
    """The objects, the ids found, and which of all ids move: a third of the image's width, `speed_px` per frame."""
    rng = np.random.default_rng(4)
    x, y = np.meshgrid(np.arange(20, 620, 18.0), np.arange(20, 460, 18.0))
    pixels = np.column_stack([x.ravel(), y.ravel()])
    depth = rng.uniform(2.0, 5.0, len(pixels))
    points = np.column_stack([CAMERA.normalized(pixels), np.ones(len(pixels))]) * depth[:, None]
    moving = (pixels[:, 0] > 420) & (pixels[:, 1] > 150)
    ids, left, found = np.arange(len(pixels)), np.ones(len(pixels), bool), []
    objects, pose = MovingObjects(NOISE_PX), RigidTransform.identity()
    reference = ReferenceView(
        frame_index=0, camera=CAMERA, world_from_keyframe=pose, landmarks=Tracks.none(), without_depth=Tracks.none()
    )
    for k in range(1, frames):
        pose = RigidTransform.from_translation([0.01 * k, 0.0, 0.0])
        seen = CAMERA.project(points - pose.translation) + rng.normal(0, noise_px, pixels.shape)
        seen[moving] += (0.0, speed_px * k)
        tracks = Tracks(ids[left], seen[left].astype(np.float32))
        fit = StaticFit.of(Landmarks(tracks, points[left], np.zeros((left.sum(), 3))), CAMERA, pose, NOISE_PX)
        objects.follow(lambda now: (now + np.float32((0.0, speed_px)), np.ones(len(now), bool)), CAMERA)
        found.append(objects.find(fit, EpipolarLines(reference, CAMERA, fit.world_from_cam), Tracks.none()))
        left[found[-1]] = False
    return objects, np.concatenate(found), ids[moving]


def test_a_slowly_moving_object_is_found_and_the_static_scene_is_not():
    objects, found, moving = ids_found(speed_px=0.2, noise_px=0.12)
    assert np.isin(moving, found).mean() > 0.9
    assert np.isin(found, moving).mean() > 0.9
    assert objects.are_seen


@pytest.mark.parametrize("noise_px", [0.1, 0.25, 0.6])
def test_nothing_moves_in_a_static_scene(noise_px):
    objects, found, _ = ids_found(speed_px=0.0, noise_px=noise_px)
    assert len(found) == 0
    assert not objects.are_seen


def test_nothing_is_told_from_noisy_tracks():
    _, found, _ = ids_found(speed_px=0.2, noise_px=0.6)
    assert len(found) == 0

"""Fit of a frame to the static scene: pose, residuals of landmarks, and distances from epipolar lines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.absolute_pose import optimize_pose, whitened_errors
from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, apply_inverse, rotation_matrix, translation_of
from slam.map.tracks import Pixels, Tracks
from slam.tracking.frame_pose import MEDIAN_OF_LENGTH
from slam.tracking.tracked_map import ReferenceView

CELL_PX, PER_CELL = 48, 5  # size of the image cells, pixels, and number of landmarks that the pose is fitted to in each
ROUNDS = 3  # number of fits, each at the noise of the one before
MIN_NOISE_RATIO = 0.1875  # least noise of a frame, as a fraction of the assumed one


@dataclass(frozen=True, slots=True, eq=False)
class Landmarks:
    """Landmarks tracked into a frame.

    Attributes:
        points_world: (N, 3) map units.
        depth_sigma_world: (N, 3) one standard deviation of each along the ray that it was triangulated from.
    """

    tracks: Tracks
    points_world: FloatArray
    depth_sigma_world: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class StaticFit:
    """The fit.

    Attributes:
        residuals: (N, 2) reprojection errors of the landmarks, whitened for the uncertainty of their depths, pixels.
        across: (N, 2) their parts across the direction in which an error of the depth moves the landmark in the image.
        noise_px: standard deviation of a pixel coordinate, from the median residual; `assumed_noise_px`: that expected.
    """

    world_from_cam: RigidTransform
    landmarks: Tracks
    residuals: FloatArray
    across: FloatArray
    noise_px: float
    assumed_noise_px: float

    @staticmethod
    def of(seen: Landmarks, camera: Camera, start: RigidTransform, noise_px: float) -> StaticFit:
        """Fit from a first world_from_cam; `noise_px` is the assumed noise, that of the depths.

        In each cell of the image only the oldest landmarks count, so that no near and textured object outvotes a wall.
        """
        chosen, pixels = _oldest_per_cell(seen.tracks), seen.tracks.pixels
        pose, noise = start, noise_px
        errors = np.zeros((0, 2))
        for _ in range(ROUNDS):
            sigma = seen.depth_sigma_world * (noise / noise_px)
            pose = optimize_pose(
                seen.points_world[chosen],
                pixels[chosen],
                camera,
                pose,
                noise_px=noise,
                depth_sigma_world=sigma[chosen],
            ).world_from_cam
            errors = whitened_errors(seen.points_world, pixels, camera, pose, noise_px=noise, depth_sigma_world=sigma)
            measured = float(np.median(np.linalg.norm(errors[chosen], axis=1))) / MEDIAN_OF_LENGTH
            noise = float(np.clip(measured, MIN_NOISE_RATIO * noise_px, noise))
        return StaticFit(pose, seen.tracks, errors, _across_depth(errors, seen, camera, pose), noise, noise_px)


def _across_depth(errors: FloatArray, seen: Landmarks, camera: Camera, world_from_cam: RigidTransform) -> FloatArray:
    """The parts of errors (N, 2) that no error of the depths of landmarks explains: all, where a depth is certain."""
    in_cam = apply_inverse(world_from_cam, seen.points_world)
    moved = seen.depth_sigma_world @ rotation_matrix(world_from_cam)
    along = moved[:, :2] * in_cam[:, 2:] - in_cam[:, :2] * moved[:, 2:]  # up to a positive factor
    across = np.column_stack([-along[:, 1], along[:, 0]])
    length = np.linalg.norm(across, axis=1, keepdims=True)
    across /= np.maximum(length, 1e-12)
    return np.where(length > 1e-12, (errors * across).sum(axis=1, keepdims=True) * across, errors)


def _oldest_per_cell(tracks: Tracks) -> NDArray[np.intp]:
    """Rows of the tracks with the smallest ids of each cell of the image."""
    column, row = (tracks.pixels // CELL_PX).astype(int).T
    cell = row * (int(column.max(initial=0)) + 1) + column
    order = np.lexsort((tracks.ids, cell))
    first = np.searchsorted(cell[order], cell[order])
    return np.asarray(order[np.arange(len(order)) - first < PER_CELL])


@dataclass(frozen=True, slots=True, eq=False)
class ObservedTwice:
    """Tracks of a frame and their pixels (N, 2) in the reference keyframe."""

    tracks: Tracks
    in_keyframe: Pixels


@dataclass(frozen=True, slots=True, eq=False)
class EpipolarLines:
    """Epipolar lines, in a frame with a known pose, of pixels of the reference keyframe."""

    reference: ReferenceView
    camera: Camera
    world_from_cam: RigidTransform

    @property
    def frame_index(self) -> int:
        """Frame index of the reference keyframe."""
        return self.reference.frame_index

    def among(self, tracks: Tracks) -> ObservedTwice:
        """Those of the tracks that the keyframe observes without a depth."""
        observed = self.reference.without_depth
        _, rows, now = np.intersect1d(observed.ids, tracks.ids, assume_unique=True, return_indices=True)
        return ObservedTwice(Tracks(tracks.ids[now], tracks.pixels[now]), observed.pixels[rows])

    def residuals(self, in_keyframe: Pixels, now: Pixels) -> FloatArray:
        """Vectors (N, 2) from pixels (N, 2) of the frame to the lines of pixels (N, 2) of the keyframe."""
        frame_from_keyframe = self.world_from_cam.inv() * self.reference.world_from_keyframe
        rays = np.column_stack([self.reference.camera.normalized(in_keyframe), np.ones(len(in_keyframe))])
        lines = np.cross(translation_of(frame_from_keyframe), rays @ rotation_matrix(frame_from_keyframe).T)
        seen = np.column_stack([self.camera.normalized(now), np.ones(len(now))])
        length = np.maximum(np.linalg.norm(lines[:, :2], axis=1), 1e-12)
        distance = (lines * seen).sum(axis=1) / length * self.camera.mean_focal
        return np.asarray(-lines[:, :2] / length[:, None] * distance[:, None])

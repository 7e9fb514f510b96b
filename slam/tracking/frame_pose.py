"""Pose of one frame from the points that it observes, landmarks and points without a depth, at the noise of the frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.absolute_pose import PoseFit, optimize_pose
from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray

# Ratio of the median of the error length to the standard deviation of a coordinate, for a normal distribution.
MEDIAN_OF_LENGTH = 1.1774
# Maximum ratio of the noise of a frame to that of a sharp one. Blur and a rolling shutter in a fast turn displace all
# points of a frame by some pixels; larger errors are wrong tracks.
MAX_NOISE_RATIO = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class UnknownDepths:
    """Points that a frame observes but that have no depth yet: anywhere on the ray of an earlier observation.

    With the standard deviation of their depth as large as the depth, they constrain the pose as epipolar lines do, and
    the rotation of a camera that turns on the spot fully. Montiel, Civera and Davison, "Unified inverse depth
    parametrization for monocular SLAM", RSS 2006.

    Attributes:
        points_world: (N, 3) on the rays, at an assumed depth, map units.
        depth_sigma_world: (N, 3) their standard deviation along the rays, map units.
        pixels: (N, 2) observations in the frame.
    """

    points_world: FloatArray
    depth_sigma_world: FloatArray
    pixels: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ObservedPoints:
    """Landmarks that a frame observes.

    Attributes:
        points_world: (N, 3) landmarks; pixels: (N, 2) their observations.
        noise_px: standard deviation of a pixel coordinate in a sharp frame.
    """

    points_world: FloatArray
    pixels: NDArray[np.float32]
    camera: Camera
    noise_px: float

    def pose_from(self, start: RigidTransform) -> tuple[PoseFit, float]:
        """The pose by `optimize_pose` from an initial world_from_cam, and the noise of the frame, pixels.

        The noise is estimated from the errors, and the inliers are those at this noise.
        """
        fit = optimize_pose(self.points_world, self.pixels, self.camera, start, noise_px=self.noise_px)
        noise = self._noise_of(fit.world_from_cam)
        if noise > self.noise_px:
            fit = optimize_pose(self.points_world, self.pixels, self.camera, fit.world_from_cam, noise_px=noise)
        return fit, noise

    def pose_with(self, others: UnknownDepths, fit: PoseFit, noise_px: float) -> PoseFit:
        """The pose from the landmarks and from points without a depth; the inliers are those of the landmarks."""
        joint = optimize_pose(
            np.concatenate([self.points_world, others.points_world]),
            np.concatenate([self.pixels, others.pixels]),
            self.camera,
            fit.world_from_cam,
            noise_px=noise_px,
            depth_sigma_world=np.concatenate([np.zeros_like(self.points_world), others.depth_sigma_world]),
        )
        return replace(joint, inliers=joint.inliers[: len(self.points_world)])

    def _noise_of(self, world_from_cam: RigidTransform) -> float:
        """Standard deviation of a pixel coordinate, from the median error; at least `noise_px`."""
        in_cam = np.asarray(world_from_cam.inv().apply(self.points_world)).reshape(-1, 3)
        front = in_cam[:, 2] > 1e-6
        if not front.any():
            return self.noise_px
        error = np.linalg.norm(self.camera.project(in_cam[front]) - self.pixels[front], axis=1)
        noise = float(np.median(error)) / MEDIAN_OF_LENGTH
        return float(np.clip(noise, self.noise_px, MAX_NOISE_RATIO * self.noise_px))

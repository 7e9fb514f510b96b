"""Pose of one frame from the landmarks, and the points without a depth, that it observes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.absolute_pose import PoseFit, optimize_pose, search_pose
from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, apply_inverse, rotation_matrix, stack_matrices
from relocalizer.pose_batch import LandmarkObservations, optimize_poses
from relocalizer.triangulation import depths_in
from slam.config.schema import TrackingConfig
from slam.map.frame_log import LoggedFrame
from slam.map.frames import PoseNotFound, TrackedPose
from slam.map.tracks import Tracks
from slam.tracking.tracked_map import ReferenceView, TrackedMap

# Ratio of the median of the error length to the standard deviation of a coordinate, for a normal distribution.
MEDIAN_OF_LENGTH = 1.1774
# Maximum ratio of the noise of a frame to that of a sharp one. Blur and a rolling shutter in a fast turn displace all
# points of a frame by some pixels; larger errors are wrong tracks.
MAX_NOISE_RATIO = 3.0
MANY_INLIERS = 0.75  # fraction of inliers from which a frame has the noise of a sharp one
# Standard deviation of an unknown depth, as a multiple of the assumed depth: so large that the assumption does not bias
# the pose, and so small that a camera that does not move at all gets its rotation from both coordinates.
UNKNOWN_DEPTH = 30.0
MANY_LANDMARKS = 150  # number of inlier landmarks from which points without a depth hardly change the pose


@dataclass(frozen=True, slots=True, eq=False)
class UnknownDepths:
    """Points that a frame observes but that have no depth yet: anywhere on the ray of an earlier observation.

    With a standard deviation of their depth beyond the depth, they constrain the pose as epipolar lines do, and
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

        Where few points are inliers at the noise of a sharp frame, the noise is estimated from the errors, and the
        inliers are those at this noise.
        """
        fit = optimize_pose(self.points_world, self.pixels, self.camera, start, noise_px=self.noise_px)
        noise = self.noise_px
        if fit.inliers.mean() < MANY_INLIERS:
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
        in_cam = apply_inverse(world_from_cam, self.points_world)
        front = in_cam[:, 2] > 1e-6
        if not front.any():
            return self.noise_px
        error = np.linalg.norm(self.camera.project(in_cam[front]) - self.pixels[front], axis=1)
        noise = float(np.median(error)) / MEDIAN_OF_LENGTH
        return float(np.clip(noise, self.noise_px, MAX_NOISE_RATIO * self.noise_px))


class FramePoseEstimator:
    """Poses of frames from the landmarks among their tracks."""

    def __init__(self, config: TrackingConfig, noise_px: float) -> None:
        self._config = config
        self._noise_px = noise_px

    def estimate(
        self,
        view: TrackedMap,
        camera: Camera,
        tracks: Tracks,
        start: RigidTransform,
        others: Callable[[], UnknownDepths | None] = lambda: None,
    ) -> TrackedPose | PoseNotFound:
        """Pose (world_from_cam) that minimizes the reprojection error of the tracked landmarks, starting at `start`.

        When too few landmarks are inliers, RANSAC gives a second start.

        Args:
            others: computes the points without a depth, which constrain the pose as well where landmarks are few.
        """
        config = self._config
        landmarks = tracks.where(view.is_triangulated(tracks.ids))
        if len(landmarks) < config.min_inliers:
            return PoseNotFound(f"{len(landmarks)} landmarks tracked, {config.min_inliers} needed")
        observed = ObservedPoints(view.points_world(landmarks.ids), landmarks.pixels, camera, self._noise_px)
        fit, noise = observed.pose_from(start)
        if not self._has_enough_inliers(fit):
            found = search_pose(observed.points_world, landmarks.pixels, camera, noise_px=noise)
            if found is not None:
                fit, noise = observed.pose_from(found)
        if not self._has_enough_inliers(fit):
            return PoseNotFound(
                f"{fit.inlier_count} of {len(landmarks)} landmarks agree with a pose, "
                f"{config.min_inliers} and {config.min_inlier_ratio:.0%} needed"
            )
        if fit.inlier_count < MANY_LANDMARKS and (points := others()) is not None:
            refined = observed.pose_with(points, fit, noise)
            fit = refined if self._has_enough_inliers(refined) else fit
        return TrackedPose(fit.world_from_cam, landmarks.where(fit.inliers))

    def refit(self, view: TrackedMap, frames: Sequence[LoggedFrame]) -> FloatArray:
        """Poses (N, 4, 4) of past frames from the landmarks that they observed; as they are where too few are left."""
        poses = stack_matrices([frame.world_from_cam for frame in frames])
        tracks = [view.with_current_ids(frame.observations) for frame in frames]
        tracks = [observed.where(view.is_triangulated(observed.ids)) for observed in tracks]
        rows = [n for n, observed in enumerate(tracks) if len(observed) >= max(self._config.min_inliers, 1)]
        if not rows:
            return poses
        points = view.points_world(np.concatenate([tracks[n].ids for n in rows]))
        points_of = np.split(points, np.cumsum([len(tracks[n]) for n in rows])[:-1])
        images = [
            LandmarkObservations(points, tracks[n].pixels, frames[n].camera, poses[n])
            for n, points in zip(rows, points_of, strict=True)
        ]
        fitted, inliers = optimize_poses(images, noise_px=self._noise_px)
        accepted = inliers >= self._config.min_inliers
        poses[np.array(rows)[accepted]] = fitted[accepted]
        return poses

    def _has_enough_inliers(self, fit: PoseFit) -> bool:
        config = self._config
        return fit.inlier_count >= max(config.min_inliers, config.min_inlier_ratio * len(fit.inliers))


def points_without_depth(view: TrackedMap, reference: ReferenceView, tracks: Tracks) -> UnknownDepths | None:
    """The points that a keyframe observes without a depth, and their observations among `tracks` of a later frame.

    They are put at the median depth of the keyframe's landmarks; None without any.
    """
    observed, pose = reference.without_depth, reference.world_from_keyframe
    landmarks = reference.landmarks.ids
    _, rows, now = np.intersect1d(observed.ids, tracks.ids, assume_unique=True, return_indices=True)
    if len(landmarks) == 0 or len(rows) == 0:
        return None
    depth = float(np.median(depths_in(view.points_world(landmarks), pose)))
    rays = reference.camera.normalized(observed.pixels[rows])
    along = depth * np.hstack([rays, np.ones((len(rays), 1))])
    sigma = UNKNOWN_DEPTH * along @ rotation_matrix(pose).T
    return UnknownDepths(np.asarray(pose.apply(along)), sigma, tracks.pixels[now])

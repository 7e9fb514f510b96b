"""Frame-to-frame tracking between keyframes: KLT with predicted pixels, then the pose from the tracked landmarks."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.absolute_pose import PoseFit, optimize_pose, rotate_pixels, search_pose
from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.geometry import FloatArray, rotation_matrix
from relocalizer.image_static import MOST, resting
from relocalizer.images import Image
from relocalizer.triangulation import depths_in
from slam.config.schema import SlamConfig
from slam.map.frame_measurement import FrameMeasurement, Gate
from slam.map.frames import Frame, FrameObservation, PoseNotFound, TrackedPose
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks
from slam.tracking.frame_pose import ObservedPoints, UnknownDepths
from slam.tracking.image_measurement import FrameMeter
from slam.tracking.keyframe_policy import KeyframePolicy, common_pixels
from slam.tracking.klt import PointTracker
from slam.tracking.overlay import Overlay

MANY_LANDMARKS = 150  # number of inlier landmarks from which points without a depth hardly change the pose
RESTING_FRAMES = 10  # length of the window in which the tracks of a camera at rest do not move, frames


class FrameTracker:
    """State of the newest frame: gray image, tracks, pose, inlier landmarks, and the motion model.

    Attributes:
        overlay_share: fraction of all followed points that are fixed in the image while the scene moves.
        is_resting: whether most of the image was at rest over the last RESTING_FRAMES frames.
        outlier_tracks: the landmarks that were followed and disagree with the pose; not among `tracks` any more.
    """

    def __init__(self, config: SlamConfig, tracker: PointTracker, slam_map: SlamMap) -> None:
        self._config = config
        self._tracker = tracker
        self._map = slam_map
        self._graph = slam_map.graph
        self._landmarks = slam_map.landmarks
        self._policy = KeyframePolicy(config.keyframes)
        self._gray: Image = np.zeros((0, 0), np.uint8)
        self._observation: FrameObservation | None = (
            None  # of the newest frame; made when its features are first needed
        )
        self._overlay = Overlay(0.5 * config.tracks.window_px)
        self._recent: deque[Tracks] = deque(maxlen=RESTING_FRAMES)
        self._meter = FrameMeter()
        self._sharpness = 0.0
        self.is_resting = False
        self._motion: RigidTransform | None = None  # last_from_next: constant velocity model
        self.pose: RigidTransform | None = None  # world_from_cam of the last frame, None while unknown
        self.tracks = Tracks.none()
        self.previous_tracks = Tracks.none()  # tracks of the previous image
        self.inlier_tracks = Tracks.none()  # subset of `tracks`: the landmarks that are inliers of the pose
        self.outlier_tracks = Tracks.none()

    def track(self, frame: Frame) -> None:
        """Follow the tracks into the next image; its pose is estimated afterwards."""
        gray = self._gray_of(frame)
        self._sharpness = self._tracker.sharpness(gray) if gray.size else 0.0
        self._meter.see(gray, self._sharpness)
        self._policy.criteria = ()
        tracks = self.previous_tracks = self._landmarks.with_current_ids(self.tracks)
        previous_inliers, self.inlier_tracks, self.outlier_tracks = self.inlier_tracks, Tracks.none(), Tracks.none()
        self.tracks = Tracks.none()
        if len(tracks) and self._gray.shape == gray.shape:
            predicted = self._predicted_pixels(frame, tracks)
            pixels, found = self._tracker.follow(self._gray, gray, tracks.pixels, predicted)
            inside = frame.camera.contains(pixels.astype(np.float64))  # False for NaN
            self.tracks = Tracks(tracks.ids, pixels).where(found & inside)
            self._meter.followed(tracks.pixels, predicted, pixels, found & inside)
            self._overlay.follow(self._gray, gray)
            self.leave_out(self._overlay.look(self.tracks, previous_inliers, frame.camera))
        self._gray, self._observation = gray, None
        self._update_resting(frame.camera)
        self._meter.tracked(self.tracks, frame.camera)

    def follow_from(self, gray: Image, tracks: Tracks, predicted: NDArray[np.float32]) -> Tracks:
        """The tracks of an earlier gray image that are found in the newest one, near their predicted pixels (N, 2)."""
        if not len(tracks) or gray.shape != self._gray.shape:
            return Tracks.none()
        pixels, found = self._tracker.follow(gray, self._gray, tracks.pixels, predicted)
        return Tracks(tracks.ids, pixels).where(found)

    def leave_out(self, ids: NDArray[np.int64]) -> None:
        """Drop tracks that are not points of the static scene, and remove their landmarks."""
        if len(ids):
            self.tracks = self.tracks.where(~np.isin(self.tracks.ids, ids))
            self._map.remove_landmarks(ids)

    def leave_out_overlay(self, pixels: NDArray[np.float32]) -> None:
        """Mark pixels (N, 2) of the newest image as overlay: no new tracks start around them."""
        self._overlay.add(pixels)

    def _update_resting(self, camera: Camera) -> None:
        full = len(self._recent) == RESTING_FRAMES
        share = resting(*common_pixels(self._recent[0], self.tracks), camera)[0] if full else 0.0
        self.is_resting = share >= MOST
        self._recent.append(self.tracks)

    @property
    def overlay_share(self) -> float:
        return self._overlay.count / max(self._overlay.count + len(self.tracks), 1)

    def extract(self, frame: Frame) -> FrameObservation:
        """Observation of the newest frame: its features and its current tracks."""
        if self._observation is None or self._observation.frame is not frame:
            self._observation = FrameObservation(frame, self._detect(self._gray, frame.camera), self.tracks)
        self._observation = self.without_overlay(replace(self._observation, tracks=self.tracks))
        return self._observation

    def extract_from(self, frame: Frame) -> FrameObservation:
        """Observation of a frame outside the stream order: its features, and no tracks."""
        features = self._detect(self._gray_of(frame), frame.camera)
        return self.without_overlay(FrameObservation(frame, features, Tracks.none()))

    def without_overlay(self, observation: FrameObservation) -> FrameObservation:
        """The observation without the features that lie on the overlay detected so far."""
        return observation.with_features(self._overlay.cleared(observation.features))

    def _gray_of(self, frame: Frame) -> Image:
        return self._tracker.gray(frame.image) if frame.image.size else np.zeros((0, 0), np.uint8)

    def _detect(self, gray: Image, camera: Camera) -> LocalFeatures:
        """Features with finite values inside the image; none for an image without pixels."""
        if gray.size == 0:
            return LocalFeatures.none()
        features = self._tracker.detect(gray)
        inside = camera.contains(features.pixels.astype(np.float64))
        usable = inside & np.isfinite(features.scales) & np.isfinite(features.descriptors).all(axis=1)
        return features if usable.all() else features.where(usable)

    @property
    def measurement(self) -> FrameMeasurement:
        """What was measured in the newest frame."""
        return self._meter.measurement

    def ages_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of frames (N,) that each track of the newest frame has been followed for."""
        return self._meter.ages_of(ids)

    @property
    def keyframe_criteria(self) -> tuple[Gate, ...]:
        """The criteria by which the newest frame was judged as a keyframe; empty if it was not."""
        return self._policy.criteria

    @property
    def current(self) -> TrackedPose:
        """Pose of the newest frame, which must be known, and its inlier landmarks."""
        assert self.pose is not None
        return TrackedPose(self.pose, self.inlier_tracks)

    def estimate_pose(self, frame: Frame, k: int) -> TrackedPose | PoseNotFound:
        """Pose of the newest frame from the landmarks among its tracks, starting at the predicted pose.

        Args:
            k: reference keyframe, whose points without a depth count too.
        """
        start = self._predicted_pose()
        if start is None:
            return PoseNotFound("no earlier pose to start from")
        return self.estimate_from(frame, self.tracks, start, self._points_without_depth(k))

    def _points_without_depth(self, k: int) -> UnknownDepths | None:
        """The tracks of keyframe k that are not landmarks yet, at the median depth of its landmarks."""
        observed, graph = self._landmarks.observed[k], self._graph
        is_landmark = self._landmarks.is_triangulated(observed.ids)
        landmarks = observed.ids[is_landmark]
        _, rows, now = np.intersect1d(
            observed.ids[~is_landmark], self.tracks.ids, assume_unique=True, return_indices=True
        )
        if len(landmarks) == 0 or len(rows) == 0:
            return None
        pose = graph.world_from_keyframe[k].rigid
        depth = float(np.median(depths_in(self._landmarks.points_world(landmarks, graph), pose)))
        rays = graph.keyframes[k].camera.normalized(observed.pixels[~is_landmark][rows])
        along = depth * np.hstack([rays, np.ones((len(rays), 1))])
        return UnknownDepths(np.asarray(pose.apply(along)), along @ rotation_matrix(pose).T, self.tracks.pixels[now])

    def estimate_from(
        self, frame: Frame, tracks: Tracks, start: RigidTransform, others: UnknownDepths | None = None
    ) -> TrackedPose | PoseNotFound:
        """Pose (world_from_cam) that minimizes the reprojection error of the tracked landmarks, starting at `start`.

        When too few landmarks are inliers, RANSAC gives a second start.

        Args:
            others: points without a depth, which constrain the pose where the landmarks are few.
        """
        config = self._config.tracking
        triangulated = tracks.where(self._landmarks.is_triangulated(tracks.ids))
        if len(triangulated) < config.min_inliers:
            return PoseNotFound(f"{len(triangulated)} landmarks followed, {config.min_inliers} needed")
        points = self._landmarks.points_world(triangulated.ids, self._graph)
        observed = ObservedPoints(points, triangulated.pixels, frame.camera, self._config.tracks.noise_px)
        fit, noise = observed.pose_from(start)
        if not self._has_enough_inliers(fit):
            found = search_pose(points, triangulated.pixels, frame.camera, noise_px=noise)
            if found is not None:
                fit, noise = observed.pose_from(found)
        if not self._has_enough_inliers(fit):
            return PoseNotFound(
                f"{fit.inlier_count} of {len(triangulated)} landmarks agree with a pose, "
                f"{config.min_inliers} and {config.min_inlier_ratio:.0%} needed"
            )
        if others is not None and fit.inlier_count < MANY_LANDMARKS:
            refined = observed.pose_with(others, fit, noise)
            fit = refined if self._has_enough_inliers(refined) else fit
        return TrackedPose(fit.world_from_cam, triangulated.where(fit.inliers))

    def reason_to_keep(self, frame: Frame, k: int) -> str:
        """Why the newest frame, with a known pose, should be inserted as a keyframe after keyframe k; empty if not."""
        in_keyframe = self._landmarks.observed[k]
        keyframe_from_world_rotation = self._graph.world_from_keyframe[k].rotation.T
        return self._policy.reason_to_keep(
            seen=self.current.landmarks,
            in_keyframe=in_keyframe.where(self._landmarks.is_triangulated(in_keyframe.ids)),
            camera=frame.camera,
            keyframe_from_frame_rotation=keyframe_from_world_rotation @ rotation_matrix(self.current.world_from_cam),
            frames_since=frame.index - self._graph.keyframes[k].frame_index,
            blurred=self._policy.is_blurred(self._sharpness),
        )

    def refit(self, tracks: Tracks, camera: Camera, pose: RigidTransform) -> RigidTransform:
        """Pose of a past frame in the current map, from the landmarks it observed; `pose` when too few are left."""
        config, noise = self._config.tracking, self._config.tracks.noise_px
        tracks = self._landmarks.with_current_ids(tracks)
        tracks = tracks.where(self._landmarks.is_triangulated(tracks.ids))
        if len(tracks) < config.min_inliers:
            return pose
        points = self._landmarks.points_world(tracks.ids, self._graph)
        fit = optimize_pose(points, tracks.pixels, camera, pose, noise_px=noise)
        return fit.world_from_cam if fit.inlier_count >= config.min_inliers else pose

    def accept(self, found: TrackedPose) -> None:
        """Set the pose of the newest frame, and drop the landmark tracks that are outliers of it."""
        self.set_pose(found.world_from_cam)
        kept = ~self._landmarks.is_triangulated(self.tracks.ids) | np.isin(self.tracks.ids, found.landmarks.ids)
        self.outlier_tracks = self.tracks.where(~kept)
        self.tracks = self.tracks.where(kept)
        self.inlier_tracks = found.landmarks

    def set_pose(self, pose: RigidTransform) -> None:
        """Set the pose of the newest frame, and update the constant velocity model with it."""
        self._motion = None if self.pose is None else self.pose.inv() * pose
        self.pose = pose

    def reset_to(self, pose: RigidTransform, tracks: Tracks) -> None:
        """Replace the pose and the tracks of the newest frame after a change of the map; the motion model stays."""
        self.pose = pose
        self.tracks = tracks
        self.inlier_tracks = tracks.where(self._landmarks.is_triangulated(tracks.ids))

    def reset_motion(self) -> None:
        """After a loss: forget the pose, the motion model and the tracks."""
        self.pose = None
        self._motion = None
        self.tracks = Tracks.none()

    def _has_enough_inliers(self, fit: PoseFit) -> bool:
        config = self._config.tracking
        return fit.inlier_count >= max(config.min_inliers, config.min_inlier_ratio * len(fit.inliers))

    def _predicted_pose(self) -> RigidTransform | None:
        if self.pose is None or self._motion is None:
            return self.pose
        return self.pose * self._motion

    def _predicted_pixels(self, frame: Frame, tracks: Tracks) -> NDArray[np.float32]:
        """Predicted pixels (N, 2) of the tracks under the constant velocity model."""
        predicted = self._predicted_pose()
        if predicted is None or self._motion is None:
            return tracks.pixels
        pixels = rotate_pixels(tracks.pixels, frame.camera, rotation_matrix(self._motion).T)
        triangulated = self._landmarks.is_triangulated(tracks.ids)
        points = self._landmarks.points_world(tracks.ids[triangulated], self._graph)
        in_cam = np.asarray(predicted.inv().apply(points)).reshape(-1, 3)
        in_front = in_cam[:, 2] > 1e-3
        pixels[np.flatnonzero(triangulated)[in_front]] = frame.camera.project(in_cam[in_front])
        inside = frame.camera.contains(pixels.astype(np.float64))
        return np.where(inside[:, None], pixels, tracks.pixels)

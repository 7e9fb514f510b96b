"""From image to pose between keyframes: follow the tracks, guess where they go, fit the pose to the landmarks."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.absolute_pose import PoseFit, optimize_pose, rotate_pixels, search_pose
from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.geometry import rotation_matrix
from relocalizer.image_static import MOST, resting
from relocalizer.images import Image
from slam.config.schema import SlamConfig
from slam.map.frames import Frame, FrameObservation, PoseNotFound, TrackedPose
from slam.map.keyframe_graph import KeyframeGraph
from slam.map.landmarks import LandmarkMap
from slam.map.tracks import Tracks
from slam.tracking.keyframe_policy import KeyframePolicy, common_pixels
from slam.tracking.klt import PointTracker
from slam.tracking.overlay import Overlay

RESTING_FRAMES = 10  # over which the tracks of a camera that does not move stay where they are


class FrameTracker:
    """Owns the live image: in gray, its tracks, its pose and what that rests on, and the camera's motion.

    Attributes:
        overlay_share: of all that is followed, the share that stands still in the image while the world moves.
        is_resting: whether most of the image stood still over the last frames.
    """

    def __init__(self, config: SlamConfig, tracker: PointTracker, graph: KeyframeGraph, landmarks: LandmarkMap) -> None:
        self._config = config
        self._tracker = tracker
        self._graph = graph
        self._landmarks = landmarks
        self._policy = KeyframePolicy(config.keyframes)
        self._gray: Image = np.zeros((0, 0), np.uint8)
        self._observation: FrameObservation | None = None  # of the newest frame, once its features were needed
        self._overlay = Overlay(0.5 * config.tracks.window_px)
        self._recent: deque[Tracks] = deque(maxlen=RESTING_FRAMES)
        self.is_resting = False
        self._motion: RigidTransform | None = None  # last_from_next, expected to repeat
        self.pose: RigidTransform | None = None  # world_from_cam of the last frame, None while unknown
        self.tracks = Tracks.none()
        self.previous_tracks = Tracks.none()  # the tracks in the image before
        self.inlier_tracks = Tracks.none()  # those of `tracks` that are the landmarks the pose rests on

    def track(self, frame: Frame) -> None:
        """Follow the tracks into the next image, whose pose is yet to be found."""
        gray = self._gray_of(frame)
        tracks = self.previous_tracks = self._landmarks.with_current_ids(self.tracks)
        agreeing, self.inlier_tracks = self.inlier_tracks, Tracks.none()
        self.tracks = Tracks.none()
        if len(tracks) and self._gray.shape == gray.shape:
            pixels, found = self._tracker.follow(self._gray, gray, tracks.pixels, self._guess(frame, tracks))
            inside = frame.camera.contains(pixels.astype(np.float64))  # NaN is nowhere
            self.tracks = Tracks(tracks.ids, pixels).where(found & inside)
            self._overlay.follow(self._gray, gray)
            self.leave_out(self._overlay.look(self.tracks, agreeing, frame.camera))
        self._gray, self._observation = gray, None
        self._watch_rest(frame.camera)

    def leave_out(self, ids: NDArray[np.int64]) -> None:
        """Tracks that are no points of the world are followed no more, and have no place."""
        if len(ids):
            self.tracks = self.tracks.where(~np.isin(self.tracks.ids, ids))
            self._landmarks.remove_points(ids)

    def leave_out_overlay(self, pixels: NDArray[np.float32]) -> None:
        """No new points are begun around these pixels (N, 2) of the newest image: they are overlay."""
        self._overlay.add(pixels)

    def _watch_rest(self, camera: Camera) -> None:
        full = len(self._recent) == RESTING_FRAMES
        share = resting(*common_pixels(self._recent[0], self.tracks), camera)[0] if full else 0.0
        self.is_resting = share >= MOST
        self._recent.append(self.tracks)

    @property
    def overlay_share(self) -> float:
        return self._overlay.count / max(self._overlay.count + len(self.tracks), 1)

    def extract(self, frame: Frame) -> FrameObservation:
        """The frame whose image was taken last, with its features."""
        if self._observation is None or self._observation.frame is not frame:
            self._observation = FrameObservation(frame, self._detect(self._gray, frame.camera), self.tracks)
        self._observation = self.without_overlay(replace(self._observation, tracks=self.tracks))
        return self._observation

    def extract_from(self, frame: Frame) -> FrameObservation:
        """A frame out of turn, with its features; nothing was followed into it."""
        features = self._detect(self._gray_of(frame), frame.camera)
        return self.without_overlay(FrameObservation(frame, features, Tracks.none()))

    def without_overlay(self, seen: FrameObservation) -> FrameObservation:
        """A frame without the features that lie on what stands still in the image, as far as that is known by now."""
        return seen.with_features(self._overlay.cleared(seen.features))

    def _gray_of(self, frame: Frame) -> Image:
        return self._tracker.gray(frame.image) if frame.image.size else np.zeros((0, 0), np.uint8)

    def _detect(self, gray: Image, camera: Camera) -> LocalFeatures:
        """Features of an image that are finite and lie in it; none where it has no pixels."""
        if gray.size == 0:
            return LocalFeatures.none()
        found = self._tracker.detect(gray)
        inside = camera.contains(found.pixels.astype(np.float64))
        usable = inside & np.isfinite(found.scales) & np.isfinite(found.descriptors).all(axis=1)
        return found if usable.all() else found.where(usable)

    @property
    def current(self) -> TrackedPose:
        """The pose that is known, and the landmarks it rests on."""
        assert self.pose is not None
        return TrackedPose(self.pose, self.inlier_tracks)

    def estimate_pose(self, frame: Frame) -> TrackedPose | PoseNotFound:
        """The pose of the frame whose image was taken last, from the landmarks among its tracks."""
        start = self._predicted_pose()
        if start is None:
            return PoseNotFound("no earlier pose to start from")
        return self.estimate_from(frame, self.tracks, start)

    def estimate_from(self, frame: Frame, tracks: Tracks, start: RigidTransform) -> TrackedPose | PoseNotFound:
        """The pose that best explains the tracks that are landmarks, beginning from `start`."""
        config, noise = self._config.tracking, self._config.tracks.noise_px
        placed = tracks.where(self._landmarks.is_triangulated(tracks.ids))
        if len(placed) < config.min_inliers:
            return PoseNotFound(f"{len(placed)} landmarks followed, {config.min_inliers} needed")
        points = self._landmarks.points_world(placed.ids, self._graph)
        fit = optimize_pose(points, placed.pixels, frame.camera, start, noise_px=noise)
        if not self._is_enough(fit):
            found = search_pose(points, placed.pixels, frame.camera, noise_px=noise)
            if found is not None:
                fit = optimize_pose(points, placed.pixels, frame.camera, found, noise_px=noise)
        if not self._is_enough(fit):
            return PoseNotFound(
                f"{fit.inlier_count} of {len(placed)} landmarks agree with a pose, "
                f"{config.min_inliers} and {config.min_inlier_ratio:.0%} needed"
            )
        return TrackedPose(fit.world_from_cam, placed.where(fit.inliers))

    def reason_to_keep(self, frame: Frame, k: int) -> str:
        """Why the frame, whose pose is known, should become a keyframe after keyframe k; empty when it should not."""
        before = self._landmarks.observed[k]
        keyframe_from_world_rotation = self._graph.world_from_keyframe[k].rotation.T
        return self._policy.reason_to_keep(
            seen=self.current.landmarks,
            in_keyframe=before.where(self._landmarks.is_triangulated(before.ids)),
            camera=frame.camera,
            keyframe_from_frame_rotation=keyframe_from_world_rotation @ rotation_matrix(self.current.world_from_cam),
            frames_since=frame.index - self._graph.keyframes[k].frame_index,
            blurred=self._policy.is_blurred(self._tracker.sharpness(self._gray)),
        )

    def refit(self, seen: Tracks, camera: Camera, pose: RigidTransform) -> RigidTransform:
        """A frame's pose in the map as it stands, from the landmarks it saw; as it was when too few are left."""
        config, noise = self._config.tracking, self._config.tracks.noise_px
        seen = self._landmarks.with_current_ids(seen)
        seen = seen.where(self._landmarks.is_triangulated(seen.ids))
        if len(seen) < config.min_inliers:
            return pose
        fit = optimize_pose(
            self._landmarks.points_world(seen.ids, self._graph), seen.pixels, camera, pose, noise_px=noise
        )
        return fit.world_from_cam if fit.inlier_count >= config.min_inliers else pose

    def accept(self, found: TrackedPose) -> None:
        """Take a pose as the last frame's, and drop the tracks that contradict it."""
        self.set_pose(found.world_from_cam)
        placed = self._landmarks.is_triangulated(self.tracks.ids)
        self.tracks = self.tracks.where(~placed | np.isin(self.tracks.ids, found.landmarks.ids))
        self.inlier_tracks = found.landmarks

    def set_pose(self, pose: RigidTransform) -> None:
        """Take a pose as the last frame's, and how the camera came there as what it will go on doing."""
        self._motion = None if self.pose is None else self.pose.inv() * pose
        self.pose = pose

    def reset_to(self, pose: RigidTransform, tracks: Tracks) -> None:
        """The map tells another pose of the same frame and what is seen in it; the camera's motion stays."""
        self.pose = pose
        self.tracks = tracks
        self.inlier_tracks = tracks.where(self._landmarks.is_triangulated(tracks.ids))

    def reset_motion(self) -> None:
        """After a loss nothing is known of where the camera goes."""
        self.pose = None
        self._motion = None
        self.tracks = Tracks.none()

    def _is_enough(self, fit: PoseFit) -> bool:
        config = self._config.tracking
        return fit.inlier_count >= max(config.min_inliers, config.min_inlier_ratio * len(fit.inliers))

    def _predicted_pose(self) -> RigidTransform | None:
        if self.pose is None or self._motion is None:
            return self.pose
        return self.pose * self._motion

    def _guess(self, frame: Frame, tracks: Tracks) -> NDArray[np.float32]:
        """Where the tracks should be if the camera keeps moving as it did."""
        predicted = self._predicted_pose()
        if predicted is None or self._motion is None:
            return tracks.pixels
        guess = rotate_pixels(tracks.pixels, frame.camera, rotation_matrix(self._motion).T)
        placed = self._landmarks.is_triangulated(tracks.ids)
        points = self._landmarks.points_world(tracks.ids[placed], self._graph)
        in_cam = np.asarray(predicted.inv().apply(points)).reshape(-1, 3)
        front = in_cam[:, 2] > 1e-3
        guess[np.flatnonzero(placed)[front]] = frame.camera.project(in_cam[front])
        inside = frame.camera.contains(guess.astype(np.float64))
        return np.where(inside[:, None], guess, tracks.pixels)

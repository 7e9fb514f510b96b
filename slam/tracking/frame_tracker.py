"""Frame-to-frame tracking between keyframes: KLT with predicted pixels, then the pose from the tracked landmarks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.geometry import FloatArray, Similarity, product, rotation_matrix
from relocalizer.image_static import MOST, resting
from relocalizer.images import Image
from slam.config.schema import SlamConfig
from slam.map.frame_log import LoggedFrame
from slam.map.frames import Frame, FrameObservation, PoseNotFound, TrackedPose
from slam.map.slam_map import SlamMap
from slam.map.tracks import Pixels, Tracks, among
from slam.tracking.frame_pose import FramePoseEstimator, UnknownDepths, points_without_depth
from slam.tracking.image_measurement import FrameMeter
from slam.tracking.keyframe_policy import KeyframePolicy, common_pixels
from slam.tracking.klt import PointTracker
from slam.tracking.moving_objects import MovingObjects, without_still
from slam.tracking.overlay import Overlay
from slam.tracking.track_alignment import TrackAlignment
from slam.tracking.tracked_map import ReferenceView, TrackedMap

RESTING_FRAMES = 10  # length of the window in which the tracks of a camera at rest do not move, frames


class FrameTracker:
    """State of the newest frame: gray image, tracks, pose, inlier landmarks, and the motion model.

    While another thread changes the map (from `detach` to `attach`), frames are tracked in a snapshot of it.

    Attributes:
        meter: what was measured in the newest frame.
        keyframe_policy: decides whether the newest frame becomes a keyframe.
        overlay_share: fraction of all followed points that are fixed in the image while the scene moves.
        is_resting: whether most of the image was at rest over the last RESTING_FRAMES frames.
        local_view: an earlier frame with which frames are compared instead of the reference keyframe; None if none.
        outlier_tracks: the landmarks that were followed and disagree with the pose; not among `tracks` any more.
    """

    def __init__(self, config: SlamConfig, tracker: PointTracker, slam_map: SlamMap) -> None:
        self._config = config
        self._tracker = tracker
        self._graph = slam_map.graph
        self._landmarks = slam_map.landmarks
        self._view = TrackedMap(slam_map)
        self._estimator = FramePoseEstimator(config.tracking, config.tracks.noise_px)
        self.keyframe_policy = KeyframePolicy(config.keyframes)
        self._gray: Image = np.zeros((0, 0), np.uint8)
        self._observation: FrameObservation | None = None  # of the newest frame; made when features are needed
        self._alignment = TrackAlignment(tracker)
        self._overlay = Overlay(0.5 * config.tracks.window_px)
        self.moving_objects = MovingObjects(config.tracks.noise_px)
        self._recent: deque[Tracks] = deque(maxlen=RESTING_FRAMES)
        self.meter = FrameMeter()
        self._sharpness = 0.0
        self._is_blurred: bool | None = None  # of the newest frame; judged when it may become a keyframe
        self.is_resting = False
        self._motion: RigidTransform | None = None  # last_from_next: constant velocity model
        self.pose: RigidTransform | None = None  # world_from_cam of the last frame, None while unknown
        self.tracks = Tracks.none()
        self.previous_tracks = Tracks.none()  # tracks of the previous image
        self.inlier_tracks = Tracks.none()  # subset of `tracks`: the landmarks that are inliers of the pose
        self.outlier_tracks = Tracks.none()
        self.local_view: ReferenceView | None = None

    def track(self, frame: Frame) -> None:
        """Follow the tracks into the next image; its pose is estimated afterwards."""
        gray = self.gray(frame.image)
        self._sharpness = self._tracker.sharpness(gray) if gray.size else 0.0
        self.meter.see(gray, self._sharpness)
        self.keyframe_policy.criteria = ()
        tracks = self.previous_tracks = self._view.with_current_ids(self.tracks)
        previous_inliers, self.inlier_tracks, self.outlier_tracks = self.inlier_tracks, Tracks.none(), Tracks.none()
        self.tracks = Tracks.none()
        if len(tracks) and self._gray.shape == gray.shape:
            self._alignment.start(self._gray, tracks)
            predicted = self._predicted_pixels(frame, tracks)
            pixels, found = self._tracker.follow(self._gray, gray, tracks.pixels, predicted)
            inside = frame.camera.contains(pixels.astype(np.float64))  # False for NaN
            self.tracks = self._alignment.aligned(gray, Tracks(tracks.ids, pixels).where(found & inside))
            self.meter.followed(tracks.pixels, predicted, pixels, found & inside)
            self._overlay.follow(self._gray, gray)
            before = self._gray
            self.moving_objects.follow(lambda pixels: self._tracker.follow(before, gray, pixels, pixels), frame.camera)
            self.leave_out(self._overlay.look(self.tracks, previous_inliers, frame.camera))
        self._gray, self._observation, self._is_blurred = gray, None, None
        self._update_resting(frame.camera)
        self.meter.tracked(self.tracks, frame.camera)

    def leave_out(self, ids: NDArray[np.int64]) -> None:
        """Drop tracks that are not points of the static scene, and remove their landmarks."""
        if len(ids):
            self.tracks = self.tracks.where(~among(self.tracks.ids, ids))
            self._view.remove_landmarks(ids)

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
            self._observation = FrameObservation(
                frame, _features_of(self._gray, frame.camera, self._tracker), self.tracks
            )
        self._observation = self.without_overlay(replace(self._observation, tracks=self.tracks))
        return self._observation

    def extraction(self, frame: Frame) -> Callable[[], FrameObservation]:
        """`extract` for the newest frame, to be called in another thread while this tracker continues."""
        gray, tracks, cleared = self._gray, self.tracks, self._overlay.clearing()
        moving, among = self.moving_objects.clearing(gray), self.moving_objects.are_seen

        def observe() -> FrameObservation:
            features = moving(cleared(_features_of(gray, frame.camera, self._tracker)))
            return FrameObservation(frame, features, tracks, among_moving=among)

        return observe

    def extract_from(self, frame: Frame) -> FrameObservation:
        """Observation of a frame outside the stream order: its features, and no tracks."""
        features = _features_of(self.gray(frame.image), frame.camera, self._tracker)
        return self.without_overlay(FrameObservation(frame, features, Tracks.none()))

    def without_overlay(self, observation: FrameObservation) -> FrameObservation:
        """The observation without the features that lie on the overlay detected so far."""
        return observation.with_features(self._overlay.cleared(observation.features))

    def gray(self, image: Image) -> Image:
        """The gray image in which points of an image (H, W, 3) are followed; without pixels, one without pixels."""
        return self._tracker.gray(image) if image.size else np.zeros((0, 0), np.uint8)

    def points_world(self, ids: NDArray[np.int64]) -> FloatArray:
        """Points (N, 3), map units, of landmarks among the tracks of the newest frame."""
        return self._view.points_world(ids)

    @property
    def current(self) -> TrackedPose:
        """Pose of the newest frame, which must be known, and its inlier landmarks."""
        assert self.pose is not None
        return TrackedPose(self.pose, self.inlier_tracks)

    def estimate_pose(self, frame: Frame, k: int) -> TrackedPose | PoseNotFound:
        """Pose of the newest frame from its tracks, starting at the predicted pose; k is its reference keyframe."""
        start = self._predicted_pose()
        if start is None:
            return PoseNotFound("no earlier pose to start from")

        def others() -> UnknownDepths | None:
            return points_without_depth(self._view, self._view.reference(k), self.tracks)

        tracks = without_still(self.tracks, self.previous_tracks)
        self.leave_out(self.moving_objects.find_in(self._view, k, tracks, frame.camera, start))
        return self._estimator.estimate(self._view, frame.camera, self.tracks, start, others)

    def estimate_from(self, frame: Frame, tracks: Tracks, start: RigidTransform) -> TrackedPose | PoseNotFound:
        """Pose (world_from_cam) of a frame from the landmarks among some tracks in it, starting at `start`."""
        return self._estimator.estimate(self._view, frame.camera, tracks, start)

    def follow_from(
        self, gray: Image, tracks: Tracks, predicted: Pixels, camera: Camera, rotation: FloatArray | None = None
    ) -> Tracks:
        """The tracks of an earlier gray image that are found in the newest one, near their predicted pixels (N, 2).

        The earlier image is turned by `rotation` (3, 3), newest_from_earlier, first.
        """
        if not len(tracks) or gray.shape != self._gray.shape:
            return Tracks.none()
        if rotation is None:
            pixels, found = self._tracker.follow(gray, self._gray, tracks.pixels, predicted)
        else:
            homography = camera.matrix @ rotation @ np.linalg.inv(camera.matrix)
            pixels, found = self._tracker.follow_warped(gray, self._gray, tracks.pixels, predicted, homography)
        inside = camera.contains(pixels.astype(np.float64))  # False for NaN
        return Tracks(tracks.ids, pixels).where(found & inside)

    def reason_to_keep(self, frame: Frame, k: int) -> str:
        """Why the newest frame, with a known pose, should be inserted as a keyframe; empty if not.

        It is compared with keyframe k, or with the frame that is being inserted as a keyframe.
        """
        view = self.local_view or self._view.reference(k)
        if self._is_blurred is None:
            self._is_blurred = self.keyframe_policy.is_blurred(self._sharpness)
        turned = rotation_matrix(view.world_from_keyframe).T @ rotation_matrix(self.current.world_from_cam)
        return self.keyframe_policy.reason_to_keep(
            seen=self.current.landmarks,
            in_keyframe=view.landmarks,
            camera=frame.camera,
            keyframe_from_frame_rotation=turned,
            frames_since=frame.index - view.frame_index,
            blurred=self._is_blurred,
        )

    def refit(self, frames: Sequence[LoggedFrame]) -> FloatArray:
        """Poses (N, 4, 4) of past frames in the current map, as `FramePoseEstimator.refit`."""
        return self._estimator.refit(self._view, frames)

    def accept(self, found: TrackedPose) -> None:
        """Set the pose of the newest frame, and drop the landmark tracks that are outliers of it."""
        self.set_pose(found.world_from_cam)
        self._keep_inliers(found)

    def _keep_inliers(self, found: TrackedPose) -> None:
        kept = ~self._view.is_triangulated(self.tracks.ids) | among(self.tracks.ids, found.landmarks.ids)
        self.outlier_tracks = self.tracks.where(~kept)
        self.tracks, self.inlier_tracks = self.tracks.where(kept), found.landmarks

    def set_pose(self, pose: RigidTransform) -> None:
        """Set the pose of the newest frame, and update the constant velocity model with it."""
        self._motion = None if self.pose is None else product(self.pose.inv(), pose)
        self.pose = pose

    def reset_to(self, pose: RigidTransform, tracks: Tracks) -> None:
        """Replace the pose and the tracks of the newest frame after a change of the map; the motion model stays."""
        self.pose = pose
        self.tracks = tracks
        self.local_view = None
        self.inlier_tracks = tracks.where(self._view.is_triangulated(tracks.ids))

    def reset_motion(self) -> None:
        """After a loss: forget the pose, the motion model and the tracks."""
        self.pose = None
        self._motion = None
        self.tracks = Tracks.none()
        self.local_view = None
        self.moving_objects.reset()

    def detach(self, frame: Frame, world_from_keyframe: Similarity) -> None:
        """Track in a snapshot of the map from now on, because another thread inserts the newest frame as a keyframe.

        `world_from_keyframe` is the pose of the newest frame, with the scale that the keyframe will have.
        """
        self.local_view = None
        self._view.detach(frame, self._gray, self.tracks, world_from_keyframe)

    def attach(self, k: int | None) -> None:
        """Track in the map again, where the frame of `detach` is keyframe k now; None if it was not inserted."""
        detached = self._view.attach()
        if detached is None or k is None or self.pose is None:
            return
        self.previous_tracks = self._view.with_current_ids(self.previous_tracks)
        pose = self._view.moved(self.pose, k, detached)
        self.reset_to(pose, self._view.caught_up(self.tracks, k, detached, self._gray, pose, self._tracker.follow))

    def refine(self, frame: Frame) -> None:
        """Estimate the pose of the newest frame again, after `attach`."""
        found = self.estimate_from(frame, self.tracks, self.current.world_from_cam)
        if isinstance(found, TrackedPose):
            self.pose = found.world_from_cam
            self._keep_inliers(found)

    def _predicted_pose(self) -> RigidTransform | None:
        if self.pose is None or self._motion is None:
            return self.pose
        return product(self.pose, self._motion)

    def _predicted_pixels(self, frame: Frame, tracks: Tracks) -> NDArray[np.float32]:
        """Predicted pixels (N, 2) of the tracks under the constant velocity model."""
        predicted = self._predicted_pose()
        if predicted is None or self._motion is None:
            return tracks.pixels
        return self._view.predicted_pixels(tracks, frame.camera, predicted, rotation_matrix(self._motion))


def _features_of(gray: Image, camera: Camera, tracker: PointTracker) -> LocalFeatures:
    """Features with finite values inside the image; none for an image without pixels."""
    if gray.size == 0:
        return LocalFeatures.none()
    features = tracker.detect(gray)
    inside = camera.contains(features.pixels.astype(np.float64))
    usable = inside & np.isfinite(features.scales) & np.isfinite(features.descriptors).all(axis=1)
    return features if usable.all() else features.where(usable)

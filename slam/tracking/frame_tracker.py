"""Frame-to-frame tracking between keyframes: KLT with predicted pixels, then the pose from the tracked landmarks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.absolute_pose import rotate_pixels
from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.geometry import FloatArray, Similarity, rotation_matrix
from relocalizer.image_static import MOST, resting
from relocalizer.images import Image
from relocalizer.triangulation import depths_in
from slam.config.schema import SlamConfig
from slam.map.frame_log import relative_to_keyframe
from slam.map.frame_measurement import FrameMeasurement, Gate
from slam.map.frames import Frame, FrameObservation, PoseNotFound, TrackedPose
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks
from slam.tracking.frame_pose import FramePoseEstimator, points_without_depth
from slam.tracking.image_measurement import FrameMeter
from slam.tracking.keyframe_policy import KeyframePolicy, common_pixels
from slam.tracking.klt import PointTracker
from slam.tracking.overlay import Overlay
from slam.tracking.tracked_map import DepartedFrame, MapSnapshot, ReferenceView, TrackedMap, reference_view

RESTING_FRAMES = 10  # length of the window in which the tracks of a camera at rest do not move, frames


class FrameTracker:
    """State of the newest frame: gray image, tracks, pose, inlier landmarks, and the motion model.

    While another thread changes the map (from `detach` to `attach`), frames are tracked in a snapshot of it.

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
        self._view: TrackedMap = slam_map
        self._departed: DepartedFrame | None = None
        self._left_out: list[NDArray[np.int64]] = []  # ids of landmarks to be removed from the map, after a snapshot
        self._estimator = FramePoseEstimator(config.tracking, config.tracks.noise_px)
        self._policy = KeyframePolicy(config.keyframes)
        self._gray: Image = np.zeros((0, 0), np.uint8)
        self._observation: FrameObservation | None = (
            None  # of the newest frame; made when its features are first needed
        )
        self._overlay = Overlay(0.5 * config.tracks.window_px)
        self._recent: deque[Tracks] = deque(maxlen=RESTING_FRAMES)
        self._meter = FrameMeter()
        self._sharpness = 0.0
        self._is_blurred: bool | None = None  # of the newest frame; judged when it may become a keyframe
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
        tracks = self.previous_tracks = self._view.with_current_ids(self.tracks)
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
        self._gray, self._observation, self._is_blurred = gray, None, None
        self._update_resting(frame.camera)
        self._meter.tracked(self.tracks, frame.camera)

    def leave_out(self, ids: NDArray[np.int64]) -> None:
        """Drop tracks that are not points of the static scene, and remove their landmarks."""
        if len(ids):
            self.tracks = self.tracks.where(~np.isin(self.tracks.ids, ids))
            if self._departed is None:
                self._map.remove_landmarks(ids)
            else:
                self._left_out.append(ids)

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

    def extraction(self, frame: Frame) -> Callable[[], FrameObservation]:
        """`extract` for the newest frame, to be called in another thread while this tracker goes on."""
        if self._observation is not None and self._observation.frame is frame:
            observation = self.extract(frame)
            return lambda: observation
        gray, tracks, cleared = self._gray, self.tracks, self._overlay.clearing()
        return lambda: FrameObservation(frame, cleared(self._detect(gray, frame.camera)), tracks)

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

    def points_world(self, ids: NDArray[np.int64]) -> FloatArray:
        """Points (N, 3), map units, of landmarks among the tracks of the newest frame."""
        return self._view.points_world(ids)

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
        """Pose of the newest frame from its tracks, starting at the predicted pose; k is its reference keyframe."""
        start = self._predicted_pose()
        if start is None:
            return PoseNotFound("no earlier pose to start from")
        others = points_without_depth(self._view, self._view_of(k), self.tracks)
        return self._estimator.estimate(self._view, frame.camera, self.tracks, start, others)

    def estimate_from(self, frame: Frame, tracks: Tracks, start: RigidTransform) -> TrackedPose | PoseNotFound:
        """Pose (world_from_cam) from the landmarks among some tracks of a frame, starting at `start`."""
        return self._estimator.estimate(self._view, frame.camera, tracks, start)

    def follow_from(self, gray: Image, tracks: Tracks, predicted: NDArray[np.float32]) -> Tracks:
        """The tracks of an earlier gray image that are found in the newest one, near their predicted pixels (N, 2)."""
        if not len(tracks) or gray.shape != self._gray.shape:
            return Tracks.none()
        pixels, found = self._tracker.follow(gray, self._gray, tracks.pixels, predicted)
        return Tracks(tracks.ids, pixels).where(found)

    def reason_to_keep(self, frame: Frame, k: int) -> str:
        """Why the newest frame, with a known pose, should be inserted as a keyframe; empty if not.

        It is compared with keyframe k, or with the frame that is being inserted as a keyframe.
        """
        view = self._view_of(k)
        if self._is_blurred is None:
            self._is_blurred = self._policy.is_blurred(self._sharpness)
        return self._policy.reason_to_keep(
            seen=self.current.landmarks,
            in_keyframe=view.landmarks,
            camera=frame.camera,
            keyframe_from_frame_rotation=rotation_matrix(view.world_from_keyframe.inv() * self.current.world_from_cam),
            frames_since=frame.index - view.frame_index,
            blurred=self._is_blurred,
        )

    @property
    def needs_keyframe_now(self) -> bool:
        """Whether so few landmarks are left in the newest frame that the keyframe of `reason_to_keep` must not wait."""
        return self._policy.is_urgent

    def _view_of(self, k: int) -> ReferenceView:
        """Keyframe k, or the frame that is being inserted as a keyframe."""
        return self._departed.view if self._departed is not None else reference_view(self._map, k)

    def refit(self, tracks: Tracks, camera: Camera, pose: RigidTransform) -> RigidTransform:
        """Pose of a past frame in the current map, from the landmarks it observed; `pose` when too few are left."""
        return self._estimator.refit(self._map, self._landmarks.with_current_ids(tracks), camera, pose)

    def accept(self, found: TrackedPose) -> None:
        """Set the pose of the newest frame, and drop the landmark tracks that are outliers of it."""
        self.set_pose(found.world_from_cam)
        kept = ~self._view.is_triangulated(self.tracks.ids) | np.isin(self.tracks.ids, found.landmarks.ids)
        self.outlier_tracks = self.tracks.where(~kept)
        self.tracks = self.tracks.where(kept)
        self.inlier_tracks = found.landmarks

    def refine(self, frame: Frame) -> None:
        """Estimate the pose of the newest frame, which is known, again in the map that `attach` brought."""
        assert self.pose is not None
        found = self.estimate_from(frame, self.tracks, self.pose)
        if isinstance(found, TrackedPose):
            self.pose = found.world_from_cam
            kept = ~self._view.is_triangulated(self.tracks.ids) | np.isin(self.tracks.ids, found.landmarks.ids)
            self.tracks, self.inlier_tracks = self.tracks.where(kept), found.landmarks

    def set_pose(self, pose: RigidTransform) -> None:
        """Set the pose of the newest frame, and update the constant velocity model with it."""
        self._motion = None if self.pose is None else self.pose.inv() * pose
        self.pose = pose

    def reset_to(self, pose: RigidTransform, tracks: Tracks) -> None:
        """Replace the pose and the tracks of the newest frame after a change of the map; the motion model stays."""
        self.pose = pose
        self.tracks = tracks
        self.inlier_tracks = tracks.where(self._view.is_triangulated(tracks.ids))

    def reset_motion(self) -> None:
        """After a loss: forget the pose, the motion model and the tracks."""
        self.pose = None
        self._motion = None
        self.tracks = Tracks.none()

    # --- while another thread changes the map ---------------------------------------------------------

    def detach(self, frame: Frame, world_from_keyframe: Similarity) -> None:
        """Track in a snapshot of the map from now on, because the newest frame is inserted as a keyframe elsewhere.

        Args:
            world_from_keyframe: the pose of the newest frame, with the scale that the keyframe will have.
        """
        is_landmark = self._map.is_triangulated(self.tracks.ids)
        self._view = MapSnapshot.of(self._map, self.tracks)
        self._departed = DepartedFrame(
            view=ReferenceView(
                frame_index=frame.index,
                camera=frame.camera,
                world_from_keyframe=world_from_keyframe.rigid,
                landmarks=self.tracks.where(is_landmark),
                without_depth=self.tracks.where(~is_landmark),
            ),
            gray=self._gray,
            world_from_keyframe=world_from_keyframe,
            tracks=self.tracks,
        )

    def attach(self, k: int | None) -> None:
        """Track in the map again, in which the frame of `detach` is keyframe k now; None if it was not inserted.

        The newest pose keeps its place relative to the keyframe. Tracks that keyframe k does not observe any more are
        dropped; those that it got when it was inserted are followed from its image into the newest one.
        """
        departed, self._departed, self._view = self._departed, None, self._map
        if self._left_out:
            left_out = np.concatenate(self._left_out)
            self._left_out = []
            self._map.remove_landmarks(self._landmarks.current_ids(left_out))
        if departed is None or k is None or self.pose is None:
            return
        self.previous_tracks = self._map.with_current_ids(self.previous_tracks)
        observed, tracks = self._landmarks.observed[k], self._map.with_current_ids(self.tracks)
        tracks = tracks.where(np.isin(tracks.ids, observed.ids))
        started = observed.where(~np.isin(observed.ids, self._landmarks.current_ids(departed.tracks.ids)))
        keyframe_from_cam = relative_to_keyframe(departed.world_from_keyframe, self.pose)
        pose = self._graph.world_from_keyframe[k].compose_rigid(keyframe_from_cam)
        self.reset_to(pose, tracks.joined(self._caught_up(departed, started, k, pose)))

    def _caught_up(self, departed: DepartedFrame, tracks: Tracks, k: int, pose: RigidTransform) -> Tracks:
        """Tracks of keyframe k followed from its image directly into the newest one.

        A track without a position is expected at the median depth of the keyframe's landmarks.
        """
        if len(tracks) == 0 or self._gray is departed.gray or self._gray.shape != departed.gray.shape:
            return tracks if self._gray is departed.gray else Tracks.none()
        world_from_keyframe = self._graph.world_from_keyframe[k].rigid
        known = self._landmarks.is_triangulated(tracks.ids)
        points = np.empty((len(tracks), 3))
        points[known] = self._map.points_world(tracks.ids[known])
        landmarks = self._map.points_world(self._map.observed_landmarks([k]))
        depth = float(np.median(depths_in(landmarks, world_from_keyframe))) if len(landmarks) else 1.0
        rays = np.column_stack([departed.view.camera.normalized(tracks.pixels[~known]), np.ones(int((~known).sum()))])
        points[~known] = world_from_keyframe.apply(depth * rays).reshape(-1, 3)
        guess = _projected(points, pose, departed.view.camera, tracks.pixels)
        guess = np.where(departed.view.camera.contains(guess.astype(np.float64))[:, None], guess, tracks.pixels)
        pixels, found = self._tracker.follow(departed.gray, self._gray, tracks.pixels, guess)
        return Tracks(tracks.ids, pixels).where(found & departed.view.camera.contains(pixels.astype(np.float64)))

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
        triangulated = self._view.is_triangulated(tracks.ids)
        points = self._view.points_world(tracks.ids[triangulated])
        pixels[triangulated] = _projected(points, predicted, frame.camera, pixels[triangulated])
        inside = frame.camera.contains(pixels.astype(np.float64))
        return np.where(inside[:, None], pixels, tracks.pixels)


def _projected(
    points: FloatArray, world_from_cam: RigidTransform, camera: Camera, otherwise: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Pixels (N, 2) of points (N, 3), map units; for those that are not in front of the camera, `otherwise` (N, 2)."""
    in_cam = np.asarray(world_from_cam.inv().apply(points)).reshape(-1, 3)
    in_front = in_cam[:, 2] > 1e-3
    pixels = otherwise.copy()
    pixels[in_front] = camera.project(in_cam[in_front])
    return pixels

"""Tracking of the local map: landmarks of covisible keyframes are followed into a frame that is due as a keyframe.

As in ORB-SLAM, a frame is related to all landmarks of the keyframes around it, not only to those followed from
one keyframe. A frame that sees about as many landmarks as these keyframes do shows nothing new, and needs no keyframe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relocalizer.absolute_pose import rotate_pixels
from relocalizer.geometry import FloatArray, rotation_matrix
from relocalizer.guided_matching import expected_in
from slam.config.schema import SlamConfig
from slam.map.frames import Frame, TrackedPose
from slam.map.keyframe_images import KeyframeImages
from slam.map.slam_map import SlamMap
from slam.map.tracks import Pixels, Tracks, among
from slam.tracking.frame_pose import MANY_LANDMARKS, ObservedPoints
from slam.tracking.frame_tracker import FrameTracker
from slam.tracking.reference_keyframe import MARGIN, ReferenceKeyframes
from slam.tracking.tracked_map import ReferenceView
from slam.tracking.tracking_state import TrackingStateMachine

SEARCHED = 3  # maximum number of keyframe images from which landmarks are followed
MIN_NEW = 15  # minimum number of landmarks that only this keyframe adds, to search for them in its image
# Minimum fractions of the landmarks tracked before and of those found that agree with one pose. Of the latter fewer do:
# some of them were lost because they are occluded.
MIN_TRACKED_AGREEING = 0.6
MIN_FOUND_AGREEING = 0.4
# Minimum number of frames since the reference keyframe. Where every second frame is due, the steps are wide, and the
# search would take its time at each of them.
MIN_GAP = 3
# Fraction of the landmarks of the most covisible keyframe that a frame must see to need no keyframe.
ENOUGH = 0.75


@dataclass(frozen=True, slots=True, eq=False)
class RotatedView:
    """Landmarks of a keyframe whose image, rotated into the view of a frame, shows them.

    Attributes:
        observed: the landmarks in the keyframe.
        expected: (N, 2) pixels at which the frame should show them.
        frame_from_keyframe_rotation: (3, 3)
    """

    observed: Tracks
    expected: Pixels
    frame_from_keyframe_rotation: FloatArray


class LocalMap:
    """Follows landmarks of covisible keyframes into the newest frame, whose pose is known."""

    def __init__(self, config: SlamConfig, slam_map: SlamMap, images: KeyframeImages, tracker: FrameTracker) -> None:
        self._config = config
        self._map = slam_map
        self._references = ReferenceKeyframes(config, slam_map, images, tracker)
        self._frame_tracker = tracker

    def follow(self, frame: Frame, state: TrackingStateMachine) -> bool:
        """Whether a frame that is due as a keyframe shows nothing new, so that it need not become one.

        Then an older keyframe of the same view is its reference keyframe, or it tracks the landmarks of the keyframes
        around it from now on, and later frames are compared with it. Otherwise nothing changes.
        """
        if self._references.follow(frame, state):
            return True
        gap = frame.index - self._map.frame_index_of(state.keyframe_id)
        return gap >= MIN_GAP and self._extend(frame, state)

    def _extend(self, frame: Frame, state: TrackingStateMachine) -> bool:
        """Track the landmarks of covisible keyframes as well, if the frame sees about as many as these do."""
        near = self._references.covisible(state.keyframe_id)
        pose = self._pose_with(frame, self._search(frame, near))
        if pose is None:
            return False
        usual = len(self._references.landmarks_of(near[0]))
        if len(pose.landmarks) < max(MANY_LANDMARKS, ENOUGH * usual):
            return False
        tracks = self._with_landmarks(pose.landmarks)
        self._frame_tracker.reset_to(pose.world_from_cam, tracks)
        state.set_tracking(near[0])
        self._frame_tracker.local_view = ReferenceView(
            frame_index=frame.index,
            camera=frame.camera,
            world_from_keyframe=pose.world_from_cam,
            landmarks=pose.landmarks,
            without_depth=tracks.where(~self._map.is_triangulated(tracks.ids)),
        )
        return True

    def _search(self, frame: Frame, near: list[int]) -> Tracks:
        """The landmarks of keyframes `near` that are found in the frame and not tracked yet."""
        if not near:
            return Tracks.none()
        ids = self._map.observed_landmarks(near)
        ids = ids[~among(ids, self._frame_tracker.tracks.ids)]
        rows, pixels = expected_in(
            self._map.points_world(ids), self._frame_tracker.current.world_from_cam, frame.camera
        )
        expected = Tracks(ids[rows], pixels.astype(np.float32))
        views = {c: self._rotated_view(frame, c, expected) for c in near}
        found = searched = Tracks.none()
        for _ in range(SEARCHED):
            new = {c: int((~among(view.observed.ids, searched.ids)).sum()) for c, view in views.items()}
            c = max(new, key=lambda c: (new[c], c))
            if new[c] < MIN_NEW:
                break
            is_new = ~among(views[c].observed.ids, searched.ids)
            searched = searched.joined(views[c].observed.where(is_new))
            found = found.joined(self._followed(frame, c, views[c], is_new))
        return found

    def _rotated_view(self, frame: Frame, c: int, expected: Tracks) -> RotatedView:
        """The landmarks among `expected` that keyframe c observes, where they are in its image rotated to the frame's.

        None of them where the camera has moved by so much since that the rotated image looks different, or that its
        parallax is nearly that of a new keyframe.
        """
        pose = self._frame_tracker.current.world_from_cam
        frame_from_keyframe = rotation_matrix(pose).T @ self._map.pose_of(c).rotation
        observed = self._map.landmarks.observed[c]
        _, in_c, rows = np.intersect1d(observed.ids, expected.ids, assume_unique=True, return_indices=True)
        rotated = rotate_pixels(observed.pixels[in_c], frame.camera, frame_from_keyframe)
        inside = frame.camera.contains(rotated.astype(np.float64))
        landmarks = Tracks(observed.ids[in_c], observed.pixels[in_c]).where(inside)
        pixels = expected.pixels[rows][inside]
        parallax = np.linalg.norm(pixels - rotated[inside], axis=1)
        if len(landmarks) == 0 or np.median(parallax) > MARGIN * self._config.keyframes.parallax_px:
            return RotatedView(Tracks.none(), Tracks.none().pixels, frame_from_keyframe)
        return RotatedView(landmarks, pixels, frame_from_keyframe)

    def _followed(self, frame: Frame, c: int, view: RotatedView, wanted: NDArray[np.bool_]) -> Tracks:
        """The wanted (N,) landmarks of a view of keyframe c that are found in the frame."""
        return self._frame_tracker.follow_from(
            self._references.gray_of(c),
            view.observed.where(wanted),
            view.expected[wanted],
            frame.camera,
            view.frame_from_keyframe_rotation,
        )

    def _pose_with(self, frame: Frame, found: Tracks) -> TrackedPose | None:
        """The pose from the landmarks tracked and those found; None if too few of these agree with it."""
        tracker = self._frame_tracker
        if len(found) == 0:
            return None
        joined = tracker.inlier_tracks.joined(found)
        observed = ObservedPoints(
            self._map.points_world(joined.ids), joined.pixels, frame.camera, self._config.tracks.noise_px
        )
        fit, _ = observed.pose_from(tracker.current.world_from_cam)
        n = len(tracker.inlier_tracks)
        if fit.inliers[:n].mean() < MIN_TRACKED_AGREEING or fit.inliers[n:].mean() < MIN_FOUND_AGREEING:
            return None
        return TrackedPose(fit.world_from_cam, joined.where(fit.inliers))

    def _with_landmarks(self, seen: Tracks) -> Tracks:
        """The landmarks `seen`, and the tracks of the frame without a depth that are apart from these."""
        tracks = self._frame_tracker.tracks
        others = tracks.where(~self._map.is_triangulated(tracks.ids))
        return seen.joined(others.where(self._references.is_apart(others, seen)))

"""The map as tracking reads it: the map itself, or a snapshot of it while another thread changes the map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.absolute_pose import rotate_pixels
from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, Similarity, apply_inverse
from relocalizer.images import Image
from relocalizer.triangulation import depths_in
from slam.map.frame_log import relative_to_keyframe
from slam.map.frames import Frame
from slam.map.slam_map import SlamMap
from slam.map.tracks import Pixels, Tracks

# As `PointTracker.follow`: pixels in the second image, and which of the points were found.
Follow = Callable[[Image, Image, Pixels, Pixels], tuple[Pixels, NDArray[np.bool_]]]


@dataclass(frozen=True, slots=True, eq=False)
class MapSnapshot:
    """The landmarks among the tracks of one frame, as they were at that frame.

    Attributes:
        ids: (N,) ascending.
        points: (N, 3), map units; depth_sigma: (N, 3), as `SlamMap.depth_sigma_world`.
    """

    ids: NDArray[np.int64]
    points: FloatArray
    depth_sigma: FloatArray

    @staticmethod
    def of(slam_map: SlamMap, tracks: Tracks) -> MapSnapshot:
        """The landmarks among the tracks of the newest frame."""
        ids = np.sort(tracks.ids[slam_map.is_triangulated(tracks.ids)])
        return MapSnapshot(ids, slam_map.points_world(ids), slam_map.depth_sigma_world(ids))

    def is_triangulated(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these tracks (N,) are landmarks of the snapshot."""
        return np.isin(ids, self.ids)

    def points_world(self, ids: NDArray[np.int64]) -> FloatArray:
        """Points (N, 3) of landmarks of the snapshot, map units."""
        return self.points[np.searchsorted(self.ids, ids)]

    def depth_sigma_world(self, ids: NDArray[np.int64]) -> FloatArray:
        """One standard deviation of each landmark along its anchor's ray, as a vector (N, 3), map units."""
        return self.depth_sigma[np.searchsorted(self.ids, ids)]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReferenceView:
    """The keyframe with which later frames are compared, to decide whether one of them becomes a keyframe.

    Attributes:
        world_from_keyframe: its pose, map units.
        landmarks: the landmarks that it observes.
        without_depth: the points that it observes and that are not triangulated.
    """

    frame_index: int
    camera: Camera
    world_from_keyframe: RigidTransform
    landmarks: Tracks
    without_depth: Tracks


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DetachedFrame:
    """The frame that another thread inserts as a keyframe.

    Attributes:
        snapshot: the landmarks at that frame.
        world_from_keyframe: its pose in the snapshot.
        tracks: all its tracks, landmarks or not.
    """

    index: int
    gray: Image
    camera: Camera
    snapshot: MapSnapshot
    world_from_keyframe: Similarity
    tracks: Tracks


class TrackedMap:
    """The landmarks that frames are tracked by. From `detach` to `attach` the map itself is not touched."""

    def __init__(self, slam_map: SlamMap) -> None:
        self._map = slam_map
        self._detached: DetachedFrame | None = None
        self._to_remove: list[NDArray[np.int64]] = []  # ids of landmarks to be removed when the map may be changed

    def is_triangulated(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these tracks (N,) are landmarks; a track that began after `detach` is none."""
        return (self._map if self._detached is None else self._detached.snapshot).is_triangulated(ids)

    def points_world(self, ids: NDArray[np.int64]) -> FloatArray:
        """Points (N, 3) of landmarks, map units."""
        return (self._map if self._detached is None else self._detached.snapshot).points_world(ids)

    def depth_sigma_world(self, ids: NDArray[np.int64]) -> FloatArray:
        """One standard deviation of each landmark along its anchor's ray, as a vector (N, 3), map units."""
        return (self._map if self._detached is None else self._detached.snapshot).depth_sigma_world(ids)

    def with_current_ids(self, tracks: Tracks) -> Tracks:
        """The tracks under their current ids, which change when landmarks are fused."""
        return tracks if self._detached is not None else self._map.landmarks.with_current_ids(tracks)

    def remove_landmarks(self, ids: NDArray[np.int64]) -> None:
        """Remove the positions of landmarks, at once or when the map may be changed; their tracks stay."""
        if self._detached is None:
            self._map.remove_landmarks(ids)
        else:
            self._to_remove.append(ids)

    def reference(self, k: int) -> ReferenceView:
        """What a frame is compared with: keyframe k, or the frame that is being inserted as a keyframe."""
        if (detached := self._detached) is not None:
            is_landmark = detached.snapshot.is_triangulated(detached.tracks.ids)
            return ReferenceView(
                frame_index=detached.index,
                camera=detached.camera,
                world_from_keyframe=detached.world_from_keyframe.rigid,
                landmarks=detached.tracks.where(is_landmark),
                without_depth=detached.tracks.where(~is_landmark),
            )
        observed = self._map.landmarks.observed[k]
        is_landmark = self._map.is_triangulated(observed.ids)
        return ReferenceView(
            frame_index=self._map.frame_index_of(k),
            camera=self._map.camera_of(k),
            world_from_keyframe=self._map.pose_of(k).rigid,
            landmarks=observed.where(is_landmark),
            without_depth=observed.where(~is_landmark),
        )

    def predicted_pixels(
        self, tracks: Tracks, camera: Camera, world_from_cam: RigidTransform, last_from_next_rotation: FloatArray
    ) -> Pixels:
        """Pixels (N, 2) at which tracks are expected in the next image.

        Landmarks are expected at their projections, other tracks where the rotation moves them; what would be outside
        of the image is expected where it was.

        Args:
            world_from_cam: predicted pose of the next image.
        """
        pixels = rotate_pixels(tracks.pixels, camera, last_from_next_rotation.T)
        known = self.is_triangulated(tracks.ids)
        pixels[known] = projected(self.points_world(tracks.ids[known]), world_from_cam, camera, pixels[known])
        inside = camera.contains(pixels.astype(np.float64))
        return np.where(inside[:, None], pixels, tracks.pixels)

    def detach(self, frame: Frame, gray: Image, tracks: Tracks, world_from_keyframe: Similarity) -> None:
        """Use a snapshot from now on, because another thread inserts this frame as a keyframe.

        Args:
            world_from_keyframe: the pose of the frame, with the scale that the keyframe will have.
        """
        self._detached = DetachedFrame(
            index=frame.index,
            gray=gray,
            camera=frame.camera,
            snapshot=MapSnapshot.of(self._map, tracks),
            world_from_keyframe=world_from_keyframe,
            tracks=tracks,
        )

    def attach(self) -> DetachedFrame | None:
        """Use the map again; the frame of `detach`, None if there was none."""
        detached, self._detached = self._detached, None
        if self._to_remove:
            ids, self._to_remove = np.concatenate(self._to_remove), []
            self._map.remove_landmarks(self._map.landmarks.current_ids(ids))
        return detached

    def moved(self, pose: RigidTransform, k: int, detached: DetachedFrame) -> RigidTransform:
        """The pose (world_from_cam) that keeps its place relative to the detached frame, which is keyframe k now."""
        return self._map.pose_of(k).compose_rigid(relative_to_keyframe(detached.world_from_keyframe, pose))

    def caught_up(
        self, tracks: Tracks, k: int, detached: DetachedFrame, gray: Image, pose: RigidTransform, follow: Follow
    ) -> Tracks:
        """The tracks of keyframe k in a newer image: those followed into it, and those that k got when it was inserted.

        Tracks that keyframe k does not observe any more are dropped. The others of keyframe k that its frame did not
        have yet are followed from its image directly into the newer one.

        Args:
            tracks: the tracks of the newer image.
            gray, pose: of the newer image; the pose is world_from_cam.
        """
        landmarks = self._map.landmarks
        observed, tracks = landmarks.observed[k], landmarks.with_current_ids(tracks)
        tracks = tracks.where(np.isin(tracks.ids, observed.ids))
        started = observed.where(~np.isin(observed.ids, landmarks.current_ids(detached.tracks.ids)))
        if gray is detached.gray:
            return tracks.joined(started)
        if gray.shape != detached.gray.shape or len(started) == 0:
            return tracks
        guess = projected(self._expected_points(started, k, detached.camera), pose, detached.camera, started.pixels)
        inside = detached.camera.contains(guess.astype(np.float64))
        guess = np.where(inside[:, None], guess, started.pixels)
        pixels, found = follow(detached.gray, gray, started.pixels, guess)
        found &= detached.camera.contains(pixels.astype(np.float64))
        return tracks.joined(Tracks(started.ids, pixels).where(found))

    def _expected_points(self, tracks: Tracks, k: int, camera: Camera) -> FloatArray:
        """Points (N, 3) of tracks of keyframe k, map units; those without a position at its median depth."""
        world_from_keyframe = self._map.pose_of(k).rigid
        landmarks = self._map.points_world(self._map.observed_landmarks([k]))
        depth = float(np.median(depths_in(landmarks, world_from_keyframe))) if len(landmarks) else 1.0
        rays = np.column_stack([camera.normalized(tracks.pixels), np.ones(len(tracks))])
        points = np.asarray(world_from_keyframe.apply(depth * rays)).reshape(-1, 3)
        known = self._map.is_triangulated(tracks.ids)
        points[known] = self._map.points_world(tracks.ids[known])
        return points


def projected(points: FloatArray, world_from_cam: RigidTransform, camera: Camera, otherwise: Pixels) -> Pixels:
    """Pixels (N, 2) of points (N, 3), map units; for those that are not in front of the camera, `otherwise` (N, 2)."""
    in_cam = apply_inverse(world_from_cam, points)
    in_front = in_cam[:, 2] > 1e-3
    pixels = otherwise.copy()
    pixels[in_front] = camera.project(in_cam[in_front])
    return pixels

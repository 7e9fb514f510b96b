"""Insertion of a keyframe: encoding and descriptor, observations, new tracks, and triangulation of new landmarks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from relocalizer.features import LocalFeatures
from relocalizer.geometry import Similarity
from relocalizer.images import Image
from relocalizer.interfaces import PosePredictor
from relocalizer.triangulation import triangulate
from slam.config.schema import SlamConfig
from slam.events import EstimateRefused, Event
from slam.map.frames import STEADY_NOISE_RATIO, FrameObservation, Keyframe
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks
from slam.mapping.landmark_fusion import LandmarkFusion
from slam.tracking.klt import choose_new

SAME_POINT_PX = 2.0  # maximum distance of a feature from a track to be an observation of it, pixels
SAME_POINT_SIMILARITY = 0.7  # minimum similarity of the descriptors of a feature and a track to be the same point


class KeyframeInserter:
    """Inserts frames into the map as keyframes, like ORB-SLAM's local mapping: observe, search, triangulate."""

    def __init__(
        self,
        config: SlamConfig,
        predictor: PosePredictor,
        slam_map: SlamMap,
        fusion: LandmarkFusion,
        publish: Callable[[Event], None],
    ) -> None:
        self._config = config
        self._predictor = predictor
        self._map = slam_map
        self._fusion = fusion
        self._publish = publish

    def insert(self, seen: FrameObservation, tracks: Tracks, pose: Similarity, segment: int) -> Keyframe:
        """Insert a frame as a keyframe, search it for known landmarks, and start and triangulate new tracks.

        Args:
            tracks: the tracks followed into the frame.
            pose: world_from_keyframe.
        """
        keyframe = self._make_keyframe(seen)
        self._map.insert_keyframe(keyframe, pose, segment, tracks, self._tracks_of_features(tracks, seen.features))
        self._fusion.search_by_projection(keyframe.id)
        self._start_new_tracks(keyframe, seen.frame.image)
        self._triangulate_new_landmarks(keyframe.id)
        return keyframe

    def _make_keyframe(self, seen: FrameObservation) -> Keyframe:
        """The keyframe of a frame, which is not in the graph yet."""
        frame = seen.frame
        encoded = seen.encoded(self._predictor)
        descriptor, usable = seen.descriptor(self._predictor)
        if not usable:
            self._publish(
                EstimateRefused(
                    frame_index=frame.index,
                    reason="the place descriptor is no unit vector: its place will hardly be recognized",
                )
            )
        return Keyframe(
            id=self._map.graph.last_id + 1,
            frame_index=frame.index,
            timestamp_ns=frame.timestamp_ns,
            camera=frame.camera,
            encoded=encoded,
            descriptor=descriptor,
            features=seen.features,
            name=frame.name,
            among_moving=seen.among_moving,
        )

    def _tracks_of_features(self, tracks: Tracks, features: LocalFeatures) -> NDArray[np.int64]:
        """The track id (N,) of every feature that is close to a track and similar to it; -1 for all other features."""
        track_ids = np.full(len(features), -1, np.int64)
        if len(tracks) == 0 or len(features) == 0:
            return track_ids
        distance, nearest = cKDTree(tracks.pixels).query(features.pixels, distance_upper_bound=SAME_POINT_PX)
        near = np.flatnonzero(np.isfinite(distance))
        for n in near[np.argsort(distance[near], kind="stable")]:
            track_id = tracks.ids[nearest[n]]
            similarity = float(self._map.landmarks.descriptor[track_id] @ features.descriptors[n])
            if similarity > SAME_POINT_SIMILARITY and track_id not in track_ids:
                track_ids[n] = track_id
        return track_ids

    def _start_new_tracks(self, keyframe: Keyframe, image: Image) -> None:
        """Start tracks at features that are far from every track."""
        config, camera = self._config.tracks, keyframe.camera
        tracks = self._map.landmarks.observed[keyframe.id]
        chosen = choose_new(
            keyframe.features,
            tracks.pixels,
            count=max(0, config.max_tracks - len(tracks)),
            min_distance_px=config.min_distance_px,
            size=(camera.width, camera.height),
        )
        chosen = chosen[self._map.landmarks.feature_tracks[keyframe.id][chosen] < 0]
        features = keyframe.features
        started = self._map.start_tracks(features.pixels[chosen], features.descriptors[chosen], image)
        self._map.add_observations(keyframe.id, chosen, started)

    def _triangulate_new_landmarks(self, k: int) -> None:
        """Triangulate the tracks of keyframe k that are not landmarks yet.

        Each is triangulated with the first keyframe that observes it with sufficient parallax.
        """
        tracks = self._map.landmarks.observed[k]
        untriangulated = tracks.where(~self._map.landmarks.is_triangulated(tracks.ids))
        segment = self._map.graph.segment_of[k]
        for i in self._map.landmarks.observed.observers_of(untriangulated.ids):
            if i == k or self._map.graph.segment_of[i] != segment or len(untriangulated) == 0:
                continue
            earlier = self._map.landmarks.observed[i]
            ids, in_i, in_k = np.intersect1d(earlier.ids, untriangulated.ids, assume_unique=True, return_indices=True)
            if len(ids) == 0:
                continue
            triangulated = self._triangulate(i, k, ids, earlier.pixels[in_i], untriangulated.pixels[in_k])
            untriangulated = untriangulated.where(~np.isin(untriangulated.ids, triangulated))

    def _triangulate(
        self, i: int, k: int, ids: NDArray[np.int64], pixels_i: NDArray[np.float32], pixels_k: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """Triangulate tracks observed in keyframes i and k, with anchor i; the ids of the new landmarks."""
        camera_i, camera_k = self._map.graph.keyframes[i].camera, self._map.graph.keyframes[k].camera
        pose_i, pose_k = self._map.graph.world_from_keyframe[i], self._map.graph.world_from_keyframe[k]
        assumed = 1.5 * self._config.tracks.noise_px / camera_i.mean_focal
        noise = assumed * (STEADY_NOISE_RATIO if self._map.graph.keyframes[k].among_moving else 1.0)
        result = triangulate(
            camera_i.normalized(pixels_i),
            camera_k.normalized(pixels_k),
            pose_i.rigid.inv() * pose_k.rigid,
            noise=noise,
            min_parallax_rad=float(np.radians(self._config.landmarks.min_parallax_deg)),
        )
        good = result.good
        points_world = pose_i.rigid.apply(result.points_i[good])
        # An error of `assumed` in a ray shifts inverse depth by assumed / (depth * parallax).
        sigma = assumed / np.maximum(result.points_i[good, 2] * result.parallax_rad[good], 1e-9) * pose_i.scale
        self._map.add_landmarks(ids[good], pose_i.inverse().apply(points_world), i, sigma)
        return ids[good]

"""Search for known landmarks in a keyframe by projection, and fusion of duplicates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray
from relocalizer.guided_matching import expected_in, similar_nearby
from relocalizer.triangulation import depths_in
from slam.config.schema import LandmarksConfig
from slam.map.frames import Keyframe
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks

MAX_DEPTH_DIFFERENCE = 0.2  # maximum difference of the depths of two landmarks to be fused, as a fraction of the depth


class LandmarkFusion:
    """Searches for landmarks by projection and fuses duplicates, as ORB-SLAM's local mapping does."""

    def __init__(self, config: LandmarksConfig, slam_map: SlamMap) -> None:
        self._config = config
        self._map = slam_map

    def search_by_projection(self, k: int, *, covisible: int | None = None) -> int:
        """Search keyframe k for the landmarks of its most covisible keyframes; the number of landmarks found.

        Each landmark is projected into k and matched to the most similar feature nearby, which closes short loops
        without a loop edge. A feature without a track becomes an observation of the landmark; if a feature is an
        observation of another landmark, the two are fused.

        Args:
            covisible: number of covisible keyframes; `search_keyframes` of the configuration by default.
        """
        config = self._config
        keyframe = self._map.graph.keyframes[k]
        feature_tracks = self._map.landmarks.feature_tracks[k]
        ids, pixels = self._predicted_pixels(k, config.search_keyframes if covisible is None else covisible)
        candidates = np.flatnonzero((feature_tracks < 0) | self._is_landmark(feature_tracks))
        if len(ids) == 0 or len(candidates) == 0:
            return 0
        found_ids, features = self._match_near(ids, pixels, keyframe, candidates, config.search_radius_px)
        free = feature_tracks[features] < 0
        found = Tracks(found_ids[free], keyframe.features.pixels[features[free]])
        self._map.add_observations(k, features[free], found)
        self._fuse(k, found_ids[~free], feature_tracks[features[~free]])
        return len(found_ids)

    def _predicted_pixels(self, k: int, covisible: int) -> tuple[NDArray[np.int64], FloatArray]:
        """Unobserved landmarks that project into keyframe k, in order of id, and their pixels (N, 2)."""
        ids, pose = self._unobserved_landmarks(k, covisible), self._map.graph.world_from_keyframe[k].rigid
        rows, pixels = expected_in(
            self._map.landmarks.points_world(ids, self._map.graph), pose, self._map.graph.keyframes[k].camera
        )
        return ids[rows], pixels

    def _unobserved_landmarks(self, k: int, covisible: int) -> NDArray[np.int64]:
        """Landmarks of the keyframes most covisible with k that k does not observe itself, in order of id."""
        landmarks = self._map.landmarks
        is_wanted = np.zeros(len(landmarks.anchor), bool)
        for i in self._map.covisible(k, covisible):
            is_wanted[landmarks.observed[i].ids] = True
        is_wanted[landmarks.observed[k].ids] = False
        ids = np.flatnonzero(is_wanted)
        return ids[landmarks.is_triangulated(ids)]

    def _is_landmark(self, track_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these track ids (N,), -1 for none, are triangulated."""
        triangulated = track_ids >= 0
        triangulated[triangulated] = self._map.landmarks.is_triangulated(track_ids[triangulated])
        return triangulated

    def _match_near(
        self,
        ids: NDArray[np.int64],
        pixels: FloatArray,
        keyframe: Keyframe,
        candidates: NDArray[np.int64],
        radius: float,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (landmark ids, feature indices) of the most similar features within `radius`, one to one."""
        rows, columns = similar_nearby(
            pixels,
            self._map.landmarks.descriptor[ids],
            keyframe.features,
            radius_px=radius,
            min_similarity=self._config.min_similarity,
            among=candidates,
        )
        used: tuple[set[int], set[int]] = set(), set()
        pairs: list[tuple[int, int]] = []
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            if row not in used[0] and column not in used[1]:
                used[0].add(row)
                used[1].add(column)
                pairs.append((int(ids[row]), column))
        result = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
        return result[:, 0], result[:, 1]

    def _fuse(self, k: int, ids: NDArray[np.int64], others: NDArray[np.int64]) -> None:
        """Fuse pairs of landmarks with the same feature in keyframe k, if their depths agree as well."""
        pose = self._map.graph.world_from_keyframe[k].rigid
        depth = depths_in(self._map.landmarks.points_world(ids, self._map.graph), pose)
        other_depth = depths_in(self._map.landmarks.points_world(others, self._map.graph), pose)
        same = (other_depth > 0) & (np.abs(depth - other_depth) < MAX_DEPTH_DIFFERENCE * depth)
        # The lower id is kept: that track began earlier.
        self._map.fuse_landmarks(np.minimum(ids, others)[same], np.maximum(ids, others)[same])

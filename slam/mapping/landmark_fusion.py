"""Known landmarks found again in a keyframe by projection, and duplicates fused."""

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

SAME_DEPTH = 0.2  # share by which the depths of two landmarks may differ that are to become one


class LandmarkFusion:
    """Searches for landmarks by projection and makes duplicates one, as ORB-SLAM's local mapping does."""

    def __init__(self, config: LandmarksConfig, slam_map: SlamMap) -> None:
        self._config = config
        self._map = slam_map

    def search_by_projection(self, k: int, *, covisible: int | None = None) -> int:
        """Look for landmarks of the most related keyframes in keyframe k; how many were found.

        The map is projected into k, and each landmark takes the most similar feature near where it should be: this
        is what keeps a short loop one map. A feature that belongs to no track becomes an observation; one that
        already names another landmark shows that the two are one point, and they are made one.
        """
        config = self._config
        keyframe = self._map.graph.keyframes[k]
        named = self._map.landmarks.feature_tracks[k]
        ids, pixels = self._predicted_pixels(k, config.search_keyframes if covisible is None else covisible)
        candidates = np.flatnonzero((named < 0) | self._is_landmark(named))
        if len(ids) == 0 or len(candidates) == 0:
            return 0
        found_ids, features = self._match_near(ids, pixels, keyframe, candidates, config.search_radius_px)
        free = named[features] < 0
        found = Tracks(found_ids[free], keyframe.features.pixels[features[free]])
        named[features[free]] = found.ids
        self._map.landmarks.observed[k] = self._map.landmarks.observed[k].joined(found)
        self._fuse(k, found_ids[~free], named[features[~free]])
        return len(found_ids)

    def _fuse(self, k: int, ids: NDArray[np.int64], others: NDArray[np.int64]) -> None:
        """Make one of each two landmarks that keyframe k cannot tell apart, when their depths agree as well."""
        pose = self._map.graph.world_from_keyframe[k].rigid
        depth = depths_in(self._map.landmarks.points_world(ids, self._map.graph), pose)
        other_depth = depths_in(self._map.landmarks.points_world(others, self._map.graph), pose)
        same = (other_depth > 0) & (np.abs(depth - other_depth) < SAME_DEPTH * depth)
        # The older name stays: it is the one that reaches further back.
        self._map.landmarks.merge(np.minimum(ids, others)[same], np.maximum(ids, others)[same])

    def _is_landmark(self, named: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these track names (N,), -1 for none, have a place."""
        placed = named >= 0
        placed[placed] = self._map.landmarks.is_triangulated(named[placed])
        return placed

    def _predicted_pixels(self, k: int, covisible: int) -> tuple[NDArray[np.int64], FloatArray]:
        """Landmarks that keyframe k should see and does not, in order of id, and the pixels (N, 2) where."""
        ids, pose = self._unseen_landmarks(k, covisible), self._map.graph.world_from_keyframe[k].rigid
        rows, pixels = expected_in(
            self._map.landmarks.points_world(ids, self._map.graph), pose, self._map.graph.keyframes[k].camera
        )
        return ids[rows], pixels

    def _unseen_landmarks(self, k: int, covisible: int) -> NDArray[np.int64]:
        """Landmarks of the keyframes most related to k that k does not see already, in order of id."""
        tracks = self._map.landmarks.observed[k]
        seen = tracks.ids[self._map.landmarks.is_triangulated(tracks.ids)]
        pool = [self._map.landmarks.observed[i].ids for i in self._map.covisible(k, covisible)]
        ids = np.unique(np.concatenate([*pool, np.zeros(0, np.int64)]))
        ids = ids[self._map.landmarks.is_triangulated(ids)]
        return np.setdiff1d(ids, seen, assume_unique=True)

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

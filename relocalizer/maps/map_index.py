"""Lookup structures over a reference map: landmarks of a keyframe, covisible keyframes, scene depth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, Similarity
from relocalizer.landmark_source import TrackedFeatures
from relocalizer.maps.reference_map import Ids, ReferenceMap, restored

CACHED_KEYFRAMES = 256  # number of keyframes whose features are cached, about 0.5 MB each


class MapIndex:
    """Index over the rows of keyframes and landmarks of a map, a `LandmarkSource`. It does not modify the map."""

    def __init__(self, reference_map: ReferenceMap) -> None:
        self.map = reference_map
        self._row_of_track = _rows(reference_map)
        self.tracked_features = lru_cache(maxsize=CACHED_KEYFRAMES)(self._tracked_features)

    def descriptors(self, landmarks: Ids) -> NDArray[np.float32]:
        """Unit descriptors (N, 128) of landmark rows (N,)."""
        return restored(self.map.landmarks.descriptors[landmarks])

    def camera_of(self, row: int) -> Camera:
        """The camera of keyframe `row`."""
        return self.map.camera_of(row)

    def pose_of(self, row: int) -> Similarity:
        """world_from_keyframe of keyframe `row`."""
        return self.map.keyframes.world_from_keyframe(row)

    def is_triangulated(self, landmarks: Ids) -> NDArray[np.bool_]:
        """True for every landmark row (N,): a stored map has no other landmarks."""
        return np.ones(len(landmarks), bool)

    def points_world(self, landmarks: Ids) -> FloatArray:
        """Points (N, 3) of landmark rows, map units."""
        return np.asarray(self.map.points_world[landmarks])

    def depth_sigma_world(self, landmarks: Ids) -> FloatArray:
        """One standard deviation (N, 3) of landmark rows along their anchors' rays, in the world, map units."""
        return np.asarray(self.map.depth_sigmas_world[landmarks])

    def _tracked_features(self, row: int) -> TrackedFeatures:
        """The features of keyframe `row`, with the landmark rows of those whose tracks are triangulated."""
        return TrackedFeatures(self.map.features.of(row), self._landmark_rows(self.map.features.landmarks_of(row)))

    def _landmark_rows(self, tracks: Ids) -> Ids:
        """Row of each track's landmark, -1 for a track that is not triangulated."""
        known = (tracks >= 0) & (tracks < len(self._row_of_track))
        return np.where(known, self._row_of_track[np.where(known, tracks, 0)], -1)

    @cached_property
    def _visibility(self) -> csr_array:
        """Visibility matrix (keyframes, landmarks), 1 where a keyframe observes a landmark."""
        table = self.map.observations
        keyframe = np.repeat(np.arange(len(self.map.keyframes)), np.diff(table.offsets))
        landmark = self._landmark_rows(table.landmark)
        known = landmark >= 0
        shape = (len(self.map.keyframes), len(self.map.landmarks))
        return csr_array((np.ones(int(known.sum()), np.int32), (keyframe[known], landmark[known])), shape=shape)

    def observed_landmarks(self, rows: Sequence[int]) -> Ids:
        """Rows, ascending, of the landmarks observed by any of these keyframes."""
        table = self._visibility
        parts = [table.indices[table.indptr[row] : table.indptr[row + 1]] for row in rows]
        return np.unique(np.concatenate([*parts, np.zeros(0, np.int64)])).astype(np.int64)

    def observers(self, landmarks: Ids, count: int) -> list[int]:
        """Rows of at most `count` keyframes that observe the most of these landmark rows, in descending order."""
        wanted = np.zeros(len(self.map.landmarks), np.int32)
        wanted[landmarks] = 1
        shared = np.asarray(self._visibility @ wanted)
        order = np.argsort(-shared, kind="stable")[:count]
        return [int(row) for row in order if shared[row] > 0]

    @cached_property
    def depths(self) -> FloatArray:
        """Median landmark distance (N,) of each keyframe, in the units of its segment.

        The median over the segment replaces that of a keyframe without landmarks.
        """
        table, centers = self._visibility, self.map.keyframes.translations
        points = self.map.points_world
        own = np.full(len(centers), np.nan)
        for row in range(len(centers)):
            observed = table.indices[table.indptr[row] : table.indptr[row + 1]]
            if len(observed):
                own[row] = np.median(np.linalg.norm(points[observed] - centers[row], axis=1))
        for segment in np.unique(self.map.keyframes.segment):  # each segment has its own units
            rows = self.map.keyframes.segment == segment
            own[rows] = np.where(np.isfinite(own[rows]), own[rows], _overall(own[rows], centers[rows]))
        return own

    def depth_of(self, segment: int) -> float:
        """Median over a segment's keyframes of their landmark distance, in the segment's units."""
        return float(np.median(self.depths[self.map.keyframes.segment == segment]))


def _rows(reference_map: ReferenceMap) -> Ids:
    """Row of the landmark of each track id, -1 for tracks that are not triangulated."""
    ids = reference_map.landmarks.ids
    rows = np.full(int(ids.max(initial=-1)) + 2, -1, np.int64)
    rows[ids] = np.arange(len(ids))
    return rows


def _overall(own: FloatArray, centers: FloatArray) -> float:
    """Depth of a segment: the median of its keyframes, or without landmarks the extent of the keyframe positions."""
    if np.isfinite(own).any():
        return float(np.nanmedian(own))
    spread = float(np.linalg.norm(centers - centers.mean(axis=0), axis=1).max(initial=0.0))
    return spread if spread > 0 else 1.0

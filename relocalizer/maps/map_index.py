"""A reference map made ready for asking: which landmarks a keyframe shows, who sees the same, how deep the scene is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from relocalizer.geometry import FloatArray
from relocalizer.maps.reference_map import Ids, ReferenceMap, restored

CACHED_KEYFRAMES = 256  # about 0.5 MB each


@dataclass(frozen=True, slots=True, eq=False)
class PlacedFeatures:
    """Features of a keyframe that lie on landmarks: their unit `descriptors` (N, 128) and `landmark` rows (N,)."""

    descriptors: NDArray[np.float32]
    landmark: Ids


class MapIndex:
    """Rows of keyframes and of landmarks, and how they hang together. Never changes the map."""

    def __init__(self, reference_map: ReferenceMap) -> None:
        self.map = reference_map
        self._row_of_track = _rows(reference_map)
        self.placed = lru_cache(maxsize=CACHED_KEYFRAMES)(self._placed)

    def descriptors(self, landmarks: Ids) -> NDArray[np.float32]:
        """Unit descriptors (N, 128) of landmark rows (N,)."""
        return restored(self.map.landmarks.descriptors[landmarks])

    def _placed(self, row: int) -> PlacedFeatures:
        """The features of keyframe `row` whose tracks have a place."""
        table = self.map.features
        part = slice(int(table.offsets[row]), int(table.offsets[row + 1]))
        landmark = self._landmark_rows(table.landmark[part])
        is_triangulated = landmark >= 0
        return PlacedFeatures(restored(table.descriptors[part][is_triangulated]), landmark[is_triangulated])

    def _landmark_rows(self, tracks: Ids) -> Ids:
        """Row of each track's landmark, -1 where it has none."""
        known = (tracks >= 0) & (tracks < len(self._row_of_track))
        return np.where(known, self._row_of_track[np.where(known, tracks, 0)], -1)

    @cached_property
    def _sees(self) -> csr_array:
        """(keyframes, landmarks), 1 where a keyframe saw a landmark."""
        table = self.map.observations
        keyframe = np.repeat(np.arange(len(self.map.keyframes)), np.diff(table.offsets))
        landmark = self._landmark_rows(table.landmark)
        seen = landmark >= 0
        shape = (len(self.map.keyframes), len(self.map.landmarks))
        return csr_array((np.ones(int(seen.sum()), np.int32), (keyframe[seen], landmark[seen])), shape=shape)

    def landmarks_of(self, rows: Sequence[int]) -> Ids:
        """Rows, rising, of the landmarks that any of these keyframes saw."""
        table = self._sees
        parts = [table.indices[table.indptr[row] : table.indptr[row + 1]] for row in rows]
        return np.unique(np.concatenate([*parts, np.zeros(0, np.int64)])).astype(np.int64)

    def covisible_keyframes(self, landmarks: Ids, count: int, exclude: Sequence[int] = ()) -> list[int]:
        """Keyframes that see the most of these landmark rows, at most `count`, the strongest first."""
        wanted = np.zeros(len(self.map.landmarks), np.int32)
        wanted[landmarks] = 1
        shared = np.asarray(self._sees @ wanted)
        shared[list(exclude)] = 0
        order = np.argsort(-shared, kind="stable")[:count]
        return [int(row) for row in order if shared[row] > 0]

    @cached_property
    def depths(self) -> FloatArray:
        """(N,) median distance of each keyframe's landmarks, or of all of its segment's, in the segment's units."""
        table, centers = self._sees, self.map.keyframes.translations
        points = self.map.points_world
        own = np.full(len(centers), np.nan)
        for row in range(len(centers)):
            seen = table.indices[table.indptr[row] : table.indptr[row + 1]]
            if len(seen):
                own[row] = np.median(np.linalg.norm(points[seen] - centers[row], axis=1))
        for segment in np.unique(self.map.keyframes.segment):  # segments share no units
            rows = self.map.keyframes.segment == segment
            own[rows] = np.where(np.isfinite(own[rows]), own[rows], _overall(own[rows], centers[rows]))
        return own

    def depth_of(self, segment: int) -> float:
        """Median distance of the scene from the keyframes of a segment, in its units."""
        return float(np.median(self.depths[self.map.keyframes.segment == segment]))

    @cached_property
    def depth_sigma_world(self) -> FloatArray:
        """(M, 3) one standard deviation of each landmark along the ray it was found by, in the world, map units."""
        table, keyframes = self.map.landmarks, self.map.keyframes
        anchor = np.array([self.map.row_of[int(a)] for a in table.anchor], dtype=np.int64)
        # Inverse depth w has dz = z^2 dw, and the point moves by dz / z of itself.
        local = table.points_in_anchor * (table.points_in_anchor[:, 2] * table.inverse_depth_sigma)[:, None]
        turned = np.einsum("nij,nj->ni", keyframes.rotations[anchor].reshape(-1, 3, 3), local)
        return np.asarray(turned * keyframes.scales[anchor][:, None])


def _rows(reference_map: ReferenceMap) -> Ids:
    """Row of the landmark of each track id, -1 for tracks without a place."""
    ids = reference_map.landmarks.ids
    rows = np.full(int(ids.max(initial=-1)) + 2, -1, np.int64)
    rows[ids] = np.arange(len(ids))
    return rows


def _overall(own: FloatArray, centers: FloatArray) -> float:
    """The depth of a scene: of its landmarks, or without any how far the keyframes lie apart."""
    if np.isfinite(own).any():
        return float(np.nanmedian(own))
    spread = float(np.linalg.norm(centers - centers.mean(axis=0), axis=1).max(initial=0.0))
    return spread if spread > 0 else 1.0

"""Landmarks: triangulated tracks, stored relative to the keyframe that first saw them, so they move with the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import MAX_COORDINATE, FloatArray
from relocalizer.images import Image
from slam.map.keyframe_graph import KeyframeGraph
from slam.map.observations import Observations
from slam.map.tracks import Tracks

NO_ANCHOR = -1


class LandmarkMap:
    """Positions of the landmarks, and the observations of all tracks in the keyframes.

    Only `SlamMap` changes the landmarks of a map; all other classes read them.

    A landmark is a triangulated track. Its point is stored in its anchor keyframe, in that keyframe's own units, with
    the standard deviation of its inverse depth (inverse depth parametrization: Civera, Davison and Montiel, 2008).

    Attributes:
        anchor: (N,) by track id, id of the anchor keyframe; `NO_ANCHOR` for a track that is not triangulated. The
            arrays indexed by track id grow, so N may exceed the number of tracks.
        point_in_anchor: (N, 3) by track id, in the units of the anchor.
        inverse_depth_sigma: (N,) by track id, in 1 / units of the anchor.
        descriptor, color: (N, 128) and RGB (N, 3) by track id.
        observed: by keyframe id, the tracks that the keyframe observes.
        feature_tracks: by keyframe id, the track id (M,) of each of its local features, -1 for features without one.
    """

    def __init__(self) -> None:
        self._count = 0
        self.anchor = np.full(1024, NO_ANCHOR, np.int64)
        self.point_in_anchor = np.zeros((1024, 3))
        self.inverse_depth_sigma = np.full(1024, np.inf)
        self.descriptor = np.zeros((1024, 128), np.float32)
        self.color = np.zeros((1024, 3), np.uint8)
        self._observed = Observations()
        self.feature_tracks: dict[int, NDArray[np.int64]] = {}
        self._replaced_by = np.arange(1024, dtype=np.int64)  # by track id, its current id after fusion
        self._fused: dict[int, list[int]] = {}  # by a current id, all ids that were fused into it, itself included
        self._marked = np.zeros(1024, bool)  # by track id, scratch space for sets of tracks; all False between calls

    @property
    def observed(self) -> Observations:
        """By keyframe id, the tracks that the keyframe observes."""
        return self._observed

    @observed.setter
    def observed(self, observed: Mapping[int, Tracks]) -> None:
        self._observed = Observations(observed)

    def new_ids(self, count: int) -> NDArray[np.int64]:
        """New track ids, in order."""
        ids = np.arange(self._count, self._count + count, dtype=np.int64)
        self._count += count
        while self._count > len(self.anchor):
            self._grow()
        return ids

    def start(self, pixels: NDArray[np.float32], descriptors: NDArray[np.float32], image: Image) -> Tracks:
        """New tracks at pixels (N, 2) of an image, with their descriptors (N, 128) and their colors in the image."""
        height, width = image.shape[:2]
        x, y = np.rint(pixels).astype(int).T
        return Tracks(self.add_tracks(descriptors, image[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]), pixels)

    def add_tracks(self, descriptors: NDArray[np.float32], colors: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Ids of new tracks with these descriptors (N, 128) and RGB colors (N, 3)."""
        ids = self.new_ids(len(descriptors))
        self.descriptor[ids] = descriptors
        self.color[ids] = colors
        return ids

    def _grow(self) -> None:
        extra = len(self.anchor)
        self._replaced_by = np.concatenate([self._replaced_by, np.arange(extra, 2 * extra, dtype=np.int64)])
        self._marked = np.zeros(2 * extra, bool)
        self.anchor = np.concatenate([self.anchor, np.full(extra, NO_ANCHOR, np.int64)])
        self.point_in_anchor = np.concatenate([self.point_in_anchor, np.zeros((extra, 3))])
        self.inverse_depth_sigma = np.concatenate([self.inverse_depth_sigma, np.full(extra, np.inf)])
        # Most of the memory of a track; what is never written takes none.
        before, self.descriptor = self.descriptor, np.zeros((2 * extra, 128), np.float32)
        self.descriptor[:extra] = before
        self.color = np.concatenate([self.color, np.zeros((extra, 3), np.uint8)])

    def is_triangulated(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these tracks (N,) are landmarks."""
        return np.asarray(self.anchor[ids] != NO_ANCHOR)

    def landmark_ids(self) -> NDArray[np.int64]:
        """Ids of all landmarks, in order."""
        return np.flatnonzero(self.anchor[: self._count] != NO_ANCHOR)

    def set_points(
        self,
        ids: NDArray[np.int64],
        points_in_anchor: FloatArray,
        anchor: int | NDArray[np.int64],
        inverse_depth_sigma: FloatArray,
    ) -> None:
        """Make tracks landmarks, except those beyond `MAX_COORDINATE`, which cannot be saved.

        Args:
            points_in_anchor: (N, 3) in keyframe `anchor`, in its units.
            anchor: id of the anchor keyframe of all, or (N,) of each.
            inverse_depth_sigma: (N,) in 1 / units of the anchor.
        """
        self.anchor[ids] = anchor
        self.point_in_anchor[ids] = points_in_anchor
        self.inverse_depth_sigma[ids] = inverse_depth_sigma
        self._remove_distant_points(ids)

    def remove_points(self, ids: NDArray[np.int64]) -> None:
        """Remove the positions of landmarks; their tracks and observations stay."""
        self.anchor[ids] = NO_ANCHOR

    def _remove_distant_points(self, ids: NDArray[np.int64]) -> None:
        near = (np.abs(self.point_in_anchor[ids]) < MAX_COORDINATE).all(axis=1)
        self.remove_points(ids[~near])

    def add_keyframe(self, k: int, tracks: Tracks, feature_tracks: NDArray[np.int64]) -> None:
        """Set the tracks that keyframe k observes, and the track id (M,) of each of its features, -1 for none."""
        self._observed[k] = tracks
        self.feature_tracks[k] = feature_tracks

    def add_observations(self, k: int, features: NDArray[np.int64], tracks: Tracks) -> None:
        """Add tracks that keyframe k does not observe yet, each as the track of one of its features (N,)."""
        self.feature_tracks[k][features] = tracks.ids
        self._observed[k] = self._observed[k].joined(tracks)

    def remove_observations(self, k: int, ids: NDArray[np.int64]) -> None:
        """Remove the observations of these tracks from keyframe k."""
        tracks, feature_tracks = self._observed[k], self.feature_tracks[k]
        self._marked[ids] = True
        self._observed[k] = tracks.where(~self._marked[tracks.ids])
        feature_tracks[self._marked[feature_tracks]] = -1  # a feature without a track stays -1, whatever is marked
        self._marked[ids] = False

    def remove_keyframe(self, k: int) -> None:
        """Remove the observations of a keyframe, and the points that are stored relative to it."""
        self._observed = self._observed.without(k)
        self.feature_tracks.pop(k, None)
        self.anchor[self.anchor == k] = NO_ANCHOR

    def points_world(self, ids: NDArray[np.int64], graph: KeyframeGraph) -> FloatArray:
        """Positions (N, 3) of landmarks, map units."""
        if len(ids) == 0:
            return np.zeros((0, 3))
        anchors = self.anchor[ids]
        row = np.zeros(int(anchors.max()) + 1, np.intp)  # by keyframe id, the row of its pose among those needed
        row[anchors] = 1
        needed = np.flatnonzero(row)
        row[needed] = np.arange(len(needed))
        affine = np.array([graph.world_from_keyframe[anchor].affine for anchor in needed.tolist()])[row[anchors]]
        return np.asarray(np.einsum("nij,nj->ni", affine[:, :, :3], self.point_in_anchor[ids]) + affine[:, :, 3])

    def _by_anchor(self, ids: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Anchors of landmarks, in order, each with the rows of `ids` anchored there, in order."""
        anchors = self.anchor[ids]
        order = np.argsort(anchors, kind="stable")
        starts = np.flatnonzero(np.diff(anchors[order], prepend=-2))
        yield from zip(anchors[order[starts]].tolist(), np.split(order, starts[1:]), strict=False)

    def depth_sigma_world(self, ids: NDArray[np.int64], graph: KeyframeGraph) -> FloatArray:
        """One standard deviation of each landmark along its anchor's ray, as a vector (N, 3), map units."""
        points = self.point_in_anchor[ids]
        # With inverse depth w, dz = z^2 dw, and the point moves along its ray by the fraction dz / z of its length.
        local = points * (points[:, 2] * self.inverse_depth_sigma[ids])[:, None]
        sigma = np.empty((len(ids), 3))
        for anchor, rows in self._by_anchor(ids):
            pose = graph.world_from_keyframe[anchor]
            sigma[rows] = pose.scale * local[rows] @ pose.rotation.T
        return sigma

    def move_to(self, ids: NDArray[np.int64], points_world: FloatArray, graph: KeyframeGraph) -> None:
        """Set positions (N, 3) in map units, under the graph's current poses; anchors stay.

        Points beyond `MAX_COORDINATE`, which cannot be saved, are removed.
        """
        for anchor, rows in self._by_anchor(ids):
            self.point_in_anchor[ids[rows]] = graph.world_from_keyframe[anchor].inverse().apply(points_world[rows])
        self._remove_distant_points(ids)

    def shared_with(self, ids: NDArray[np.int64], keyframe_ids: Sequence[int]) -> dict[int, int]:
        """Number of these tracks (N,) that each keyframe observes, by keyframe id."""
        self._marked[ids] = True
        counts = {k: int(self._marked[self._observed[k].ids].sum()) for k in keyframe_ids}
        self._marked[ids] = False
        return counts

    def merge(self, kept: NDArray[np.int64], gone: NDArray[np.int64]) -> None:
        """Fuse duplicate landmarks: every observation of gone[n] becomes an observation of kept[n].

        A keyframe that observes both keeps only its observation of kept[n].
        """
        removed = []
        for kept_id, gone_id in zip(kept.tolist(), gone.tolist(), strict=True):
            current, replaced = int(self._replaced_by[kept_id]), int(self._replaced_by[gone_id])
            if current != replaced:  # otherwise an earlier pair has fused them already
                fused = self._fused.pop(replaced, [replaced])
                self._fused.setdefault(current, [current]).extend(fused)
                self._replaced_by[fused] = current
                self.anchor[replaced] = NO_ANCHOR
                removed.append(replaced)
        for k in self._observed.observers_of(np.array(removed, dtype=np.int64)):
            self._observed[k] = self.with_current_ids(self._observed[k])
            if k in self.feature_tracks:
                track_ids = self.feature_tracks[k]
                self.feature_tracks[k] = np.where(track_ids >= 0, self._replaced_by[track_ids], track_ids)

    def current_ids(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Current ids (N,) of tracks (N,), which change when landmarks are fused."""
        return self._replaced_by[ids]

    def with_current_ids(self, tracks: Tracks) -> Tracks:
        """The tracks under their current ids; of two that were fused, the one whose id was kept."""
        ids = self._replaced_by[tracks.ids]
        unchanged = ids == tracks.ids
        if unchanged.all():
            return tracks
        order = np.argsort(~unchanged, kind="stable")
        _, first = np.unique(ids[order], return_index=True)
        keep = np.sort(order[first])
        return Tracks(ids[keep], tracks.pixels[keep])

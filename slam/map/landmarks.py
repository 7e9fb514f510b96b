"""Landmarks: tracks with a place. Each hangs off the keyframe that first saw it, so it moves with the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray
from relocalizer.images import Image
from relocalizer.maps.reference_map import MAX_COORDINATE
from slam.map.keyframe_graph import KeyframeGraph
from slam.map.observations import Observations
from slam.map.tracks import Tracks

NO_ANCHOR = -1


class LandmarkMap:
    """Where tracks lie in space, and which keyframes saw them where.

    Track ids index growing arrays. `observed[k]` are the tracks keyframe k saw, and `feature_tracks[k]` (N,) names
    the track of each of its local features, -1 for those that belong to none. A landmark's point is stored in its
    anchor keyframe, in that keyframe's own units, with the standard deviation of its inverse depth; a track without
    a place has no anchor.
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
        self._replaced_by = np.arange(1024, dtype=np.int64)
        self._fused: dict[int, list[int]] = {}  # by a name that others have given way to, it and these
        self._marked = np.zeros(1024, bool)  # to count with; nothing is marked between calls

    @property
    def observed(self) -> Observations:
        return self._observed

    @observed.setter
    def observed(self, sightings: Mapping[int, Tracks]) -> None:
        self._observed = Observations(sightings)

    def new_ids(self, count: int) -> NDArray[np.int64]:
        """Fresh track ids, in order."""
        ids = np.arange(self._count, self._count + count, dtype=np.int64)
        self._count += count
        while self._count > len(self.anchor):
            self._grow()
        return ids

    def start(self, pixels: NDArray[np.float32], descriptors: NDArray[np.float32], image: Image) -> Tracks:
        """New tracks at pixels (N, 2) of an image, remembering how each looks: descriptor (N, 128) and color."""
        ids = self.new_ids(len(pixels))
        height, width = image.shape[:2]
        x, y = np.rint(pixels).astype(int).T
        self.descriptor[ids] = descriptors
        self.color[ids] = image[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
        return Tracks(ids, pixels)

    def _grow(self) -> None:
        extra = len(self.anchor)
        self._replaced_by = np.concatenate([self._replaced_by, np.arange(extra, 2 * extra, dtype=np.int64)])
        self._marked = np.zeros(2 * extra, bool)
        self.anchor = np.concatenate([self.anchor, np.full(extra, NO_ANCHOR, np.int64)])
        self.point_in_anchor = np.concatenate([self.point_in_anchor, np.zeros((extra, 3))])
        self.inverse_depth_sigma = np.concatenate([self.inverse_depth_sigma, np.full(extra, np.inf)])
        self.descriptor = np.concatenate([self.descriptor, np.zeros((extra, 128), np.float32)])
        self.color = np.concatenate([self.color, np.zeros((extra, 3), np.uint8)])

    def is_triangulated(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray(self.anchor[ids] != NO_ANCHOR)

    def landmark_ids(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.anchor[: self._count] != NO_ANCHOR)

    def set_points(
        self, ids: NDArray[np.int64], points_in_anchor: FloatArray, anchor: int, inverse_depth_sigma: FloatArray
    ) -> None:
        """Give tracks a place: points (N, 3) in keyframe `anchor`, in its units; none to those too far to be saved."""
        self.anchor[ids] = anchor
        self.point_in_anchor[ids] = points_in_anchor
        self.inverse_depth_sigma[ids] = inverse_depth_sigma
        self._forget_far(ids)

    def remove_points(self, ids: NDArray[np.int64]) -> None:
        self.anchor[ids] = NO_ANCHOR

    def remove_keyframe(self, k: int) -> None:
        """Forget what a keyframe observed, and the places of points that are stored relative to it."""
        self._observed = Observations({other: tracks for other, tracks in self._observed.items() if other != k})
        self.feature_tracks.pop(k, None)
        self.anchor[self.anchor == k] = NO_ANCHOR

    def points_world(self, ids: NDArray[np.int64], graph: KeyframeGraph) -> FloatArray:
        """Places (N, 3) in map units of landmarks that have one."""
        points = np.empty((len(ids), 3))
        for anchor, rows in self._by_anchor(ids):
            points[rows] = graph.world_from_keyframe[anchor].apply(self.point_in_anchor[ids[rows]])
        return points

    def _by_anchor(self, ids: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Anchors of landmarks, in order, and the rows of `ids` that each of them holds, in order."""
        anchors = self.anchor[ids]
        order = np.argsort(anchors, kind="stable")
        starts = np.flatnonzero(np.diff(anchors[order], prepend=-2))
        yield from zip(anchors[order[starts]].tolist(), np.split(order, starts[1:]), strict=False)

    def depth_sigma_world(self, ids: NDArray[np.int64], graph: KeyframeGraph) -> FloatArray:
        """One standard deviation (N, 3) of each landmark along its anchor's ray, map units."""
        points = self.point_in_anchor[ids]
        # Inverse depth w has dz = z^2 dw, and the point moves by dz / z of itself.
        local = points * (points[:, 2] * self.inverse_depth_sigma[ids])[:, None]
        deviation = np.empty((len(ids), 3))
        for anchor, rows in self._by_anchor(ids):
            pose = graph.world_from_keyframe[anchor]
            deviation[rows] = pose.scale * local[rows] @ pose.rotation.T
        return deviation

    def move_to(self, ids: NDArray[np.int64], points_world: FloatArray, graph: KeyframeGraph) -> None:
        """Set places from map coordinates (N, 3), under the graph's current poses; anchors stay.

        Those that have gone too far to be saved lose their place.
        """
        for anchor, rows in self._by_anchor(ids):
            self.point_in_anchor[ids[rows]] = graph.world_from_keyframe[anchor].inverse().apply(points_world[rows])
        self._forget_far(ids)

    def _forget_far(self, ids: NDArray[np.int64]) -> None:
        near = (np.abs(self.point_in_anchor[ids]) < MAX_COORDINATE).all(axis=1)
        self.remove_points(ids[~near])

    def shared_with(self, ids: NDArray[np.int64], keyframe_ids: Sequence[int]) -> dict[int, int]:
        """How many of the landmarks each of these keyframes saw."""
        self._marked[ids] = True
        counts = {k: int(self._marked[self._observed[k].ids].sum()) for k in keyframe_ids}
        self._marked[ids] = False
        return counts

    def merge(self, kept: NDArray[np.int64], gone: NDArray[np.int64]) -> None:
        """Two names of one point become one: every observation of gone[k] is now one of kept[k].

        A keyframe that saw both keeps the observation under the kept name only.
        """
        names_lost = []
        for one, other in zip(kept.tolist(), gone.tolist(), strict=True):
            name, lost = int(self._replaced_by[one]), int(self._replaced_by[other])
            if name != lost:  # else an earlier pair has united them
                joining = self._fused.pop(lost, [lost])
                self._fused.setdefault(name, [name]).extend(joining)
                self._replaced_by[joining] = name
                self.anchor[lost] = NO_ANCHOR
                names_lost.append(lost)
        for k in self._observed.observers_of(np.array(names_lost, dtype=np.int64)):
            self._observed[k] = self.with_current_ids(self._observed[k])
            if k in self.feature_tracks:
                named = self.feature_tracks[k]
                self.feature_tracks[k] = np.where(named >= 0, self._replaced_by[named], named)

    def with_current_ids(self, tracks: Tracks) -> Tracks:
        """The tracks under the names that merging has left; of two that became one, the one that kept its name."""
        ids = self._replaced_by[tracks.ids]
        own = ids == tracks.ids
        if own.all():
            return tracks
        order = np.argsort(~own, kind="stable")
        _, first = np.unique(ids[order], return_index=True)
        keep = np.sort(order[first])
        return Tracks(ids[keep], tracks.pixels[keep])

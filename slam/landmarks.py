"""Landmarks: tracks with a place. Each hangs off the keyframe that first saw it, so it moves with the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray
from relocalizer.images import Image
from slam.graph import KeyframeGraph
from slam.tracks import Tracks

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
        self.colour = np.zeros((1024, 3), np.uint8)
        self.observed: dict[int, Tracks] = {}
        self.feature_tracks: dict[int, NDArray[np.int64]] = {}
        self._alias = np.arange(1024, dtype=np.int64)

    def new_ids(self, count: int) -> NDArray[np.int64]:
        """Fresh track ids, in order."""
        ids = np.arange(self._count, self._count + count, dtype=np.int64)
        self._count += count
        while self._count > len(self.anchor):
            self._grow()
        return ids

    def start(self, pixels: NDArray[np.float32], descriptors: NDArray[np.float32], image: Image) -> Tracks:
        """New tracks at pixels (N, 2) of a picture, remembering how each looks: descriptor (N, 128) and colour."""
        ids = self.new_ids(len(pixels))
        height, width = image.shape[:2]
        x, y = np.rint(pixels).astype(int).T
        self.descriptor[ids] = descriptors
        self.colour[ids] = image[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
        return Tracks(ids, pixels)

    def _grow(self) -> None:
        extra = len(self.anchor)
        self._alias = np.concatenate([self._alias, np.arange(extra, 2 * extra, dtype=np.int64)])
        self.anchor = np.concatenate([self.anchor, np.full(extra, NO_ANCHOR, np.int64)])
        self.point_in_anchor = np.concatenate([self.point_in_anchor, np.zeros((extra, 3))])
        self.inverse_depth_sigma = np.concatenate([self.inverse_depth_sigma, np.full(extra, np.inf)])
        self.descriptor = np.concatenate([self.descriptor, np.zeros((extra, 128), np.float32)])
        self.colour = np.concatenate([self.colour, np.zeros((extra, 3), np.uint8)])

    def has_place(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray(self.anchor[ids] != NO_ANCHOR)

    def placed_ids(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.anchor[: self._count] != NO_ANCHOR)

    def place(
        self, ids: NDArray[np.int64], points_in_anchor: FloatArray, anchor: int, inverse_depth_sigma: FloatArray
    ) -> None:
        """Give tracks a place: points (N, 3) in keyframe `anchor`, in its units."""
        self.anchor[ids] = anchor
        self.point_in_anchor[ids] = points_in_anchor
        self.inverse_depth_sigma[ids] = inverse_depth_sigma

    def forget_place(self, ids: NDArray[np.int64]) -> None:
        self.anchor[ids] = NO_ANCHOR

    def points_world(self, ids: NDArray[np.int64], graph: KeyframeGraph) -> FloatArray:
        """Places (N, 3) in map units of landmarks that have one."""
        points = np.empty((len(ids), 3))
        anchors = self.anchor[ids]
        for anchor in np.unique(anchors):
            of_anchor = anchors == anchor
            pose = graph.world_from_keyframe[int(anchor)]
            points[of_anchor] = pose.apply(self.point_in_anchor[ids[of_anchor]])
        return points

    def depth_deviation_world(self, ids: NDArray[np.int64], graph: KeyframeGraph) -> FloatArray:
        """One standard deviation (N, 3) of each landmark along its anchor's ray, map units."""
        points = self.point_in_anchor[ids]
        # Inverse depth w has dz = z^2 dw, and the point moves by dz / z of itself.
        local = points * (points[:, 2] * self.inverse_depth_sigma[ids])[:, None]
        deviation = np.empty((len(ids), 3))
        anchors = self.anchor[ids]
        for anchor in np.unique(anchors):
            pose = graph.world_from_keyframe[int(anchor)]
            deviation[anchors == anchor] = pose.scale * local[anchors == anchor] @ pose.rotation.T
        return deviation

    def move_to(self, ids: NDArray[np.int64], points_world: FloatArray, graph: KeyframeGraph) -> None:
        """Set places from map coordinates (N, 3), under the graph's current poses; anchors stay."""
        anchors = self.anchor[ids]
        for anchor in np.unique(anchors):
            of_anchor = anchors == anchor
            anchor_from_world = graph.world_from_keyframe[int(anchor)].inverse()
            self.point_in_anchor[ids[of_anchor]] = anchor_from_world.apply(points_world[of_anchor])

    def shared_with(self, ids: NDArray[np.int64], keyframe_ids: Sequence[int]) -> dict[int, int]:
        """How many of the landmarks each of these keyframes saw."""
        wanted = np.zeros(self._count, bool)
        wanted[ids] = True
        return {k: int(wanted[self.observed[k].ids].sum()) for k in keyframe_ids if k in self.observed}

    def merge(self, kept: NDArray[np.int64], gone: NDArray[np.int64]) -> None:
        """Two names of one point become one: every observation of gone[k] is now one of kept[k].

        A keyframe that saw both keeps the observation under the kept name only.
        """
        for one, other in zip(kept.tolist(), gone.tolist(), strict=True):
            name, lost = int(self._alias[one]), int(self._alias[other])
            if name != lost:  # else an earlier pair has united them
                self._alias[self._alias == lost] = name
                self.anchor[lost] = NO_ANCHOR
        for k, tracks in self.observed.items():
            self.observed[k] = self.renamed(tracks)
        for k, ids in self.feature_tracks.items():
            self.feature_tracks[k] = np.where(ids >= 0, self._alias[ids], ids)

    def renamed(self, tracks: Tracks) -> Tracks:
        """The tracks under the names that merging has left; of two that became one, the one that kept its name."""
        ids = self._alias[tracks.ids]
        own = ids == tracks.ids
        if own.all():
            return tracks
        order = np.argsort(~own, kind="stable")
        _, first = np.unique(ids[order], return_index=True)
        keep = np.sort(order[first])
        return Tracks(ids[keep], tracks.pixels[keep])

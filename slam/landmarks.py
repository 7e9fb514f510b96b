"""Landmarks: tracks with a place. Each hangs off the keyframe that first saw it, so it moves with the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray
from relocalizer.images import Image
from relocalizer.reference_map import MAX_COORDINATE
from slam.graph import KeyframeGraph
from slam.tracks import Tracks

NO_ANCHOR = -1


class Sightings(dict[int, Tracks]):
    """The tracks that each keyframe saw, by its id; and for every track the keyframes that saw it, by a chain of
    entries, so that what is near is found without looking at the whole map.

    An entry stays when a keyframe forgets a track, so `seen_by` may name too many; counting tells. Keyframes stay.
    """

    def __init__(self, sightings: Mapping[int, Tracks] | None = None) -> None:
        super().__init__()
        self._newest = np.full(1024, -1, np.int32)  # entry, by track
        self._before = np.full(1024, -1, np.int32)  # entry, by entry
        self._keyframe = np.zeros(1024, np.int32)  # by entry
        self._entries = 0
        for k, tracks in (sightings or {}).items():
            self[k] = tracks

    def __setitem__(self, k: int, tracks: Tracks) -> None:
        known = self.get(k)
        new = np.unique(tracks.ids) if known is None else np.setdiff1d(tracks.ids, known.ids)
        super().__setitem__(k, tracks)
        if len(new) == 0:
            return
        entries = np.arange(self._entries, self._entries + len(new), dtype=np.int32)
        self._entries += len(new)
        self._newest = _roomy(self._newest, int(new[-1]) + 1, -1)
        self._before = _roomy(self._before, self._entries, -1)
        self._keyframe = _roomy(self._keyframe, self._entries, 0)
        self._before[entries] = self._newest[new]
        self._keyframe[entries] = k
        self._newest[new] = entries

    def seen_by(self, ids: NDArray[np.int64]) -> list[int]:
        """Keyframes, in order, that see or once saw any of these tracks."""
        found = [np.zeros(0, np.int32)]
        entries = self._newest[ids[ids < len(self._newest)]]
        while len(entries := entries[entries >= 0]):
            found.append(self._keyframe[entries])
            entries = self._before[entries]
        keyframe_ids: list[int] = np.unique(np.concatenate(found)).tolist()
        return keyframe_ids


def _roomy(array: NDArray[np.int32], size: int, empty: int) -> NDArray[np.int32]:
    """The array, or when it is shorter than `size` one at least twice as long that begins with it."""
    if size <= len(array):
        return array
    return np.concatenate([array, np.full(max(size, 2 * len(array)) - len(array), empty, np.int32)])


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
        self._observed = Sightings()
        self.feature_tracks: dict[int, NDArray[np.int64]] = {}
        self._alias = np.arange(1024, dtype=np.int64)
        self._united: dict[int, list[int]] = {}  # by a name that others have given way to, it and these
        self._marked = np.zeros(1024, bool)  # to count with; nothing is marked between calls

    @property
    def observed(self) -> Sightings:
        return self._observed

    @observed.setter
    def observed(self, sightings: Mapping[int, Tracks]) -> None:
        self._observed = Sightings(sightings)

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
        self._marked = np.zeros(2 * extra, bool)
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
        """Give tracks a place: points (N, 3) in keyframe `anchor`, in its units; none to those too far to be saved."""
        self.anchor[ids] = anchor
        self.point_in_anchor[ids] = points_in_anchor
        self.inverse_depth_sigma[ids] = inverse_depth_sigma
        self._forget_far(ids)

    def forget_place(self, ids: NDArray[np.int64]) -> None:
        self.anchor[ids] = NO_ANCHOR

    def remove_keyframe(self, k: int) -> None:
        """Forget what a keyframe observed, and the places of points that are stored relative to it."""
        self._observed = Sightings({other: tracks for other, tracks in self._observed.items() if other != k})
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

    def depth_deviation_world(self, ids: NDArray[np.int64], graph: KeyframeGraph) -> FloatArray:
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
        self.forget_place(ids[~near])

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
            name, lost = int(self._alias[one]), int(self._alias[other])
            if name != lost:  # else an earlier pair has united them
                joining = self._united.pop(lost, [lost])
                self._united.setdefault(name, [name]).extend(joining)
                self._alias[joining] = name
                self.anchor[lost] = NO_ANCHOR
                names_lost.append(lost)
        for k in self._observed.seen_by(np.array(names_lost, dtype=np.int64)):
            self._observed[k] = self.renamed(self._observed[k])
            if k in self.feature_tracks:
                named = self.feature_tracks[k]
                self.feature_tracks[k] = np.where(named >= 0, self._alias[named], named)

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

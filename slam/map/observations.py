"""Observations of tracks in keyframes, with an inverted index from tracks to keyframes."""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, Mapping, ValuesView

import numpy as np
from numpy.typing import NDArray

from slam.map.tracks import Tracks


class Observations:
    """The tracks observed by each keyframe, and the keyframes that observe each track.

    The inverted index holds one linked list of entries per track, so covisible keyframes are found without a search of
    the whole map. An entry stays when a keyframe loses a track, so `observers_of` may return too many keyframes.
    """

    def __init__(self, observed: Mapping[int, Tracks] | None = None) -> None:
        self._tracks: dict[int, Tracks] = {}
        self._newest_entry = np.full(1024, -1, np.int32)  # by track
        self._previous_entry = np.full(1024, -1, np.int32)  # by entry
        self._keyframe = np.zeros(1024, np.int32)  # by entry
        self._entries = 0
        self._is_known = np.zeros(1024, bool)  # by track, scratch space; all False between calls
        for k, tracks in (observed or {}).items():
            self[k] = tracks

    def __getitem__(self, k: int) -> Tracks:
        return self._tracks[k]

    def __setitem__(self, k: int, tracks: Tracks) -> None:
        """Set the tracks that keyframe k observes."""
        known = self._tracks.get(k)
        new = tracks.ids if known is None else self._without(tracks.ids, known.ids)
        self._tracks[k] = tracks
        if len(new) == 0:
            return
        entries = np.arange(self._entries, self._entries + len(new), dtype=np.int32)
        self._entries += len(new)
        self._newest_entry = _with_capacity(self._newest_entry, int(new.max()) + 1, -1)
        self._previous_entry = _with_capacity(self._previous_entry, self._entries, -1)
        self._keyframe = _with_capacity(self._keyframe, self._entries, 0)
        self._previous_entry[entries] = self._newest_entry[new]
        self._keyframe[entries] = k
        self._newest_entry[new] = entries

    def _without(self, ids: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tracks (N,) that are not among the known ones (M,), in order."""
        if len(self._is_known) < len(self._newest_entry):
            self._is_known = np.zeros(len(self._newest_entry), bool)
        inside = ids < len(self._is_known)  # all known ones are
        self._is_known[known] = True
        new = ids[~inside | ~self._is_known[np.where(inside, ids, 0)]]
        self._is_known[known] = False
        return new

    def keys(self) -> KeysView[int]:
        """Ids of the keyframes."""
        return self._tracks.keys()

    def values(self) -> ValuesView[Tracks]:
        """Tracks of each keyframe."""
        return self._tracks.values()

    def items(self) -> ItemsView[int, Tracks]:
        """Keyframe ids, each with its tracks."""
        return self._tracks.items()

    def without(self, k: int) -> Observations:
        """A copy without keyframe k."""
        return Observations({other: tracks for other, tracks in self.items() if other != k})

    def observers_of(self, ids: NDArray[np.int64]) -> list[int]:
        """Keyframes, in order, that observe any of these tracks or did so earlier."""
        found = [np.zeros(0, np.int32)]
        entries = self._newest_entry[ids[ids < len(self._newest_entry)]]
        while len(entries := entries[entries >= 0]):
            found.append(self._keyframe[entries])
            entries = self._previous_entry[entries]
        keyframe_ids: list[int] = np.unique(np.concatenate(found)).tolist()
        return keyframe_ids


def _with_capacity(array: NDArray[np.int32], size: int, empty: int) -> NDArray[np.int32]:
    """The array, extended by `empty` to at least `size` and twice its length if it is shorter than `size`."""
    if size <= len(array):
        return array
    return np.concatenate([array, np.full(max(size, 2 * len(array)) - len(array), empty, np.int32)])

"""Landmarks: tracks with a place. Each hangs off the keyframe that first saw it, so it moves with the graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from slam.map.tracks import Tracks


class Observations(dict[int, Tracks]):
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

    def observers_of(self, ids: NDArray[np.int64]) -> list[int]:
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

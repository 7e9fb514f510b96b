"""Pair estimates between keyframes: relative poses without a length, the priors of bundle adjustment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from relocalizer.interfaces import PairEstimate


class PairEstimates:
    """Pair estimates by (i, j), the ids of two keyframes, with an index by the later one. Iterates over the pairs."""

    def __init__(self) -> None:
        self._estimates: dict[tuple[int, int], PairEstimate] = {}
        self._earlier: dict[int, list[int]] = {}  # by the later keyframe of a pair, the earlier ones

    def __len__(self) -> int:
        return len(self._estimates)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._estimates)

    def add(self, i: int, j: int, estimate: PairEstimate) -> None:
        """Add the estimate of a pair, or replace it."""
        if (i, j) not in self._estimates:
            self._earlier.setdefault(j, []).append(i)
        self._estimates[i, j] = estimate

    def remove(self, keyframe_ids: Iterable[int]) -> None:
        """Remove all pairs of these keyframes."""
        removed = set(keyframe_ids)
        self._estimates = {pair: found for pair, found in self._estimates.items() if removed.isdisjoint(pair)}
        self._earlier = {j: [i for i in of_j if (i, j) in self._estimates] for j, of_j in self._earlier.items()}

    def among(self, later: Iterable[int], members: Iterable[int]) -> list[tuple[int, int, PairEstimate]]:
        """Pair estimates (i, j, estimate) with j in `later` and i in `members`, in order of j."""
        chosen = set(members)
        return [(i, j, self._estimates[i, j]) for j in sorted(later) for i in self._earlier.get(j, []) if i in chosen]

"""How a segment of the map begins: with the initial pair of keyframes."""

from __future__ import annotations

from relocalizer.geometry import Similarity
from slam.map.frames import InitialPair, Keyframe
from slam.mapping.mapper import Mapper


def begin_segment(pair: InitialPair, mapper: Mapper) -> tuple[Keyframe, Keyframe]:
    """The pair as the first two keyframes of a segment of their own, with their landmarks; the first is its origin."""
    first, second = pair.first, pair.second
    segment = 1 + max(mapper.graph.segment_of.values(), default=-1)
    a = mapper.insert(first, first.tracks, Similarity.identity(), segment)
    b = mapper.insert(second, second.tracks, Similarity.from_rigid(pair.first_from_second), segment)
    mapper.remember_pair(a.id, b.id, pair.estimate)
    mapper.local_bundle_adjustment(b.id)
    return a, b

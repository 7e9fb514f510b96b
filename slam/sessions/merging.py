"""Merging of two maps: overlaps are found and closed like loops, then the merged map is refined.

Serves to build one map from several sessions or cameras, like the map merging of ORB-SLAM3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from relocalizer.errors import MapError
from relocalizer.maps.reference_map import ReferenceMap
from slam.components.assembly import Components
from slam.config.schema import BundleAdjustmentConfig, SlamConfig
from slam.events import EdgeAccepted, EdgeRejected, Event
from slam.loop_closing.loop_closer import LoopCloser
from slam.loop_closing.loop_detector import LoopDetector
from slam.loop_closing.loop_verifier import LoopVerifier
from slam.map.keyframe_graph import EdgeKind
from slam.map.slam_map import SlamMap
from slam.mapping.global_refinement import refine_map, run_cost_s
from slam.mapping.mapper import Mapper
from slam.progress import Progress, no_progress
from slam.sessions.stored_map import PriorMap, restore, to_reference_map


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MergedMap:
    """Result of merging two maps.

    Attributes:
        map: the merged map.
        loops: overlaps between the two, as (keyframe of the first, keyframe of the second, number of landmarks).
        apart: number of segments of the second map without a connection to the first; the map contains them unjoined.
    """

    map: ReferenceMap
    loops: list[tuple[int, int, int]]
    apart: int


def merge_maps(
    first: ReferenceMap,
    second: ReferenceMap,
    config: SlamConfig,
    components: Components,
    *,
    on_progress: Progress = no_progress,
) -> MergedMap:
    """Merge the second map into the first, in the frame and units of the first.

    Loops are searched for from every keyframe of the second map to the first. The accepted ones determine the
    similarity between the maps; then the whole map is refined. Keyframes of the first map keep their ids, those of the
    second get new ones.

    Args:
        components: new ones, whose retriever is empty; the keyframes of the first map are added to it.
        on_progress: called with (name of the stage, number of steps done, total number of steps).

    Raises:
        MapError: the maps have no overlap, only the second is metric, or another predictor made them.
    """
    if first.provenance.units == "map units" and second.provenance.units == "meters":
        raise MapError("maps: the second is in meters, the first is not; name the metric one first, its units stay")
    predictor, retriever = components.predictor, components.retriever
    mapper = Mapper(config, predictor, components.adjuster)
    events: list[Event] = []
    detector = LoopDetector(config.loop_closing, mapper.map, retriever)
    verifier = LoopVerifier(config.loop_closing, mapper.map, predictor, events.append)
    loop_closer = LoopCloser(config.loop_closing, mapper, detector, verifier, components.optimizer, events.append)
    a = restore(first, mapper.map, predictor, retriever)
    b = restore(second, mapper.map, predictor, None, gap=config.loop_closing.min_gap)
    for number, k in enumerate(b.keyframe_ids, start=1):
        loop_closer.close_loops(k)
        on_progress("keyframes compared", number, len(b.keyframe_ids))
    apart = _segments_apart(mapper.map, a, b)
    if apart == len({int(s) for s in second.keyframes.segment}):
        why = why_no_overlap(events, len(b.keyframe_ids))
        raise MapError(f"maps: no overlap found: {why}; map the ground between them")
    frames = [*a.frames, *b.frames]
    _refine(mapper, config.bundle_adjustment, len(frames), on_progress)
    jpeg = {**a.jpeg, **b.jpeg}
    sessions = (*a.sessions, *(replace(s, first_frame=s.first_frame + len(a.frames)) for s in b.sessions))
    merged = to_reference_map(mapper.map, frames, first.provenance, lambda k: jpeg[k](), sessions)
    return MergedMap(map=merged, loops=_loops_of(events, b), apart=apart)


def _refine(mapper: Mapper, config: BundleAdjustmentConfig, frames: int, on_progress: Progress) -> None:
    """Run all rounds regardless of their cost: only they distribute the corrections of the loops over both maps."""
    refine_map(
        mapper,
        config.model_copy(update={"final": "always"}),
        budget_s=run_cost_s(frames=frames, keyframes=len(mapper.map.graph.keyframes)),
        may_calibrate=False,
        notify=lambda before, after, cause: None,
        on_round=partial(on_progress, "rounds of bundle adjustment"),
    )


def _loops_of(events: Sequence[Event], second: PriorMap) -> list[tuple[int, int, int]]:
    """Accepted overlaps as (keyframe of the first map, keyframe of the second, landmarks)."""
    own = set(second.keyframe_ids)
    edges = [event.edge for event in events if isinstance(event, EdgeAccepted)]
    return [(e.i, e.j, e.inliers) for e in edges if e.kind is EdgeKind.LOOP and e.i not in own and e.j in own]


def _segments_apart(slam_map: SlamMap, a: PriorMap, b: PriorMap) -> int:
    """Number of segments of the second map without a keyframe of the first."""
    of = slam_map.graph.segment_of
    return len({of[k] for k in b.keyframe_ids} - {of[k] for k in a.keyframe_ids})


def why_no_overlap(events: Sequence[Event], keyframes: int) -> str:
    """A sentence on the rejected candidates, with the reason of the one supported by the most landmarks.

    Args:
        keyframes: number of keyframes that were compared.
    """
    rejected = [event for event in events if isinstance(event, EdgeRejected)]
    if not rejected:
        return f"none of {keyframes} keyframes looks like a place of the other map"
    nearest = max(rejected, key=lambda event: event.landmarks)
    pair = f"keyframes {nearest.i} and {nearest.j}"
    return f"{len(rejected)} places looked alike, none held (the nearest: {pair}, {nearest.reason})"

"""Joining of segments at the end of a run: the newest keyframes are relocalized in all other segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from slam.loop_closing.loop_closer import LoopCloser
from slam.map.slam_map import SlamMap
from slam.relocalization.frame_relocalizer import FrameRelocalizer

MAX_QUERY_KEYFRAMES = 300  # maximum number of keyframes, the newest ones, that are relocalized in other segments


def join_segments(
    slam_map: SlamMap,
    relocalizer: FrameRelocalizer,
    loop_closer: LoopCloser,
    *,
    min_inliers: int,
    candidates_of: Callable[[int], Sequence[int]] | None = None,
) -> bool:
    """Join segments whose keyframes are recognized in one another, as ORB-SLAM3 merges the maps of its atlas.

    Args:
        min_inliers: minimum number of landmarks that the pose of a keyframe in the other segment must agree with.
        candidates_of: the older keyframes in which a keyframe is localized; by default the most similar ones, and
            those nearest in time.

    Returns:
        Whether any segments were joined.
    """
    graph = slam_map.graph
    before = len(set(graph.segment_of.values()))
    for k in sorted(graph.keyframes)[-MAX_QUERY_KEYFRAMES:]:
        if len(set(graph.segment_of.values())) == 1:
            break
        candidates = None if candidates_of is None else candidates_of(k)
        for match in relocalizer.find_in_other_segments(k, min_inliers=min_inliers, among=candidates):
            loop_closer.join(match.keyframe_id, k, match.pose.found)
    return len(set(graph.segment_of.values())) < before

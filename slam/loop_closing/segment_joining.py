"""When a run ends more of the map is known than when its frames came: frames that had no pose are looked for once
more, and maps begun apart are joined."""

from __future__ import annotations

from slam.loop_closing.loop_closer import LoopCloser
from slam.map.slam_map import SlamMap
from slam.relocalization.frame_relocalizer import FrameRelocalizer

MOST_JOINED = 300  # keyframes, the newest, that are looked for in other segments


def join_segments(
    slam_map: SlamMap, relocalizer: FrameRelocalizer, loop_closer: LoopCloser, *, min_inliers: int
) -> bool:
    """Maps begun apart become one where keyframes are recognized by older ones of another; whether any did.

    Args:
        min_inliers: landmarks by which they must be.
    """
    graph = slam_map.graph
    before = len(set(graph.segment_of.values()))
    for k in sorted(graph.keyframes)[-MOST_JOINED:]:
        if len(set(graph.segment_of.values())) == 1:
            break
        for place in relocalizer.find_in_other_segments(k, min_inliers=min_inliers):
            loop_closer.join(place.keyframe_id, k, place.found)
    return len(set(graph.segment_of.values())) < before

"""Every frame that has a pose, hanging off its keyframe, with enough of what it saw to be placed again."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.geometry import Similarity, rigid, rotation_matrix, stack_matrices, translation_of
from relocalizer.intrinsics_correction import IntrinsicsCorrection
from slam.evaluation.trajectory import Trajectory
from slam.map.frames import Frame, FrameRecord
from slam.map.keyframe_graph import KeyframeGraph
from slam.map.tracks import Tracks

REMEMBERED = 200  # observations kept of a frame; more would hardly move its pose, and hours of video add up


class FrameLog:
    """The records of the tracked frames, in order of time, and their live poses.

    `live` is False once the stream has ended: what is added from then on has no live pose.
    """

    def __init__(self) -> None:
        self.live = True
        self.records: list[FrameRecord] = []
        self._seen: list[Tracks] = []
        self._cameras: list[Camera] = []
        self._live: list[tuple[int, RigidTransform] | None] = []  # with the segment whose world the pose was in

    def __len__(self) -> int:
        return len(self.records)

    @property
    def last_index(self) -> int:
        """Of the latest frame that has a pose; -1 when none has."""
        return self.records[-1].index if self.records else -1

    def add(self, frame: Frame, pose: RigidTransform, seen: Tracks, keyframe_id: int, graph: KeyframeGraph) -> None:
        """Hang a frame with a pose in map units off a keyframe; `seen` are the landmarks it rests on."""
        step = max(1, -(-len(seen) // REMEMBERED))
        record = FrameRecord(
            index=frame.index,
            timestamp_ns=frame.timestamp_ns,
            keyframe_id=keyframe_id,
            keyframe_from_frame=relative_to_keyframe(graph.world_from_keyframe[keyframe_id], pose),
        )
        n = bisect(self.records, frame.timestamp_ns, key=lambda r: r.timestamp_ns)
        self.records.insert(n, record)
        self._seen.insert(n, Tracks(seen.ids[::step].copy(), seen.pixels[::step].copy()))
        self._cameras.insert(n, frame.camera)
        self._live.insert(n, (graph.segment_of[keyframe_id], pose) if self.live else None)

    def keep_frames_of(self, keyframe_ids: Collection[int]) -> None:
        """Drop the records that are stored relative to any other keyframe."""
        kept = [n for n, record in enumerate(self.records) if record.keyframe_id in keyframe_ids]
        self.records = [self.records[n] for n in kept]
        self._seen = [self._seen[n] for n in kept]
        self._cameras = [self._cameras[n] for n in kept]
        self._live = [self._live[n] for n in kept]

    def nearest(self, timestamp_ns: int) -> FrameRecord:
        """The record next to a time; the earlier of two that are as near."""
        n = bisect(self.records, timestamp_ns, key=lambda r: r.timestamp_ns)
        return min(self.records[max(n - 1, 0) : n + 1], key=lambda r: abs(r.timestamp_ns - timestamp_ns))

    def pose(self, record: FrameRecord, graph: KeyframeGraph) -> RigidTransform:
        """world_from_cam of a record under the graph's current poses, map units."""
        return graph.world_from_keyframe[record.keyframe_id].compose_rigid(record.keyframe_from_frame)

    def straighten(self, lens_of: Callable[[int], IntrinsicsCorrection]) -> None:
        """More is known of the cameras now: of each frame's that which is known of its keyframe's, by id."""
        for n, (record, seen) in enumerate(zip(self.records, self._seen, strict=True)):
            lens = lens_of(record.keyframe_id)
            if lens.has_corrections:
                self._seen[n] = Tracks(seen.ids, lens.undistorted_pixels(seen.pixels).astype(np.float32))
                self._cameras[n] = lens.camera

    def place_again(
        self, graph: KeyframeGraph, place: Callable[[Tracks, Camera, RigidTransform], RigidTransform]
    ) -> None:
        """Give every frame the pose `place(landmarks seen, camera, pose so far)` finds for it."""
        for n, (record, seen) in enumerate(zip(self.records, self._seen, strict=True)):
            pose = place(seen, self._cameras[n], self.pose(record, graph))
            anchor = graph.world_from_keyframe[record.keyframe_id]
            self.records[n] = replace(record, keyframe_from_frame=relative_to_keyframe(anchor, pose))

    def trajectory(self, graph: KeyframeGraph, segment: int) -> Trajectory:
        """The frames of one segment as they lie in the map now."""
        records = self.of_segment(graph, segment)
        times = np.array([r.timestamp_ns for r in records], dtype=np.int64)
        return Trajectory(times, stack_matrices([self.pose(r, graph) for r in records]))

    def live_trajectory(self, segment: int) -> Trajectory:
        """The poses as they were when each frame came (frames before the first pair: when the map began).

        Only frames that were tracked in the world of `segment`: until a loop joins two segments, theirs have nothing
        in common, and poses tracked before the join stay in the world they were tracked in.
        """
        live = [
            (record.timestamp_ns, known[1])
            for record, known in zip(self.records, self._live, strict=True)
            if known is not None and known[0] == segment
        ]
        return Trajectory(np.array([t for t, _ in live], dtype=np.int64), stack_matrices([pose for _, pose in live]))

    def of_segment(self, graph: KeyframeGraph, segment: int) -> list[FrameRecord]:
        return [r for r in self.records if graph.segment_of[r.keyframe_id] == segment]


def relative_to_keyframe(world_from_keyframe: Similarity, world_from_cam: RigidTransform) -> RigidTransform:
    """keyframe_from_frame, in the keyframe's own units, of a pose in map units."""
    keyframe_from_world = world_from_keyframe.inverse()
    return rigid(
        keyframe_from_world.rotation @ rotation_matrix(world_from_cam),
        keyframe_from_world.apply(translation_of(world_from_cam)),
    )

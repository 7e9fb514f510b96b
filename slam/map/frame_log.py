"""Log of the frames that have a pose, each stored relative to its reference keyframe with some of its observations."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, Similarity, rigid, rotation_matrix, stack_matrices, translation_of
from relocalizer.intrinsics_correction import IntrinsicsCorrection
from slam.evaluation.trajectory import Trajectory
from slam.map.frames import Frame, FrameRecord, ReferenceKeyframe, TrackedPose
from slam.map.keyframe_graph import KeyframeGraph
from slam.map.tracks import Tracks

# Maximum number of observations stored per frame. More would hardly change the refined pose, and the memory adds up
# over hours of video.
MAX_OBSERVATIONS_PER_FRAME = 200
FRAMES_AT_ONCE = 128  # number of frames whose poses are estimated at once, which bounds the memory


@dataclass(frozen=True, slots=True, eq=False)
class LoggedFrame:
    """A frame of the log: observations of landmarks, which may have been fused or removed since, and current pose."""

    observations: Tracks
    camera: Camera
    world_from_cam: RigidTransform


class FrameLog:
    """The records of the tracked frames, in order of time, and their live poses.

    As in ORB-SLAM, the pose of a frame is stored relative to its reference keyframe, so it follows every correction of
    the graph.

    Attributes:
        live: False once the stream has ended; frames added after that have no live pose.
        records: the frames with a pose, in order of time.
    """

    def __init__(self) -> None:
        self.live = True
        self.records: list[FrameRecord] = []
        self._observations: list[Tracks] = []
        self._cameras: list[Camera] = []
        self._live: list[tuple[int, RigidTransform] | None] = []  # segment that defined the world, and the live pose

    def __len__(self) -> int:
        return len(self.records)

    @property
    def last_index(self) -> int:
        """Index of the latest frame that has a pose; -1 if no frame has one."""
        return self.records[-1].index if self.records else -1

    def add(self, frame: Frame, pose: RigidTransform, seen: Tracks, keyframe_id: int, graph: KeyframeGraph) -> None:
        """Store a frame relative to a keyframe.

        Args:
            pose: world_from_cam, map units.
            seen: observations of the landmarks that the pose was estimated from.
        """
        reference = ReferenceKeyframe(
            keyframe_id, graph.world_from_keyframe[keyframe_id], graph.segment_of[keyframe_id]
        )
        self.add_tracked(frame, TrackedPose(pose, seen), reference)

    def add_tracked(self, frame: Frame, found: TrackedPose, reference: ReferenceKeyframe) -> None:
        """Store a frame relative to a keyframe whose pose may have changed since the frame was tracked."""
        pose, seen = found.world_from_cam, found.landmarks
        step = max(1, -(-len(seen) // MAX_OBSERVATIONS_PER_FRAME))
        record = FrameRecord(
            index=frame.index,
            timestamp_ns=frame.timestamp_ns,
            keyframe_id=reference.id,
            keyframe_from_frame=relative_to_keyframe(reference.world_from_keyframe, pose),
        )
        n = bisect(self.records, frame.timestamp_ns, key=lambda r: r.timestamp_ns)
        self.records.insert(n, record)
        self._observations.insert(n, Tracks(seen.ids[::step].copy(), seen.pixels[::step].copy()))
        self._cameras.insert(n, frame.camera)
        self._live.insert(n, (reference.segment, pose) if self.live else None)

    def keep_frames_of(self, keyframe_ids: Collection[int]) -> None:
        """Drop all records except those stored relative to these keyframes."""
        kept = [n for n, record in enumerate(self.records) if record.keyframe_id in keyframe_ids]
        self.records = [self.records[n] for n in kept]
        self._observations = [self._observations[n] for n in kept]
        self._cameras = [self._cameras[n] for n in kept]
        self._live = [self._live[n] for n in kept]

    def nearest(self, timestamp_ns: int) -> FrameRecord:
        """The record closest to a time; of two equally close ones, the earlier."""
        n = bisect(self.records, timestamp_ns, key=lambda r: r.timestamp_ns)
        return min(self.records[max(n - 1, 0) : n + 1], key=lambda r: abs(r.timestamp_ns - timestamp_ns))

    def pose(self, record: FrameRecord, graph: KeyframeGraph) -> RigidTransform:
        """world_from_cam of a record under the graph's current poses, map units."""
        return graph.world_from_keyframe[record.keyframe_id].compose_rigid(record.keyframe_from_frame)

    def undistort(self, lens_of: Callable[[int], IntrinsicsCorrection]) -> None:
        """Apply to every frame's observations and camera the intrinsics correction of its keyframe.

        Args:
            lens_of: the correction of a keyframe's camera, by keyframe id.
        """
        frames_of: dict[IntrinsicsCorrection, list[int]] = {}
        for n, record in enumerate(self.records):
            frames_of.setdefault(lens_of(record.keyframe_id), []).append(n)
        for lens, frames in frames_of.items():
            if not lens.has_corrections:
                continue
            seen, camera = [self._observations[n] for n in frames], lens.camera
            pixels = lens.undistorted_pixels(np.concatenate([tracks.pixels for tracks in seen])).astype(np.float32)
            ends = np.cumsum([len(tracks) for tracks in seen])[:-1]
            for n, tracks, moved in zip(frames, seen, np.split(pixels, ends), strict=True):
                self._observations[n], self._cameras[n] = Tracks(tracks.ids, moved.copy()), camera

    def refit(self, graph: KeyframeGraph, fit: Callable[[Sequence[LoggedFrame]], FloatArray]) -> None:
        """Replace every frame's pose by that which `fit` gives, as (N, 4, 4) for N frames at a time."""
        for start in range(0, len(self.records), FRAMES_AT_ONCE):
            part = range(start, min(start + FRAMES_AT_ONCE, len(self.records)))
            poses = [self.pose(self.records[n], graph) for n in part]
            frames = [
                LoggedFrame(self._observations[n], self._cameras[n], pose) for n, pose in zip(part, poses, strict=True)
            ]
            for n, pose in zip(part, fit(frames), strict=True):
                anchor = graph.world_from_keyframe[self.records[n].keyframe_id]
                moved = relative_to_keyframe(anchor, rigid(pose[:3, :3], pose[:3, 3]))
                self.records[n] = replace(self.records[n], keyframe_from_frame=moved)

    def trajectory(self, graph: KeyframeGraph, segment: int) -> Trajectory:
        """The frames of one segment under the graph's current poses."""
        records = self.of_segment(graph, segment)
        times = np.array([r.timestamp_ns for r in records], dtype=np.int64)
        return Trajectory(times, stack_matrices([self.pose(r, graph) for r in records]))

    def live_trajectory(self, segment: int) -> Trajectory:
        """Poses as estimated when each frame was processed (frames before the initial pair: at initialization).

        Contains only the frames that were tracked in the world of `segment`: two segments have unrelated worlds until
        a loop joins them, and poses tracked before the join stay in the world that they were tracked in.
        """
        live = [
            (record.timestamp_ns, segment_and_pose[1])
            for record, segment_and_pose in zip(self.records, self._live, strict=True)
            if segment_and_pose is not None and segment_and_pose[0] == segment
        ]
        return Trajectory(np.array([t for t, _ in live], dtype=np.int64), stack_matrices([pose for _, pose in live]))

    def of_segment(self, graph: KeyframeGraph, segment: int) -> list[FrameRecord]:
        """The records whose keyframe is in a segment, in order of time."""
        return [r for r in self.records if graph.segment_of[r.keyframe_id] == segment]


def relative_to_keyframe(world_from_keyframe: Similarity, world_from_cam: RigidTransform) -> RigidTransform:
    """keyframe_from_frame, in the keyframe's own units, from a pose in map units."""
    keyframe_from_world = world_from_keyframe.inverse()
    return rigid(
        keyframe_from_world.rotation @ rotation_matrix(world_from_cam),
        keyframe_from_world.apply(translation_of(world_from_cam)),
    )

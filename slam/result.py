"""Result of a run, collected when it ends. `slam.run.run_folder` writes it to disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, stack_matrices
from relocalizer.intrinsics_correction import IntrinsicsCorrection
from slam.evaluation.trajectory import Trajectory
from slam.map.frame_log import FrameLog
from slam.map.frames import Frame
from slam.map.keyframe_graph import KeyframeGraph
from slam.map.lens_evidence import LensEvidence
from slam.map.slam_map import SlamMap
from slam.map.tracking_status import TrackingState
from slam.mapping.bundle_adjustment import reprojection_px
from slam.tracking.tracking_state import TrackingStateMachine


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FrameResult:
    """Live result of one frame.

    Attributes:
        state: tracking state after the frame.
        reason: why the state is what it is, a sentence; empty in normal tracking.
        world_from_cam: pose of the camera, map units; None if the frame has no pose.
        keyframe_id: reference keyframe of the frame; -1 before initialization.
    """

    frame_index: int
    timestamp_ns: int
    state: TrackingState
    reason: str
    world_from_cam: RigidTransform | None
    keyframe_id: int

    @staticmethod
    def of(frame: Frame, state: TrackingStateMachine, pose: RigidTransform | None) -> FrameResult:
        """The result of a processed frame; `pose` (world_from_cam) is passed on while the camera is tracked."""
        return FrameResult(
            frame_index=frame.index,
            timestamp_ns=frame.timestamp_ns,
            state=state.state,
            reason=state.reason,
            world_from_cam=pose if state.is_tracking else None,
            keyframe_id=state.keyframe_id,
        )

    @property
    def is_tracked(self) -> bool:
        """Whether the frame has a pose."""
        return self.world_from_cam is not None


@dataclass(frozen=True, slots=True, eq=False)
class Georeference:
    """Where a metric map lies on the earth.

    Attributes:
        latitude_deg, longitude_deg, height_m: origin of the axes east, north and up; WGS 84, height as in the track.
        enu_from_world: (4, 4), rigid; from the world of the map in meters to meters east, north and up of the origin.
    """

    latitude_deg: float
    longitude_deg: float
    height_m: float
    enu_from_world: FloatArray


@dataclass(frozen=True, slots=True)
class Units:
    """Units of the lengths of a result.

    Attributes:
        source: source of the metric scale, in words; empty for map units.
        meters_per_unit: factor by which the run was scaled to meters; None if it was not scaled.
        georeference: where the map lies on the earth; None if the source of the scale does not say.
    """

    name: Literal["map units", "meters"] = "map units"
    source: str = ""
    meters_per_unit: float | None = None
    georeference: Georeference | None = None

    @property
    def note(self) -> str:
        """A comment for the header of a file; empty for map units."""
        return f"lengths in {self.name}: {self.source}" if self.source else ""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SlamResult:
    """Result of a run, with lengths in `units`.

    Attributes:
        trajectory: final poses of all tracked frames of the largest segment.
        frame_indices: (N,) frame index of each row of `trajectory`.
        segments: trajectories of all other segments, largest first. Their worlds and scales are unrelated to the
            largest segment, so their lengths are in map units of their own.
        keyframe_trajectory: final poses of the keyframes of the largest segment.
        online: live poses of the frames that were tracked in the world of the largest segment.
        graph: keyframe graph of all segments.
        landmark_ids, landmark_points, landmark_colors: (N,), (N, 3) and RGB (N, 3), of the largest segment.
        segment: number of the largest segment in `graph`.
        segment_frame_indices: frame index of each row of each trajectory in `segments`.
        camera: camera of the frames after the global refinement; None without a keyframe.
        lens: correction of the initial calibration that the run estimated.
        lens_evidence: evidence for the focal length of the largest segment.
        segment_lens_evidence: the same for each of `segments`.
        reprojection_px: root mean square of the reprojection errors in this run's keyframes of the largest segment,
            pixels; None if the run was aborted.
    """

    trajectory: Trajectory
    frame_indices: NDArray[np.int64]
    segments: list[Trajectory]
    keyframe_trajectory: Trajectory
    online: Trajectory
    graph: KeyframeGraph
    landmark_ids: NDArray[np.int64]
    landmark_points: FloatArray
    landmark_colors: NDArray[np.uint8]
    segment: int = 0
    segment_frame_indices: list[NDArray[np.int64]] = field(default_factory=list)
    units: Units = Units()
    camera: Camera | None = None
    lens: IntrinsicsCorrection = field(default_factory=IntrinsicsCorrection)
    lens_evidence: LensEvidence = field(default_factory=LensEvidence)
    segment_lens_evidence: list[LensEvidence] = field(default_factory=list)
    reprojection_px: float | None = None


def collect_result(slam_map: SlamMap, log: FrameLog, *, since: int = 0, measure: bool = True) -> SlamResult:
    """The result from the current poses and landmarks; the largest segment is the one with the most frames.

    Args:
        since: lowest keyframe id of this run. Earlier keyframes belong to the map that the run continued: they are in
            the graph, not in the trajectories.
        measure: measure the reprojection error.
    """
    graph, landmarks = slam_map.graph, slam_map.landmarks
    numbers = set(graph.segment_of.values()) or {0}
    sizes = {s: len(log.of_segment(graph, s)) for s in numbers}
    first, *others = sorted(numbers, key=lambda s: (-sizes[s], s))
    keyframes = [graph.keyframes[k] for k in graph.segment(first) if k >= since]
    keyframes.sort(key=lambda k: k.timestamp_ns)  # ids are not in order of time: old frames may be inserted at the end
    ids = landmarks.landmark_ids()
    ids = ids[np.isin(landmarks.anchor[ids], graph.segment(first))]
    return SlamResult(
        trajectory=log.trajectory(graph, first),
        frame_indices=_indices(log, graph, first),
        segment=first,
        segments=[log.trajectory(graph, s) for s in others if sizes[s]],
        segment_frame_indices=[_indices(log, graph, s) for s in others if sizes[s]],
        keyframe_trajectory=Trajectory(
            np.array([k.timestamp_ns for k in keyframes], dtype=np.int64),
            stack_matrices([graph.world_from_keyframe[k.id].rigid for k in keyframes]),
        ),
        online=log.live_trajectory(first),
        camera=keyframes[-1].camera if keyframes else None,
        lens=slam_map.lenses.get(first, IntrinsicsCorrection()),
        lens_evidence=slam_map.evidence_of(first),
        segment_lens_evidence=[slam_map.evidence_of(s) for s in others if sizes[s]],
        reprojection_px=reprojection_px(slam_map, [k.id for k in keyframes]) if measure else None,
        graph=graph,
        landmark_ids=ids,
        landmark_points=landmarks.points_world(ids, graph),
        landmark_colors=landmarks.color[ids],
    )


def _indices(log: FrameLog, graph: KeyframeGraph, segment: int) -> NDArray[np.int64]:
    """Frame indices (N,) of the frames of a segment, in order of time."""
    return np.array([r.index for r in log.of_segment(graph, segment)], dtype=np.int64)

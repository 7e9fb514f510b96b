"""What a run leaves in memory, gathered when it ends. `slam.run.run_folder` writes it to disk."""

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
from slam.map.keyframe_graph import KeyframeGraph
from slam.map.lens_evidence import LensEvidence
from slam.map.slam_map import SlamMap
from slam.map.tracking_status import TrackingState
from slam.mapping.bundle_adjustment import reprojection_px


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FrameResult:
    """Result of one frame, as it is live.

    Attributes:
        state: whether the camera is tracked.
        reason: why the state is what it is, a sentence; empty while all is well.
        world_from_cam: pose of the camera in map units; None without one.
        keyframe_id: the frame's reference keyframe; -1 before there is a map.
    """

    frame_index: int
    timestamp_ns: int
    state: TrackingState
    reason: str
    world_from_cam: RigidTransform | None
    keyframe_id: int

    @property
    def is_tracked(self) -> bool:
        """Whether the frame has a pose."""
        return self.world_from_cam is not None


@dataclass(frozen=True, slots=True)
class Units:
    """What a length of 1 is.

    Attributes:
        source: where meters come from, in words; empty for map units.
        meters_per_unit: by which the run's own map units were stretched; None while they are map units.
    """

    name: Literal["map units", "meters"] = "map units"
    source: str = ""
    meters_per_unit: float | None = None

    @property
    def note(self) -> str:
        """For the head of a file: nothing for map units."""
        return f"lengths in {self.name}: {self.source}" if self.source else ""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SlamResult:
    """What a run leaves, in `units`.

    Attributes:
        trajectory: every tracked frame of the largest segment, final poses; `frame_indices` (N,) names its rows.
        segment: number of that segment in `graph`.
        segments: the other segments, largest first; nothing ties their frames and scales to the first, so their
            lengths are map units of their own. `segment_frame_indices` name their rows.
        camera: of the frames, as the last refinement left it; None without a keyframe.
        lens: what the run found of it beyond the calibration it began with.
        lens_evidence: how far it is known. `segment_lens_evidence` is that of each of `segments`.
        reprojection_px: root of the mean squared reprojection error in the keyframes of this run and segment, pixels.
        online: poses as they were live, of the frames that were tracked in the world of this segment.
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
    reprojection_px: float = 0.0


def collect_result(slam_map: SlamMap, log: FrameLog, *, since: int = 0) -> SlamResult:
    """The poses and landmarks as they stand now; the segment with the most frames comes first.

    Keyframes before id `since` belong to the map the run began in: they are in the graph, not in the trajectories.
    """
    graph, landmarks = slam_map.graph, slam_map.landmarks
    numbers = set(graph.segment_of.values()) or {0}
    sizes = {s: len(log.of_segment(graph, s)) for s in numbers}
    first, *others = sorted(numbers, key=lambda s: (-sizes[s], s))
    keyframes = [graph.keyframes[k] for k in graph.segment(first) if k >= since]
    keyframes.sort(key=lambda k: k.timestamp_ns)  # a frame may become one long after it came
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
        reprojection_px=reprojection_px(slam_map, [k.id for k in keyframes]),
        graph=graph,
        landmark_ids=ids,
        landmark_points=landmarks.points_world(ids, graph),
        landmark_colors=landmarks.color[ids],
    )


def _indices(log: FrameLog, graph: KeyframeGraph, segment: int) -> NDArray[np.int64]:
    return np.array([r.index for r in log.of_segment(graph, segment)], dtype=np.int64)

"""Statistics of a run, counted from its events."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from slam.evaluation.verdict import WEAK_LANDMARKS
from slam.events import (
    EdgeAccepted,
    EdgeRejected,
    Event,
    FrameProcessed,
    Initialized,
    KeyframeAdded,
    LoopExamined,
    Relocalized,
    ScaleUnobservable,
    TrackingLost,
)
from slam.loop_closing.pairwise_consistency import DISTANCE_GATE, WHOLE_VIEW_GATE
from slam.map.keyframe_graph import EdgeKind
from slam.map.tracking_status import TrackingState

TORN = 0.25  # fraction of the tracks found again below which two consecutive images hardly overlap
LONG_FOLLOWED = 15  # Number of frames after which a point of the static scene is a landmark, if there is parallax.


@dataclass(frozen=True, slots=True)
class LostEpisode:
    """One loss of tracking: its number of frames, and whether the camera was relocalized."""

    frame_index: int
    timestamp_ns: int
    reason: str
    frames: int = 0
    found: bool = False


@dataclass(slots=True, eq=False)
class RunStatistics:
    """An observer that counts events, for the progress line, the summary and the report.

    Attributes:
        frames: number of processed frames.
        tracked: number of frames with a live pose.
        first_pose_frame: index of the first frame with a live pose, -1 while there is none.
        reason: reason why the newest frame has no pose; empty when it has one.
        lost_frames: number of frames without a pose because tracking was lost.
        refuted_keyframes: keyframes with a verified loop that no drift explains.
        contradicted_keyframes: keyframes with a verified loop that was held back because the path leads elsewhere.
        outweighed: number of loops that were closed although the path leads elsewhere.
        weak_frames: number of frames whose pose has few inlier landmarks, or none.
        start_map: name of the map in which the run started; empty if it started without one.
        found_in_map: index of the first frame relocalized in it, -1 while there is none.
        torn: number of frames in which hardly a track of the previous image was found again.
        stage_ms: wall time by stage, one value per frame that ran the stage, milliseconds.
        resting: number of frames in which the camera was at rest.
        overlay: sum, over all frames, of the fraction of points that were fixed in the image while the scene moved.
        moving: sum, over all frames, of the fraction of points that were on moving objects.
        unexplained: of each frame with a pose, the fraction of the points followed for `LONG_FOLLOWED` or more that
            are no inliers; frames with fewer than `WEAK_LANDMARKS` such points are left out.
    """

    frames: int = 0
    tracked: int = 0
    first_pose_frame: int = -1
    initialized: bool = False
    state: TrackingState = TrackingState.INITIALIZING
    reason: str = ""
    keyframes: int = 0
    edges: int = 0
    loops_accepted: int = 0
    loops_rejected: int = 0
    refuted_keyframes: set[int] = field(default_factory=set)
    contradicted_keyframes: set[int] = field(default_factory=set)
    outweighed: int = 0
    scale_unobservable: int = 0
    lost_frames: int = 0
    weak_frames: int = 0
    torn: int = 0
    start_map: str = ""
    found_in_map: int = -1
    lost: list[LostEpisode] = field(default_factory=list)
    stage_ms: dict[str, list[float]] = field(default_factory=dict)
    resting: int = 0
    overlay: float = 0.0
    moving: float = 0.0
    unexplained: list[float] = field(default_factory=list)
    _ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # tracks of the newest, ascending
    _ages: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # frames that each was followed for

    @property
    def unexplained_share(self) -> float:
        """Median of `unexplained`; 0 where there is none."""
        return float(np.median(self.unexplained)) if self.unexplained else 0.0

    @property
    def overlay_share(self) -> float:
        """Mean fraction (0 to 1) of followed points that are fixed in the image while the scene moves."""
        return self.overlay / self.frames if self.frames else 0.0

    @property
    def moving_share(self) -> float:
        """Mean fraction (0 to 1) of followed points that are on moving objects."""
        return self.moving / self.frames if self.frames else 0.0

    def __call__(self, event: Event) -> None:
        match event:
            case FrameProcessed():
                self._count_frame(event)
            case Initialized():
                self.initialized = True
            case KeyframeAdded():
                self.keyframes += 1
            case EdgeAccepted():
                self.edges += 1
                self.loops_accepted += event.edge.kind is EdgeKind.LOOP
            case EdgeRejected():
                self.loops_rejected += event.kind is EdgeKind.LOOP
                if event.is_refuted:
                    self.refuted_keyframes.add(event.j)
            case LoopExamined():
                if any(gate.name == DISTANCE_GATE and not gate.passed for gate in event.gates):
                    self.contradicted_keyframes.add(event.j)
                self.outweighed += event.is_accepted and any(gate.name == WHOLE_VIEW_GATE for gate in event.gates)
            case ScaleUnobservable():
                self.scale_unobservable += 1
            case TrackingLost():
                self.lost.append(LostEpisode(event.frame_index, event.timestamp_ns, event.reason))
            case Relocalized() if self.start_map and self.found_in_map < 0 and not self.initialized:
                self.found_in_map = event.frame_index
            case Relocalized() if self.lost:
                self.lost[-1] = replace(self.lost[-1], frames=event.frames_lost, found=True)
            case _:
                pass

    def _count_unexplained(self, event: FrameProcessed) -> None:
        ids = event.track_ids
        ages = np.ones(len(ids), np.int64)
        if len(self._ids):
            at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
            ages += np.where(self._ids[at] == ids, self._ages[at], 0)
        order = np.argsort(ids)
        self._ids, self._ages = ids[order], ages[order]
        if event.world_from_cam is None or event.reason or event.camera_rests:
            return  # lost, or tracked by other means than landmarks
        is_long_followed = ages >= LONG_FOLLOWED
        if is_long_followed.sum() >= WEAK_LANDMARKS:
            self.unexplained.append(1.0 - float(event.is_inlier[is_long_followed].mean()))

    def _count_frame(self, event: FrameProcessed) -> None:
        self.frames += 1
        self.state, self.reason = event.state, event.reason
        self.lost_frames += event.state is TrackingState.LOST
        self.resting += event.camera_rests
        measurement = event.measurement
        self.torn += measurement is not None and measurement.followed < TORN  # False for NaN
        self.overlay += event.overlay_share
        self.moving += event.moving_share
        self._count_unexplained(event)
        if event.world_from_cam is not None:
            self.tracked += 1
            self.weak_frames += int(event.is_inlier.sum()) < WEAK_LANDMARKS
            if self.first_pose_frame < 0:
                self.first_pose_frame = event.frame.index
        elif event.state is TrackingState.LOST and self.lost and not self.lost[-1].found:
            self.lost[-1] = replace(self.lost[-1], frames=self.lost[-1].frames + 1)
        for stage, milliseconds in event.stage_ms.items():
            self.stage_ms.setdefault(stage, []).append(milliseconds)


def percentiles(stage_ms: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of the time of every stage, milliseconds."""
    return {
        stage: {name: round(float(np.percentile(times, q)), 3) for name, q in (("p50", 50), ("p95", 95))}
        for stage, times in stage_ms.items()
        if times
    }

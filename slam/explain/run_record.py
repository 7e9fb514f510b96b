"""A finished run as columns over its frames, read from the event log of its folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray, rotation_matrix, translation_of
from slam.events import Event, FrameProcessed, GraphOptimized, KeyframeAdded, RunFinished
from slam.map.frame_measurement import FrameMeasurement
from slam.map.tracking_status import TrackingState
from slam.run.replay import open_replay
from slam.run.report import read_report

MEASURED = tuple(entry.name for entry in fields(FrameMeasurement))
E = TypeVar("E")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RunRecord:
    """N frames of a run, and its other events.

    Attributes:
        index: (N,) frame indices, ascending; times_s: (N,) seconds since the first.
        states: (N,) of `TrackingState`; reasons: (N,) sentences.
        inliers, tracks: (N,) numbers of inlier landmarks and of tracks.
        has_pose: (N,) whether the frame has a pose in the largest map when the run ends.
        positions: (N, 3) live camera centers; rotations: (N, 3, 3); NaN without a live pose.
        depth: (N,) median depth of the landmarks, map units; NaN without one.
        measured: by name of a field of `FrameMeasurement`, (N,) values.
        rests: (N,) whether the camera was at rest.
        focal_px: focal length of the images.
        events: all events but those of single frames, in order.
        final_scales: by keyframe id, the final scale of the keyframe.
        report: contents of report.json.
    """

    index: NDArray[np.int64]
    times_s: FloatArray
    states: tuple[TrackingState, ...]
    reasons: tuple[str, ...]
    inliers: FloatArray
    tracks: FloatArray
    has_pose: NDArray[np.bool_]
    positions: FloatArray
    rotations: FloatArray
    depth: FloatArray
    measured: Mapping[str, FloatArray]
    rests: NDArray[np.bool_]
    focal_px: float = 500.0
    events: tuple[Event, ...] = ()
    final_scales: Mapping[int, float] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def of(self, kind: type[E]) -> list[E]:
        """All events of a kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    def row(self, frame_index: int) -> int:
        """Row of a frame, or of the first one after it."""
        return min(int(np.searchsorted(self.index, frame_index)), max(len(self) - 1, 0))

    def frames(self, first_row: int, last_row: int) -> tuple[int, int]:
        """Frame indices of two rows."""
        return int(self.index[first_row]), int(self.index[last_row])

    def keyframes_near(self, first: int, last: int, most: int = 4) -> tuple[int, ...]:
        """Ids of keyframes within or next to a range of frames, evenly chosen."""
        keyframes: list[tuple[int, int]] = sorted(
            (e.keyframe.frame_index, e.keyframe.id) for e in self.of(KeyframeAdded)
        )
        before = [k for frame, k in keyframes if frame < first][-1:]
        within = [k for frame, k in keyframes if first <= frame <= last]
        after = [k for frame, k in keyframes if frame > last][:1]
        step = max(1, -(-len(within) // max(most - 2, 1)))
        return (*before, *within[::step], *after)

    @property
    def is_tracking(self) -> NDArray[np.bool_]:
        return np.array([state is TrackingState.TRACKING for state in self.states], bool)


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        UserError: it is not a run folder, or a file in it cannot be read.
    """
    replay = open_replay(folder)
    return record_of(replay.events(), read_report(folder), focal_px=replay.camera.mean_focal)


def record_of(events: Iterable[Event], report: Mapping[str, Any], *, focal_px: float) -> RunRecord:
    """The record of a run from its events, in their order."""
    frames: list[FrameProcessed] = []
    others: list[Event] = []
    for event in events:
        if isinstance(event, FrameProcessed):
            frames.append(event)
        else:
            others.append(event)
    ended = next((event for event in reversed(others) if isinstance(event, RunFinished)), None)
    posed = set() if ended is None else set(ended.timestamps_ns.tolist())
    stamps = np.array([event.frame.timestamp_ns for event in frames], np.int64)
    moved = next((e for e in reversed(others) if isinstance(e, GraphOptimized) and e.world_from_keyframe), None)
    return RunRecord(
        index=np.array([event.frame.index for event in frames], np.int64),
        times_s=(stamps - stamps[0]) * 1e-9 if len(stamps) else np.zeros(0),
        states=tuple(event.state for event in frames),
        reasons=tuple(event.reason for event in frames),
        inliers=np.array([event.is_inlier.sum() for event in frames], float),
        tracks=np.array([len(event.track_ids) for event in frames], float),
        has_pose=np.array([t in posed for t in stamps.tolist()], bool),
        positions=_poses(frames, 3),
        rotations=_poses(frames, 9).reshape(-1, 3, 3),
        depth=np.array([event.depth for event in frames], float),
        measured=_measurements(frames),
        rests=np.array([event.camera_rests for event in frames], bool),
        focal_px=focal_px,
        events=tuple(others),
        final_scales={} if moved is None else {k: pose.scale for k, pose in moved.world_from_keyframe.items()},
        report=report,
    )


def _poses(frames: list[FrameProcessed], size: int) -> FloatArray:
    """Camera centers (N, 3) or rotations (N, 9) of the live poses; NaN where there is none."""
    rows = np.full((len(frames), size), np.nan)
    for row, event in enumerate(frames):
        if event.world_from_cam is not None:
            pose = event.world_from_cam
            rows[row] = translation_of(pose) if size == 3 else rotation_matrix(pose).ravel()
    return rows


def _measurements(frames: list[FrameProcessed]) -> dict[str, FloatArray]:
    """By name, (N,) values; NaN in logs of versions that did not measure."""
    nothing = FrameMeasurement(landmarks=np.nan)
    rows = [event.measurement or nothing for event in frames]
    return {name: np.array([getattr(row, name) for row in rows], float) for name in MEASURED}

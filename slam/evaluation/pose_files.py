"""Trajectories named by a run folder or a file, and the pairing of two of them for evaluation.

KITTI's files have no times: each line is a frame, and every frame of the sequence has a pose. Poses without times are
therefore paired by frame number if it is known, never by invented times.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import TrajectoryError
from slam.evaluation.metrics import MatchedBy
from slam.evaluation.trajectory import Trajectory, frames_missing, nanoseconds_from_seconds
from slam.evaluation.trajectory_files import TrajectoryFile, TrajectoryFormat, read_trajectory_file, with_times

TRAJECTORY, EVENTS = "trajectory.txt", "events.jsonl"  # Files of a run folder.
TIMES = "times.txt"  # KITTI's file of times.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PoseFile:
    """A trajectory file.

    Attributes:
        frames: index in its source of each frame of the run that wrote the file, by the frame's timestamp; empty if
            the file is not in a run folder.
    """

    path: Path
    file: TrajectoryFile
    frames: Mapping[int, int]

    @property
    def trajectory(self) -> Trajectory:
        return self.file.trajectory

    @property
    def frames_without_pose(self) -> int:
        """Number of frames of the sequence without a pose, from the run's log or estimated from gaps in time."""
        stamps = self.trajectory.timestamps_ns
        if self.frames:
            return len(self.frames) - len(stamps)
        return frames_missing(stamps) if self.trajectory.has_times else 0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Pair:
    """Two trajectories on one clock.

    Attributes:
        expected: (N,) timestamps of the frames that should have a pose, nanoseconds; None if unknown.
        said: sentence on how poses without times were paired; may be empty.
    """

    estimate: Trajectory
    ground_truth: Trajectory
    matched_by: MatchedBy = "time"
    expected: NDArray[np.int64] | None = None
    said: str = ""


def open_poses(path: Path, format: TrajectoryFormat | None = None) -> PoseFile:
    """Read a trajectory file, or that of a run folder.

    Raises:
        TrajectoryError: it cannot be read.
    """
    path = path / TRAJECTORY if path.is_dir() else path
    file = read_trajectory_file(path, format)
    return PoseFile(path=path, file=file, frames=_frames_of_run(path.parent / EVENTS, file.trajectory))


def timed(poses: PoseFile, times: Path) -> PoseFile:
    """The poses with the times of a file.

    Raises:
        TrajectoryError: the poses already have times, or the numbers of times and poses differ.
    """
    if poses.trajectory.has_times:
        raise TrajectoryError(f"--times {times}: {poses.path} has times of its own; leave the option out")
    trajectory = with_times(poses.trajectory, read_times(times), str(poses.path))
    return replace(poses, file=replace(poses.file, trajectory=trajectory))


def read_times(path: Path) -> list[int]:
    """Timestamps, in nanoseconds, of a file with one time in seconds per line; `#` starts a comment.

    Raises:
        TrajectoryError: the file cannot be read, or a line is not a time; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise TrajectoryError(f"{path}: times cannot be read ({reason})") from None
    times = []
    for number, line in enumerate(lines, start=1):
        if content := line.partition("#")[0].strip():
            try:
                times.append(nanoseconds_from_seconds(content))
            except ValueError as error:
                raise TrajectoryError(f"{path}, line {number}: {error}") from None
    return times


def pair(estimate: PoseFile, truth: PoseFile, times: Path | None = None) -> Pair:
    """Pair two trajectories.

    If one has no times, its lines are interpreted as frames of the run that wrote the estimate; otherwise, if both
    have the same number of poses, they are paired line by line; otherwise its times are read from a `times.txt`.

    Args:
        times: file with the times of the trajectory without times, or of both.

    Raises:
        TrajectoryError: the poses cannot be paired; states what is needed.
    """
    without = [poses for poses in (estimate, truth) if not poses.trajectory.has_times]
    if times is not None:
        if not without:
            raise TrajectoryError(f"--times {times}: both files have times of their own; leave the option out")
        return _with_given_times(estimate, truth, times)
    if not without:
        return Pair(estimate=estimate.trajectory, ground_truth=truth.trajectory)
    if estimate.trajectory.has_times and estimate.frames:
        return _by_frame(estimate, truth)
    if len(estimate.trajectory) == len(truth.trajectory):
        return _by_line(estimate, truth)
    beside = _times_beside(without[0]) if len(without) == 1 else None
    if beside is None:
        raise _cannot_pair(estimate, truth)
    return replace(_with_given_times(estimate, truth, beside), said=f"{without[0].path}: times of {beside}")


def _with_given_times(estimate: PoseFile, truth: PoseFile, times: Path) -> Pair:
    first, second = (p if p.trajectory.has_times else timed(p, times) for p in (estimate, truth))
    return Pair(estimate=first.trajectory, ground_truth=second.trajectory)


def _by_frame(estimate: PoseFile, truth: PoseFile) -> Pair:
    """Line k + 1 of the truth is frame k of the source, whose timestamps are in the run's log."""
    lines, last = len(truth.trajectory), max(estimate.frames[t] for t in estimate.trajectory.timestamps_ns.tolist())
    if last >= lines:
        raise TrajectoryError(
            f"{truth.path}: {lines} poses without times, but frame {last} of the run has one too, so a line is no "
            "frame of its source; give their times with --times FILE (a time a line)"
        )
    known = sorted((index, time) for time, index in estimate.frames.items() if index < lines)
    indices, stamps = (np.array(column, dtype=np.int64) for column in zip(*known, strict=True))
    return Pair(
        estimate=estimate.trajectory,
        ground_truth=Trajectory(stamps, truth.trajectory.world_from_cam[indices]),
        matched_by="frame number",
        expected=stamps,
        said=f"{truth.path}: no times; line k + 1 is taken for frame k of the run's source",
    )


def _by_line(estimate: PoseFile, truth: PoseFile) -> Pair:
    a, b = estimate.trajectory, truth.trajectory
    without = " and ".join(dict.fromkeys(str(p.path) for p in (estimate, truth) if not p.trajectory.has_times))
    stamps = a.timestamps_ns if a.has_times else b.timestamps_ns
    if a.has_times or b.has_times:
        a, b = Trajectory(stamps, a.world_from_cam), Trajectory(stamps, b.world_from_cam)
    gaps = frames_missing(stamps)
    caveat = f", though the times have gaps as of {gaps} frames without a pose" if gaps else ""
    said = f"{without}: no times; both have {len(a)} poses and are paired line by line{caveat}"
    return Pair(estimate=a, ground_truth=b, matched_by="line number", said=said)


def _times_beside(poses: PoseFile) -> Path | None:
    """KITTI's file of times for a file of poses, if the numbers of times and poses are equal."""
    folder, name = poses.path.parent, poses.path.stem
    for path in (folder / TIMES, folder.parent / "sequences" / name / TIMES):
        if path.is_file() and len(read_times(path)) == len(poses.trajectory):
            return path
    return None


def _cannot_pair(estimate: PoseFile, truth: PoseFile) -> TrajectoryError:
    counts = f"{estimate.path} has {len(estimate.trajectory)} poses, {truth.path} {len(truth.trajectory)}"
    if not (estimate.trajectory.has_times or truth.trajectory.has_times):
        return TrajectoryError(
            f"{counts}, and neither has times: nothing tells which belong together; give the run folder, or the file "
            "with times that the shorter one was made of"
        )
    without = estimate if truth.trajectory.has_times else truth
    return TrajectoryError(
        f"{counts}, and {without.path} has no times: nothing tells which belong together; give its times with "
        "--times FILE (a time a line)"
    )


def _frames_of_run(events: Path, trajectory: Trajectory) -> dict[int, int]:
    """Frame indices by timestamp; empty unless the log beside a trajectory is that of its run."""
    if not trajectory.has_times or not events.is_file():
        return {}
    frames: dict[int, int] = {}
    with events.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if '"FrameProcessed"' in line:
                try:
                    frame = json.loads(line)["frame"]
                    frames[int(frame["timestamp_ns"])] = int(frame["index"])
                except (ValueError, KeyError, TypeError):  # The truncated last line of a killed run.
                    continue
    return frames if frames.keys() >= set(trajectory.timestamps_ns.tolist()) else {}

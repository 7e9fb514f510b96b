"""A trajectory: timestamps and camera poses. Reading and writing of its file formats.

| format | a line | time |
|---|---|---|
| TUM | `timestamp tx ty tz qx qy qz qw` | seconds |
| KITTI | the upper three rows of the 4x4 pose (or all four), row by row: 12 (16) numbers | none: one line a frame |
| EuRoC | `timestamp,px,py,pz,qw,qx,qy,qz` and more columns that are not used | integer nanoseconds |

A header line that names all columns of a pose decides their order and the unit of time, whatever the format has
(`slam.evaluation.pose_columns`); blanks, commas and semicolons between columns are read alike.

Every pose is `world_from_x`: x is the camera in TUM and KITTI files, the IMU body in EuRoC's ground truth
(the caller composes `world_from_body @ body_from_cam`). Time is parsed from its digits, never through a
float, so a stamp such as 1403636579763555584 ns survives a round trip.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray, Similarity, frozen_array

LARGEST_SECONDS = 2**63 // 10**9  # what 64 bits of nanoseconds hold
GAP = 5.0  # steps in time, relative to the median one, that mean nothing was there
MISSING = 1.5  # steps in time, relative to the usual one, from which on a frame is missing
NO_TIMES = "times are not known: pose k stands at k / 10 s"
FARTHEST = 1e12  # of positions, beyond which sums of squares lose all digits


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Camera poses over time, in map units (or meters, when whoever made it knew them).

    Attributes:
        timestamps_ns: (N,) int64, strictly increasing.
        world_from_cam: (N, 4, 4) rigid matrices.
        has_times: False when the stamps only number the poses (pose k at k / 10 s), as nothing told their times;
            then they must not be compared with those of anything else.
    """

    timestamps_ns: NDArray[np.int64]
    world_from_cam: FloatArray
    has_times: bool = True

    def __post_init__(self) -> None:
        times = np.array(self.timestamps_ns, dtype=np.int64)
        poses = frozen_array("Trajectory.world_from_cam", self.world_from_cam, (None, 4, 4))
        if times.shape != (len(poses),):
            raise ValueError(f"Trajectory: {times.shape} timestamps for {len(poses)} poses")
        if (np.diff(times) <= 0).any():
            raise ValueError("Trajectory.timestamps_ns: must increase")
        times.setflags(write=False)
        object.__setattr__(self, "timestamps_ns", times)
        object.__setattr__(self, "world_from_cam", poses)

    def __len__(self) -> int:
        return len(self.timestamps_ns)

    @property
    def positions(self) -> FloatArray:
        """Camera centers (N, 3)."""
        return self.world_from_cam[:, :3, 3]

    @property
    def length(self) -> float:
        """Path length, in the trajectory's unit."""
        return float(np.linalg.norm(np.diff(self.positions, axis=0), axis=1).sum())

    @property
    def duration_s(self) -> float:
        return float(self.timestamps_ns[-1] - self.timestamps_ns[0]) * 1e-9 if len(self) else 0.0

    def transformed(self, a_from_world: Similarity) -> Trajectory:
        """The same path in frame a; a similarity's scale stretches positions, orientations turn with it."""
        poses = self.world_from_cam.copy()
        poses[:, :3, :3] = a_from_world.rotation @ poses[:, :3, :3]
        poses[:, :3, 3] = a_from_world.apply(self.positions)
        return Trajectory(self.timestamps_ns, poses, self.has_times)

    def __str__(self) -> str:
        duration = f"{self.duration_s:.1f} s" if self.has_times else "without times"
        return f"{len(self)} poses, {self.length:.3f} units long, {duration}"


def nanoseconds_from_seconds(text: str) -> int:
    """Seconds written in decimal, such as "1403636579.763555584" or "1.5e-1", as nanoseconds, exactly.

    Digits below a nanosecond are rounded to the nearest, half to even.

    Raises:
        ValueError: not a finite number, or too large for 64 bits (nanoseconds where seconds belong).
    """
    try:
        seconds = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"expected a time in seconds, got {text!r}") from None
    if not seconds.is_finite():
        raise ValueError(f"expected a time in seconds, got {text!r}")
    if abs(seconds) >= LARGEST_SECONDS:
        raise ValueError(
            f"expected a time in seconds, got {text} (is it in nanoseconds?); "
            "name the unit in a header: # timestamp[ms] tx ty tz qx qy qz qw"
        )
    return int((seconds * 1_000_000_000).to_integral_value())


def seconds_from_nanoseconds(timestamp_ns: int) -> str:
    """Nanoseconds as decimal seconds with all nine digits; `nanoseconds_from_seconds` reads them back."""
    seconds, nanoseconds = divmod(abs(timestamp_ns), 1_000_000_000)
    return f"{'-' * (timestamp_ns < 0)}{seconds}.{nanoseconds:09d}"


def frames_missing(timestamps_ns: NDArray[np.int64]) -> int:
    """How many frames seem to have no pose between the first of these increasing stamps and the last.

    A step of about n usual ones stands for n - 1 of them. The usual step is the first quartile: a frame without a pose
    makes a step longer, and nothing makes one shorter.
    """
    steps = np.diff(timestamps_ns)
    if len(steps) == 0:
        return 0
    relative = steps / np.quantile(steps, 0.25)
    return int((np.rint(relative[relative > MISSING]) - 1).sum())


def runs_without_gaps(timestamps_ns: NDArray[np.int64]) -> list[slice]:
    """Stretches of increasing stamps without a hole, to draw as one line each.

    A step of more than `GAP` times the median step is a hole.
    """
    steps = np.diff(timestamps_ns)
    if len(steps) == 0:
        return [slice(0, len(timestamps_ns))]
    breaks = (np.flatnonzero(steps > GAP * np.median(steps)) + 1).tolist()
    return [slice(begin, end) for begin, end in pairwise([0, *breaks, len(timestamps_ns)])]

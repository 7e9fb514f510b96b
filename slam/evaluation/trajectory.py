"""Trajectory: timestamps and camera poses."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray, Similarity, frozen_array

LARGEST_SECONDS = 2**63 // 10**9  # Largest time that 64 bits of nanoseconds can represent, seconds.
GAP = 5.0  # Time step above which a trajectory has a gap, relative to the median step.
MISSING = 1.5  # Time step above which a frame is missing, relative to the usual step.
NO_TIMES = "times are not known: pose k stands at k / 10 s"
FARTHEST = 1e12  # Limit of coordinates, above which sums of squares lose all digits.


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Camera poses over time, in map units or meters.

    Attributes:
        timestamps_ns: (N,) int64, strictly increasing.
        world_from_cam: (N, 4, 4) rigid matrices.
        has_times: False if the times are unknown and the timestamps only number the poses (pose k at k / 10 s); then
            they must not be compared with timestamps of other trajectories.
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
        """The same path in frame a: positions are scaled, rotated and translated, orientations rotated."""
        poses = self.world_from_cam.copy()
        poses[:, :3, :3] = a_from_world.rotation @ poses[:, :3, :3]
        poses[:, :3, 3] = a_from_world.apply(self.positions)
        return Trajectory(self.timestamps_ns, poses, self.has_times)

    def __str__(self) -> str:
        duration = f"{self.duration_s:.1f} s" if self.has_times else "without times"
        return f"{len(self)} poses, {self.length:.3f} units long, {duration}"


def nanoseconds_from_seconds(text: str) -> int:
    """Exact nanoseconds of decimal seconds such as "1403636579.763555584" or "1.5e-1".

    Fractions of a nanosecond are rounded to the nearest, half to even.

    Raises:
        ValueError: not a finite number, or too large for 64 bits (as when nanoseconds are given instead of seconds).
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
    """Nanoseconds as decimal seconds with nine decimals, the inverse of `nanoseconds_from_seconds`."""
    seconds, nanoseconds = divmod(abs(timestamp_ns), 1_000_000_000)
    return f"{'-' * (timestamp_ns < 0)}{seconds}.{nanoseconds:09d}"


def frames_missing(timestamps_ns: NDArray[np.int64]) -> int:
    """Estimated number of frames without a pose between the first and the last of increasing timestamps (N,).

    A step of about n usual steps counts n - 1 frames. The usual step is the first quartile of the steps, because
    frames without a pose only make steps longer.
    """
    steps = np.diff(timestamps_ns)
    if len(steps) == 0:
        return 0
    relative = steps / np.quantile(steps, 0.25)
    return int((np.rint(relative[relative > MISSING]) - 1).sum())


def runs_without_gaps(timestamps_ns: NDArray[np.int64]) -> list[slice]:
    """Slices of increasing timestamps (N,) without a gap, each to be drawn as one line.

    A gap is a step of more than `GAP` times the median step.
    """
    steps = np.diff(timestamps_ns)
    if len(steps) == 0:
        return [slice(0, len(timestamps_ns))]
    breaks = (np.flatnonzero(steps > GAP * np.median(steps)) + 1).tolist()
    return [slice(begin, end) for begin, end in pairwise([0, *breaks, len(timestamps_ns)])]

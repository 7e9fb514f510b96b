"""Cost of a Rerun recording: the time that logging takes, the size of the file, and the growth of memory."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from relocalizer.errors import ConfigError
from slam.events import Event, FrameProcessed, Observer


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingCost:
    """Cost of a recording.

    Attributes:
        frames: number of frames recorded.
        wall_s, cpu_s: wall and CPU time of this thread in the calls of the viewer.
        share: `wall_s` relative to the wall time of the rest of the run.
        bytes: size of the file.
        mb_per_100_frames: the same per 100 frames, megabytes (10^6 bytes).
        memory_growth_mb: growth of the memory of the process during the calls of the viewer, megabytes; None where the
            system does not tell. An upper bound: what the threads of the viewer free between the calls does not count.
    """

    frames: int
    wall_s: float
    cpu_s: float
    share: float
    bytes: int
    mb_per_100_frames: float
    memory_growth_mb: float | None


class RecordingMeter:
    """An observer that passes events on to a viewer and measures its calls."""

    def __init__(self, viewer: Observer) -> None:
        self._viewer = viewer
        self._frames = 0
        self._wall_s = self._cpu_s = 0.0
        self._grown_bytes = 0

    def __call__(self, event: Event) -> None:
        memory, wall, cpu = resident_bytes() or 0, time.perf_counter(), time.thread_time()
        self._viewer(event)
        self._wall_s += time.perf_counter() - wall
        self._cpu_s += time.thread_time() - cpu
        self._grown_bytes += (resident_bytes() or 0) - memory
        self._frames += isinstance(event, FrameProcessed)

    def cost(self, record: Path, run_wall_s: float) -> RecordingCost:
        """The cost of the finished recording of a run that took `run_wall_s`, the recording included."""
        size = record.stat().st_size
        return RecordingCost(
            frames=self._frames,
            wall_s=self._wall_s,
            cpu_s=self._cpu_s,
            share=self._wall_s / max(run_wall_s - self._wall_s, 1e-9),
            bytes=size,
            mb_per_100_frames=size / 1e4 / max(self._frames, 1),
            memory_growth_mb=None if resident_bytes() is None else self._grown_bytes / 2**20,
        )


def resident_bytes() -> int | None:
    """Resident memory of this process; None where the system does not tell (macOS)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def expect_recording_name(record: Path) -> None:
    """Check the name of a recording. Raises ConfigError."""
    if record.suffix != ".rrd":
        raise ConfigError(f"--record {record}: a recording's name ends in .rrd")

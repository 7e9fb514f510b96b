"""Checkpoints of the live trajectory and the report, so that the folder of a killed run is readable."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from relocalizer.errors import OutputError
from slam.evaluation.trajectory import Trajectory
from slam.events import Event, FrameProcessed
from slam.run.run_folder import TRAJECTORY, RunFolder, logger

_CHECKPOINT_S = 5.0  # minimum interval between two checkpoints, seconds
# Maximum fraction of the wall time for checkpoints; long trajectories are therefore saved less often.
_MAX_TIME_FRACTION = 0.05


class Checkpoints:
    """An observer that saves the live trajectory periodically."""

    def __init__(self, folder: RunFolder, report: dict[str, Any], *, every_s: float = _CHECKPOINT_S) -> None:
        self._folder, self._report, self._every_s = folder, report, every_s
        self._times: list[int] = []
        self._poses: list[np.ndarray[Any, np.dtype[np.float64]]] = []
        self._frames = 0
        self._due = time.monotonic() + every_s
        self._has_warned = False

    def __call__(self, event: Event) -> None:
        if not isinstance(event, FrameProcessed):
            return
        self._frames += 1
        if event.world_from_cam is not None:
            self._times.append(event.frame.timestamp_ns)
            self._poses.append(event.world_from_cam.as_matrix())
        if time.monotonic() >= self._due:
            self._save_if_possible()

    def _save_if_possible(self) -> None:
        """Save, or warn once and retry at the next checkpoint: a full disk may have room again by then."""
        try:
            self.save()
        except OutputError as error:
            self._due = time.monotonic() + self._every_s
            if not self._has_warned:
                logger.warning("%s", error)
                self._has_warned = True

    def save(self) -> None:
        """Write the trajectory and the report of the frames so far. Raises OutputError when they cannot be written."""
        started = time.monotonic()
        live = Trajectory(np.array(self._times, np.int64), np.array(self._poses).reshape(-1, 4, 4))
        self._folder.write_trajectory(TRAJECTORY, live)
        self._folder.write_report({**self._report, "frames": self._frames, "tracked": len(live)})
        took = time.monotonic() - started
        self._due = started + max(self._every_s, took / _MAX_TIME_FRACTION)

"""A run folder: what a run leaves on disk, written so that a crash or Ctrl-C leaves something readable."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from relocalizer.errors import OutputError
from slam.evaluation.trajectory import Trajectory
from slam.events import Event, FrameProcessed
from slam.run.run_folder import TRAJECTORY, RunFolder, logger

_CHECKPOINT_S = 5.0
# A checkpoint may take this share of the time at most; long runs are saved less often.
_CHECKPOINT_SHARE = 0.05


class Checkpoints:
    """An observer that saves the live trajectory now and then, so that even a killed run can be read."""

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
        """A disk that refuses now may have room again at the next time."""
        try:
            self.save()
        except OutputError as error:
            self._due = time.monotonic() + self._every_s
            if not self._has_warned:
                logger.warning("%s", error)
                self._has_warned = True

    def save(self) -> None:
        """Write what there is. Raises OutputError when the disk refuses."""
        started = time.monotonic()
        live = Trajectory(np.array(self._times, np.int64), np.array(self._poses).reshape(-1, 4, 4))
        self._folder.write_trajectory(TRAJECTORY, live)
        self._folder.write_report({**self._report, "frames": self._frames, "tracked": len(live)})
        took = time.monotonic() - started
        self._due = started + max(self._every_s, took / _CHECKPOINT_SHARE)

"""One complete run without a run folder, as the ablation and the perturbed runs need it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slam.config.schema import SlamConfig
from slam.run import run_verdict, runner
from slam.run.calibration_pass import set_up
from slam.run.camera_before_run import calibrate_first
from slam.run.run_statistics import RunStatistics
from slam.system import Slam

if TYPE_CHECKING:
    from slam.evaluation.trajectory import Trajectory
    from slam.input.frame_source import FrameSource


@dataclass(frozen=True, slots=True, eq=False)
class CompleteRun:
    """A finished run with what was counted in it; `cpu_s` is the CPU time of all threads, seconds."""

    outcome: runner.RunOutcome
    statistics: RunStatistics
    truth: Trajectory | None
    cpu_s: float

    @property
    def reason(self) -> str:
        """Why the result is unusable; empty if it is usable."""
        return run_verdict.no_result(self.outcome, self.statistics)


def run_completely(config: SlamConfig, source: FrameSource) -> CompleteRun:
    """Calibrate if the source has no camera, run SLAM over all frames, and finish.

    Raises:
        UserError: as `Slam.create` and `runner.run`.
    """
    statistics = RunStatistics()
    cpu_before = time.process_time()
    frames, calibration = calibrate_first(source, config)
    slam = Slam.create(config, observers=[statistics], mask=frames.mask)
    set_up(slam, calibration)
    outcome = runner.run(frames, slam)
    outcome.raise_failure()
    cpu_s = time.process_time() - cpu_before
    outcome = runner.with_metric_scale(outcome, slam, config.metric_scale.scale_from, frames.ground_truth)
    return CompleteRun(outcome, statistics, frames.ground_truth, cpu_s)

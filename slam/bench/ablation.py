"""What each part of the system is worth: the same frames, again without it.

A part is left out by a setting, so that everything else is what it is. Two figures need no run of their own: the
poses as they were live, and the path with all steps of one length, which is what is left of a run when nothing
decides lengths. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from relocalizer.errors import TrajectoryError
from relocalizer.geometry import FloatArray
from slam.config.loading import with_overrides
from slam.config.schema import SlamConfig
from slam.evaluation.metrics import evaluate
from slam.evaluation.trajectory import Trajectory
from slam.run import run_verdict, runner
from slam.run.run_statistics import RunStatistics
from slam.system import Slam

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from slam.input.frame_source import FrameSource
    from slam.result import SlamResult


LIVE, ONE_LENGTH = "as it was live", "lengths: all steps between keyframes alike"


@dataclass(frozen=True, slots=True)
class Variant:
    """A part of the system, and the settings that leave it out."""

    name: str
    settings: tuple[str, ...]


WHOLE = Variant("the whole", ())
PARTS = (
    Variant("without the last refinement", ("bundle_adjustment.final=never",)),
    Variant("without window refinement", ("bundle_adjustment.iterations=0",)),
    Variant("without any refinement", ("bundle_adjustment.iterations=0", "bundle_adjustment.final=never")),
    Variant("without finding what is left of the lens", ("bundle_adjustment.calibrate=never",)),
    Variant("without loops", ("loop_closing.candidates=0",)),
    Variant("with every loop that looks like one closed", ("loop_closing.robust=false",)),
    Variant("without pair priors in refinements", ("bundle_adjustment.pair_priors=false",)),
    Variant("without finding landmarks again", ("landmarks.search_keyframes=0", "bundle_adjustment.final_covisible=0")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationRow:
    """One row: what came out without a part.

    Attributes:
        settings: what was changed for it, as for `--set`.
        reason: why the result is of no use, or could not be measured; empty otherwise.
        ate_sim3, ate_se3: RMSE in the ground truth's unit; None without one. SE(3) means something for meters only.
        cpu_s: of all threads, the last refinement included; None where the figure cost no run of its own.
    """

    name: str
    settings: tuple[str, ...]
    reason: str
    frames: int
    tracked: int
    coverage: float
    keyframes: int
    loops: int
    ate_sim3: float | None
    ate_se3: float | None
    wall_s: float | None
    cpu_s: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def measure_parts(
    config: SlamConfig,
    open_frames: Callable[[], FrameSource],
    *,
    parts: Sequence[Variant] = PARTS,
    on_run: Callable[[Variant, int, int], None] | None = None,
) -> list[AblationRow]:
    """Run SLAM over the same frames as a whole, then without each part. Ctrl-C ends it with the rows there are.

    Args:
        open_frames: opens the source anew for every run.
        on_run: told before each run which it is, its number from 1, and how many there are.

    Raises:
        UserError: as `Slam.create` and `runner.run`.
    """
    rows: list[AblationRow] = []
    everything = [WHOLE, *parts]
    for number, part in enumerate(everything, start=1):
        if on_run:
            on_run(part, number, len(everything))
        statistics = RunStatistics()
        frames = open_frames()
        slam = Slam.create(with_overrides(config, part.settings), observers=[statistics], mask=frames.mask)
        cpu_before = time.process_time()
        outcome = runner.run(frames, slam)
        outcome.raise_failure()
        cpu_s = time.process_time() - cpu_before
        outcome = runner.with_metric_scale(outcome, slam, config.metric_scale.scale_from, frames.ground_truth)
        if outcome.interrupted:
            break
        result, truth = outcome.result, frames.ground_truth
        row = _row(part, outcome, statistics, result.trajectory, truth, outcome.wall_s, cpu_s)
        rows.append(row)
        if part is WHOLE:
            rows.append(_row(Variant(LIVE, ()), outcome, statistics, result.online, truth, None, None))
            alike = with_equal_steps(result)
            rows.append(_row(Variant(ONE_LENGTH, ()), outcome, statistics, alike, truth, None, None))
    return rows


def _row(
    part: Variant,
    outcome: runner.RunOutcome,
    statistics: RunStatistics,
    trajectory: Trajectory,
    truth: Trajectory | None,
    wall_s: float | None,
    cpu_s: float | None,
) -> AblationRow:
    sim3, se3, unmeasured = _errors(trajectory, truth, outcome.expected_ns)
    return AblationRow(
        name=part.name,
        settings=part.settings,
        reason=run_verdict.no_result(outcome, statistics) or unmeasured,
        frames=outcome.frames,
        tracked=len(trajectory),
        coverage=len(trajectory) / outcome.frames,
        keyframes=len(outcome.result.keyframe_trajectory),
        loops=statistics.loops_accepted,
        ate_sim3=sim3,
        ate_se3=se3,
        wall_s=wall_s,
        cpu_s=cpu_s,
    )


def _errors(
    trajectory: Trajectory, truth: Trajectory | None, expected_ns: NDArray[np.int64]
) -> tuple[float | None, float | None, str]:
    """ATE under Sim(3) and SE(3), and why there is none."""
    if truth is None or not len(trajectory):
        return None, None, ""
    try:
        found = evaluate(trajectory, truth, expected=expected_ns)
    except TrajectoryError as error:
        return None, None, str(error)
    return found.ate_sim3.rmse, found.ate_se3.rmse, ""


def with_equal_steps(result: SlamResult) -> Trajectory:
    """The result's path with its rotations and directions kept and the lengths thrown away.

    Every step from a keyframe to the next gets the median length, and what lies between two keyframes is stretched
    with their step. It bounds what a system that knows rotations and directions, and no lengths, can reach on a
    path without loops: here the directions are as good as those of the whole system.
    """
    path, times = result.trajectory, result.keyframe_trajectory.timestamps_ns
    rows = np.searchsorted(path.timestamps_ns, times)
    if len(rows) < 2:
        return path
    lengths = np.linalg.norm(np.diff(path.positions[rows], axis=0), axis=1)
    alike = float(np.median(lengths))
    stretch = np.divide(alike, lengths, out=np.ones_like(lengths), where=lengths > 0)
    # Frames before the first keyframe or after the last go with the nearest step.
    step_of = np.clip(np.searchsorted(rows, np.arange(len(path)), side="right") - 1, 0, len(stretch) - 1)
    poses = path.world_from_cam.copy()
    poses[:, :3, 3] = _walked(path.positions, rows, stretch, step_of)
    return Trajectory(path.timestamps_ns, poses)


def _walked(
    positions: FloatArray, rows: NDArray[np.intp], stretch: FloatArray, step_of: NDArray[np.intp]
) -> FloatArray:
    """Positions (N, 3) when each step begins where the one before it ends."""
    steps = np.diff(positions[rows], axis=0) * stretch[:, None]
    starts = np.vstack([positions[rows[0]], positions[rows[0]] + np.cumsum(steps, axis=0)])
    return np.asarray(starts[step_of] + (positions - positions[rows[step_of]]) * stretch[step_of][:, None])

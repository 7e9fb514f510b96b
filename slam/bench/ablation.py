"""Ablation: runs SLAM over the same frames with and without each part of the system.

A part is disabled by a setting, so everything else is unchanged. Two rows need no run of their own: the live poses,
and the path with equal steps between keyframes, which is the result without any scale estimation. No files are
written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from relocalizer.errors import TrajectoryError
from relocalizer.geometry import FloatArray
from slam.bench.complete_run import run_completely
from slam.config.loading import with_overrides
from slam.config.schema import SlamConfig
from slam.evaluation.metrics import evaluate
from slam.evaluation.trajectory import Trajectory
from slam.run import run_verdict, runner
from slam.run.run_statistics import RunStatistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from slam.input.frame_source import FrameSource
    from slam.result import SlamResult


LIVE, ONE_LENGTH = "as it was live", "lengths: all steps between keyframes alike"


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant of the system: its name and the settings that disable a part."""

    name: str
    settings: tuple[str, ...]


WHOLE = Variant("the whole", ())
PARTS = (
    Variant("without the final bundle adjustment", ("bundle_adjustment.final=never",)),
    Variant("without local bundle adjustment", ("bundle_adjustment.iterations=0",)),
    Variant("without any bundle adjustment", ("bundle_adjustment.iterations=0", "bundle_adjustment.final=never")),
    Variant("without estimating residual distortion", ("bundle_adjustment.calibrate=never",)),
    Variant("without loops", ("loop_closing.candidates=0",)),
    Variant("with every verified loop closed", ("loop_closing.robust=false",)),
    Variant("without pair priors in bundle adjustment", ("bundle_adjustment.pair_priors=false",)),
    Variant(
        "without matching landmarks by projection",
        ("landmarks.search_keyframes=0", "bundle_adjustment.final_covisible=0"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationRow:
    """Result of one variant.

    Attributes:
        settings: changed settings, as for `--set`.
        reason: why the result is unusable or could not be evaluated; empty otherwise.
        ate_sim3, ate_se3: RMSE in the ground truth's unit; None without ground truth. SE(3) is meaningful only if the
            estimate is in meters.
        wall_s: wall time, seconds; None for a row without a run of its own.
        cpu_s: CPU time of all threads, including the final refinement, seconds; None for a row without a run.
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
    """Run the complete system and each variant over the same frames. Ctrl-C returns the rows measured so far.

    Args:
        open_frames: opens the source again for every run.
        on_run: called before each run with the variant, its number from 1, and the number of runs.

    Raises:
        UserError: as `Slam.create` and `runner.run`.
    """
    rows: list[AblationRow] = []
    everything = [WHOLE, *parts]
    for number, part in enumerate(everything, start=1):
        if on_run:
            on_run(part, number, len(everything))
        run = run_completely(with_overrides(config, part.settings), open_frames())
        outcome, statistics, truth = run.outcome, run.statistics, run.truth
        if outcome.interrupted:
            break
        result = outcome.result
        row = _row(part, outcome, statistics, result.trajectory, truth)
        rows.append(replace(row, wall_s=outcome.wall_s, cpu_s=run.cpu_s))
        if part is WHOLE:
            rows.append(_row(Variant(LIVE, ()), outcome, statistics, result.online, truth))
            alike = with_equal_steps(result)
            rows.append(_row(Variant(ONE_LENGTH, ()), outcome, statistics, alike, truth))
    return rows


def _row(
    part: Variant,
    outcome: runner.RunOutcome,
    statistics: RunStatistics,
    trajectory: Trajectory,
    truth: Trajectory | None,
) -> AblationRow:
    """The row without times, for one trajectory of a run."""
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
        wall_s=None,
        cpu_s=None,
    )


def _errors(
    trajectory: Trajectory, truth: Trajectory | None, expected_ns: NDArray[np.int64]
) -> tuple[float | None, float | None, str]:
    """ATE after Sim(3) and after SE(3), and the reason if they cannot be computed."""
    if truth is None or not len(trajectory):
        return None, None, ""
    try:
        found = evaluate(trajectory, truth, expected=expected_ns)
    except TrajectoryError as error:
        return None, None, str(error)
    return found.ate_sim3.rmse, found.ate_se3.rmse, ""


def with_equal_steps(result: SlamResult) -> Trajectory:
    """The result's path with equal steps between keyframes; rotations and directions are kept.

    Every step between consecutive keyframes is scaled to the median length, together with the frames in between. It is
    an upper bound for a system that estimates rotations and directions but no scale, on a path without loops, because
    its directions are as accurate as those of the complete system.
    """
    path, times = result.trajectory, result.keyframe_trajectory.timestamps_ns
    rows = np.searchsorted(path.timestamps_ns, times)
    if len(rows) < 2:
        return path
    lengths = np.linalg.norm(np.diff(path.positions[rows], axis=0), axis=1)
    median_length = float(np.median(lengths))
    stretch = np.divide(median_length, lengths, out=np.ones_like(lengths), where=lengths > 0)
    # Frames before the first keyframe or after the last are scaled with the nearest step.
    step_of = np.clip(np.searchsorted(rows, np.arange(len(path)), side="right") - 1, 0, len(stretch) - 1)
    poses = path.world_from_cam.copy()
    poses[:, :3, 3] = _scaled_positions(path.positions, rows, stretch, step_of)
    return Trajectory(path.timestamps_ns, poses)


def _scaled_positions(
    positions: FloatArray, rows: NDArray[np.intp], stretch: FloatArray, step_of: NDArray[np.intp]
) -> FloatArray:
    """Positions (N, 3) with scaled steps, each of which begins where the previous one ends."""
    steps = np.diff(positions[rows], axis=0) * stretch[:, None]
    starts = np.vstack([positions[rows[0]], positions[rows[0]] + np.cumsum(steps, axis=0)])
    return np.asarray(starts[step_of] + (positions - positions[rows[step_of]]) * stretch[step_of][:, None])

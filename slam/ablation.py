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
from slam import pipeline
from slam.config import SlamConfig
from slam.evaluate import evaluate
from slam.settings import with_overrides
from slam.trajectory import Trajectory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from slam.frame_source import FrameSource
    from slam.slam_result import SlamResult

LIVE, ONE_LENGTH = "as it was live", "lengths: all steps between keyframes alike"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the system, and the settings that leave it out."""

    name: str
    settings: tuple[str, ...]


WHOLE = Part("the whole", ())
PARTS = (
    Part("without the last refinement", ("refinement.final=never",)),
    Part("without window refinement", ("refinement.iterations=0",)),
    Part("without any refinement", ("refinement.iterations=0", "refinement.final=never")),
    Part("without finding what is left of the lens", ("refinement.calibrate=never",)),
    Part("without loops", ("linking.loop_candidates=0",)),
    Part("with every loop that looks like one closed", ("linking.robust=false",)),
    Part("without pair priors in refinements", ("refinement.pair_priors=false",)),
    Part("without finding landmarks again", ("landmarks.refind_keyframes=0", "refinement.final_related=0")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """One row: what came out without a part.

    Attributes:
        settings: what was changed for it, as for `--set`.
        reason: why the result is of no use, or could not be measured; empty otherwise.
        ate_sim3, ate_se3: RMSE in the ground truth's unit; None without one. SE(3) means something for metres only.
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
    parts: Sequence[Part] = PARTS,
    on_run: Callable[[Part, int, int], None] | None = None,
) -> list[Worth]:
    """Run SLAM over the same frames as a whole, then without each part. Ctrl-C ends it with the rows there are.

    Args:
        open_frames: opens the source anew for every run.
        on_run: told before each run which it is, its number from 1, and how many there are.

    Raises:
        UserError: as `pipeline.build` and `pipeline.run`.
    """
    rows: list[Worth] = []
    everything = [WHOLE, *parts]
    for number, part in enumerate(everything, start=1):
        if on_run:
            on_run(part, number, len(everything))
        statistics = pipeline.RunStatistics()
        frames = open_frames()
        slam = pipeline.build(with_overrides(config, part.settings), observers=[statistics], mask=frames.mask)
        cpu_before = time.process_time()
        outcome = pipeline.run(frames, slam)
        outcome.raise_failure()
        cpu_s = time.process_time() - cpu_before
        outcome = pipeline.anchored(outcome, slam, config.anchor.scale_from, frames.ground_truth)
        if outcome.interrupted:
            break
        result, truth = outcome.result, frames.ground_truth
        row = _row(part, outcome, statistics, result.trajectory, truth, outcome.wall_s, cpu_s)
        rows.append(row)
        if part is WHOLE:
            rows.append(_row(Part(LIVE, ()), outcome, statistics, result.online, truth, None, None))
            alike = with_steps_alike(result)
            rows.append(_row(Part(ONE_LENGTH, ()), outcome, statistics, alike, truth, None, None))
    return rows


def _row(
    part: Part,
    outcome: pipeline.RunOutcome,
    statistics: pipeline.RunStatistics,
    trajectory: Trajectory,
    truth: Trajectory | None,
    wall_s: float | None,
    cpu_s: float | None,
) -> Worth:
    sim3, se3, unmeasured = _errors(trajectory, truth, outcome.expected_ns)
    return Worth(
        name=part.name,
        settings=part.settings,
        reason=pipeline.no_result(outcome, statistics) or unmeasured,
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


def with_steps_alike(result: SlamResult) -> Trajectory:
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

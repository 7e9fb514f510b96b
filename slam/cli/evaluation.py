"""`slam eval`: evaluation of a trajectory against the ground truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relocalizer.errors import TrajectoryError
from slam.cli.options import UNUSABLE, AsJson, Times, complain, expect_new, say

if TYPE_CHECKING:
    from slam.evaluation.metrics import Evaluation
    from slam.evaluation.pose_files import PoseFile

MAX_OFFSET_S = 4e9  # maximum clock offset: up to the Unix epoch, within 64 bits of nanoseconds, seconds


def evaluate_command(
    estimate: Annotated[
        Path, typer.Argument(metavar="ESTIMATE", help="Run folder, or a trajectory file (TUM, KITTI, EuRoC).")
    ],
    ground_truth: Annotated[Path, typer.Argument(metavar="GROUNDTRUTH", help="Trajectory file with the ground truth.")],
    as_json: AsJson = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plot trajectories and errors to a .png, .pdf or .svg file.")
    ] = None,
    max_ate: Annotated[
        float | None, typer.Option(metavar="ATE", min=0, help="Exit with code 1 if the ATE (Sim(3), RMSE) is larger.")
    ] = None,
    max_difference: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, max=1e6, help="Maximum time difference of two associated poses, seconds."
        ),
    ] = 0.02,
    times: Times = None,
    time_offset: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=-MAX_OFFSET_S,
            max=MAX_OFFSET_S,
            help="Clock offset added to the estimate's timestamps, seconds.",
        ),
    ] = 0.0,
) -> None:
    """Compare a trajectory with the ground truth: ATE after Sim(3) and SE(3) alignment, RPE, coverage.

    Examples:

      slam eval runs/desk-1 groundtruth.txt

      slam eval trajectory.txt groundtruth.txt --plot errors.png --max-ate 0.05

      slam eval runs/kitti07 poses/07.txt

    Poses without timestamps (KITTI) are associated by frame number with a run folder, otherwise line by line if both
    files have the same number of poses, otherwise by --times. A header line with column names determines the column
    order of a file.

    The scale of monocular SLAM is unknown: the ATE after SE(3) alignment is meaningful only with --scale-from.
    """
    if plot is not None:
        expect_new(plot, option="--plot")
    from dataclasses import replace

    from slam.evaluation.metrics import evaluate
    from slam.evaluation.plot import plot_evaluation
    from slam.evaluation.pose_files import open_poses, pair
    from slam.evaluation.trajectory_files import read_note

    opened = open_poses(estimate), open_poses(ground_truth)
    for poses in opened:
        for remark in poses.file.remarks:
            say(f"{poses.path}: {remark}")
    paired = pair(*opened, times)
    if paired.said:
        say(paired.said)
    shifted = replace(paired.estimate, timestamps_ns=paired.estimate.timestamps_ns + round(time_offset * 1e9))
    result = evaluate(
        shifted,
        paired.ground_truth,
        max_difference_s=max_difference,
        expected=paired.expected,
        matched_by=paired.matched_by,
    )
    _check_quaternion_order(result, *opened)
    _show(result, read_note(opened[0].path), as_json=as_json)
    if plot is not None:
        plot_evaluation(result, plot)
        say(f"wrote {plot}")
    if max_ate is not None and result.ate_sim3.rmse > max_ate:
        complain(f"the ATE of {result.ate_sim3.rmse:.4f} is above --max-ate {max_ate:g}")
        raise typer.Exit(UNUSABLE)


def _check_quaternion_order(result: Evaluation, estimate: PoseFile, truth: PoseFile) -> None:
    """Raises TrajectoryError if the orientations agree for another quaternion order that no header excludes."""
    check = result.orientation_check
    files = {"estimate": estimate, "ground truth": truth}
    possible = [] if check is None else [r for r in check.readings if r.read_as == files[r.side].file.assumed_order]
    if not possible or check is None:
        return
    least = possible[0].residual_deg
    alike = [reading for reading in possible if reading.residual_deg < 1.5 * least + 0.1]
    fits = ", or if ".join(f"those of {files[r.side].path} are {r.order} and not {r.read_as}" for r in alike)
    raise TrajectoryError(
        f"the quaternions disagree by {check.residual_deg:.1f} deg at the median, and by {least:.2g} deg if {fits}; "
        "say it in a header line of that file: # timestamp tx ty tz qx qy qz qw, or ... qw qx qy qz"
    )


def _show(result: Evaluation, note: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**result.to_dict(), "note": note}, indent=2))
        return
    from slam.cli.text_tables import evaluation_rows, render

    print(result.title)
    if note:
        print(f"estimate: {note}")
    print(render(evaluation_rows(result.to_dict())))
    for sentence in result.notes:
        print(f"note: {sentence}")

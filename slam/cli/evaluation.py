"""`slam eval`: a trajectory against the truth."""

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

LARGEST_OFFSET = 4e9  # seconds; from any clock to one that began in 1970, in 64 bits of nanoseconds


def evaluate_command(
    estimate: Annotated[
        Path, typer.Argument(metavar="ESTIMATE", help="Run folder, or a trajectory file (TUM, KITTI, EuRoC).")
    ],
    ground_truth: Annotated[Path, typer.Argument(metavar="GROUNDTRUTH", help="Trajectory file with the truth.")],
    as_json: AsJson = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw paths and errors into a .png, .pdf or .svg.")
    ] = None,
    max_ate: Annotated[
        float | None, typer.Option(metavar="ATE", min=0, help="Exit with 1 when the ATE (Sim(3), RMSE) is larger.")
    ] = None,
    max_difference: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, max=1e6, help="Stamps further apart than this do not belong together, seconds."
        ),
    ] = 0.02,
    times: Times = None,
    time_offset: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=-LARGEST_OFFSET,
            max=LARGEST_OFFSET,
            help="Added to the estimate's times, where the clocks differ, seconds.",
        ),
    ] = 0.0,
) -> None:
    """Compare a trajectory with the truth: ATE under Sim(3) and SE(3), RPE, coverage.

    Examples:

      slam eval runs/desk-1 groundtruth.txt

      slam eval trajectory.txt groundtruth.txt --plot errors.png --max-ate 0.05

      slam eval runs/kitti07 poses/07.txt

    Poses without times (KITTI) are paired by frame number with those of a run folder, else line by line where there
    are as many, else by --times. A header line that names the columns of a file decides their order.

    One camera has no scale: the figure after SE(3) means something only when the run was made with --scale-from.
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
    moved = replace(paired.estimate, timestamps_ns=paired.estimate.timestamps_ns + round(time_offset * 1e9))
    result = evaluate(
        moved,
        paired.ground_truth,
        max_difference_s=max_difference,
        expected=paired.expected,
        matched_by=paired.matched_by,
    )
    _refuse_order(result, *opened)
    _show(result, read_note(opened[0].path), as_json=as_json)
    if plot is not None:
        plot_evaluation(result, plot)
        say(f"wrote {plot}")
    if max_ate is not None and result.ate_sim3.rmse > max_ate:
        complain(f"the ATE of {result.ate_sim3.rmse:.4f} is above --max-ate {max_ate:g}")
        raise typer.Exit(UNUSABLE)


def _refuse_order(result: Evaluation, estimate: PoseFile, truth: PoseFile) -> None:
    """Raises TrajectoryError when the orientations agree in an order of a quaternion that no header excludes."""
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

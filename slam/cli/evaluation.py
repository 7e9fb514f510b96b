"""`slam eval`: a trajectory against the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from slam.cli.options import UNUSABLE, AsJson, complain, expect_new, say


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
        typer.Option(metavar="SECONDS", min=0, help="Stamps further apart than this do not belong together, seconds."),
    ] = 0.02,
) -> None:
    """Compare a trajectory with the truth: ATE under Sim(3) and SE(3), RPE, coverage.

    Examples:

      slam eval runs/desk-1 groundtruth.txt

      slam eval trajectory.txt groundtruth.txt --plot errors.png --max-ate 0.05

    One camera has no scale: the figure after SE(3) means something only when the run was made with --scale-from.
    """
    if plot is not None:
        expect_new(plot, option="--plot")
    from slam.evaluate import evaluate, plot_evaluation
    from slam.trajectory import read_note, read_trajectory, recognise_format

    path = estimate / "trajectory.txt" if estimate.is_dir() else estimate
    note = read_note(path)
    timeless = [file for file in (path, ground_truth) if recognise_format(file) == "kitti"]
    if len(timeless) == 1:
        say(f"{timeless[0]}: KITTI's format has no times; 10 poses a second assumed")
    result = evaluate(read_trajectory(path), read_trajectory(ground_truth), max_difference_s=max_difference)
    if as_json:
        print(json.dumps({**result.to_dict(), "note": note}, indent=2))
    else:
        from slam.console import evaluation_rows, render

        print(result.title)
        if note:
            print(f"estimate: {note}")
        print(render(evaluation_rows(result.to_dict())))
    if plot is not None:
        plot_evaluation(result, plot)
        say(f"wrote {plot}")
    if max_ate is not None and result.ate_sim3.rmse > max_ate:
        complain(f"the ATE of {result.ate_sim3.rmse:.4f} is above --max-ate {max_ate:g}")
        raise typer.Exit(UNUSABLE)

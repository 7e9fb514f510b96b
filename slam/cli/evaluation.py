"""`slam eval`: evaluation of trajectories against the ground truth."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relocalizer.errors import ConfigError, TrajectoryError, UserError
from slam.cli.options import UNUSABLE, USER_ERROR, AsJson, Times, complain, expect_new, say

if TYPE_CHECKING:
    from slam.evaluation.metrics import Evaluation
    from slam.evaluation.pose_files import PoseFile

MAX_OFFSET_S = 4e9  # maximum clock offset: up to the Unix epoch, within 64 bits of nanoseconds, seconds


def evaluate_command(
    estimates: Annotated[
        list[Path],
        typer.Argument(metavar="ESTIMATE...", help="Run folders, or trajectory files (TUM, KITTI, EuRoC)."),
    ],
    ground_truth: Annotated[Path, typer.Argument(metavar="GROUNDTRUTH", help="Trajectory file with the ground truth.")],
    as_json: AsJson = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plot trajectories and errors to a .png, .pdf or .svg file.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--html",
            metavar="FILE",
            help="Report with tables and plots, of one or several estimates, as one .html.",
        ),
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
    """Compare trajectories with the ground truth: ATE after Sim(3) and SE(3) alignment, RPE, scale drift, coverage.

    Examples:

      slam eval runs/desk-1 groundtruth.txt

      slam eval trajectory.txt groundtruth.txt --plot errors.png --max-ate 0.05

      slam eval runs/kitti07 poses/07.txt

      slam eval runs/desk-1 runs/desk-2 groundtruth.txt -o desk.html

    Several estimates give a line each, their mean, median and spread. Each has its own alignment.

    Poses without timestamps (KITTI) are associated by frame number with a run folder, otherwise line by line if both
    files have the same number of poses, otherwise by --times. A header line with column names determines the column
    order of a file.

    The scale of monocular SLAM is unknown: the ATE after SE(3) alignment is meaningful only with --scale-from.
    """
    for path, option in ((plot, "--plot"), (html, "--html")):
        if path is not None:
            expect_new(path, option=option)
    if plot is not None and len(estimates) > 1:
        raise ConfigError("--plot: draws one estimate; --html draws several")
    clock = _Clock(times, time_offset, max_difference)
    found: dict[str, Evaluation] = {}
    faults = 0
    for estimate in estimates:
        try:
            found[str(estimate)] = _evaluated(estimate, ground_truth, clock)
        except UserError as error:
            if len(estimates) == 1:
                raise
            complain(str(error) if str(estimate) in str(error) else f"{estimate}: {error}")
            faults += 1
    if found:
        _report(found, list(estimates), as_json=as_json, plot=plot, html=html)
    if faults:
        raise typer.Exit(USER_ERROR)
    worst = max(own.ate_sim3.rmse for own in found.values())
    if max_ate is not None and worst > max_ate:
        complain(f"the ATE of {worst:.4f} is above --max-ate {max_ate:g}")
        raise typer.Exit(UNUSABLE)


@dataclass(frozen=True)
class _Clock:
    """How times are read and compared."""

    times: Path | None
    offset_s: float
    max_difference_s: float


def _evaluated(estimate: Path, ground_truth: Path, clock: _Clock) -> Evaluation:
    """The evaluation of one estimate. Raises UserError if the two cannot be compared."""
    from dataclasses import replace

    from slam.evaluation.metrics import evaluate
    from slam.evaluation.pose_files import open_poses, pair

    opened = open_poses(estimate), open_poses(ground_truth)
    for poses in opened:
        for remark in poses.file.remarks:
            say(f"{poses.path}: {remark}")
    paired = pair(*opened, clock.times)
    if paired.said:
        say(paired.said)
    stamps = paired.estimate.timestamps_ns + round(clock.offset_s * 1e9)
    result = evaluate(
        replace(paired.estimate, timestamps_ns=stamps),
        paired.ground_truth,
        max_difference_s=clock.max_difference_s,
        expected=paired.expected,
        matched_by=paired.matched_by,
    )
    _check_quaternion_order(result, *opened)
    return result


def _report(
    found: dict[str, Evaluation], estimates: list[Path], *, as_json: bool, plot: Path | None, html: Path | None
) -> None:
    """Print the figures, and write the plot and the report."""
    if len(estimates) == 1:
        from slam.evaluation.pose_files import open_poses
        from slam.evaluation.trajectory_files import read_note

        [result] = found.values()
        _show(result, read_note(open_poses(estimates[0]).path), as_json=as_json)
        if plot is not None:
            from slam.evaluation.plot import plot_evaluation

            plot_evaluation(result, plot)
            say(f"wrote {plot}")
    else:
        _show_several(found, as_json=as_json)
    if html is not None:
        _write_report(found, html)


def _show_several(found: dict[str, Evaluation], *, as_json: bool) -> None:
    from slam.benchmarks.html_report import cell_text
    from slam.benchmarks.trajectory_report import compare, report_values
    from slam.cli.text_tables import render

    if as_json:
        print(json.dumps(report_values(found), indent=2))
        return
    for table in compare(_by_short_name(found)).tables:
        print(render([table.columns, *([cell_text(cell) for cell in row] for row in table.rows)], width=150))
        if table.note:
            print(f"note: {table.note}")


def _by_short_name(found: dict[str, Evaluation]) -> dict[str, Evaluation]:
    """The evaluations by the names of their files or folders, if these differ."""
    names = [Path(path).name for path in found]
    return dict(zip(names, found.values(), strict=True)) if len(set(names)) == len(names) else found


def _write_report(found: dict[str, Evaluation], path: Path) -> None:
    from slam.benchmarks.html_report import html_report
    from slam.benchmarks.session import process_values
    from slam.benchmarks.trajectory_report import compare
    from slam.run.files import write_atomically

    values = {"done": len(found), "items": len(found), "seconds": 0.0, "faults": [], "retried": []}
    page = html_report(compare(_by_short_name(found)), {**values, "sessions": [process_values(sys.argv[1:])]})
    write_atomically(path, page)
    say(f"wrote {path}")


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
        print(json.dumps({**result.to_dict(), "note": note, "scale_drift": _drift(result)}, indent=2))
        return
    from slam.cli.text_tables import evaluation_rows, render

    print(result.title)
    if note:
        print(f"estimate: {note}")
    rows = evaluation_rows(result.to_dict())
    if drift := _drift(result):
        words = f"{drift['change_percent']:+.2g} % from first to last, spread {drift['spread_percent']:.2g} %"
        rows.append(("scale drift", words))
    print(render(rows))
    for sentence in result.notes:
        print(f"note: {sentence}")


def _drift(result: Evaluation) -> dict[str, float] | None:
    """Change and spread of the scale along the path, percent; None on a path too short to tell."""
    from slam.evaluation.path_errors import scale_drift

    drift = scale_drift(result.aligned, result.reference)
    if drift is None:
        return None
    return {"change_percent": drift.change_percent, "spread_percent": drift.spread_percent}

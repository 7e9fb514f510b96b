"""`slam plot`: a image of a run from above."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slam.cli.options import expect_new, say


def plot(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="PNG file. Default: trajectory.png in the run folder, anew."),
    ] = None,
) -> None:
    """Draw a run from above: path, keyframes, landmarks, loop closures and lost stretches.

    Every run leaves this image in its folder.

    Examples:

      slam plot runs/desk

      slam plot runs/desk -o desk.png
    """
    if out is not None:
        expect_new(out)
    from relocalizer.maps.map_reader import load_map
    from slam.run.report import read_report
    from slam.run.run_folder import MAP
    from slam.run.trajectory_plot import PLOT, write_plot

    name = str(read_report(run)["source"]["name"])
    path = run / PLOT if out is None else out
    write_plot(path, run, load_map(run / MAP) if (run / MAP).is_dir() else None, name)
    say(f"wrote {path}")

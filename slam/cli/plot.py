"""`slam plot`: an image or a video of a run from above."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slam.cli.options import expect_new, say


def plot(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="PNG file. Default: trajectory.png of the run, redrawn."),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(
            "--video",
            metavar="FILE",
            help="Write a video (.mp4) or moving image (.webp, .gif) instead: the keyframes beside the growing map.",
        ),
    ] = None,
) -> None:
    """Draw a run from above: path, keyframes, landmarks, loop closures and lost intervals.

    Every run leaves this image in its folder.

    Examples:

      slam plot runs/desk

      slam plot runs/desk -o desk.png

      slam plot runs/desk --video desk.mp4
    """
    for path, option in ((out, "--out"), (video, "--video")):
        if path is not None:
            expect_new(path, option=option)
    from relocalizer.maps.map_reader import load_map
    from slam.run.report import read_report
    from slam.run.run_folder import MAP
    from slam.run.trajectory_plot import PLOT, write_plot

    name = str(read_report(run)["source"]["name"])
    saved = load_map(run / MAP) if (run / MAP).is_dir() else None
    if video is not None:
        from slam.run.run_video import write_video

        write_video(video, run, saved, name)
        say(f"wrote {video}")
        return
    path = run / PLOT if out is None else out
    write_plot(path, run, saved, name)
    say(f"wrote {path}")

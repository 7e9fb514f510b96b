"""`slam convert`: trajectories from one format to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slam.cli.options import Format, expect_new, say


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Trajectory file, or a run folder.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to make: .txt or .tum, .kitti, .csv (EuRoC).")],
    from_format: Annotated[
        Format | None,
        typer.Option("--from", help="Format of IN. Default: by its first line.", show_default=False),
    ] = None,
    to_format: Annotated[
        Format | None, typer.Option("--to", help="Format of OUT. Default: by its suffix.", show_default=False)
    ] = None,
) -> None:
    """Convert a trajectory between TUM, KITTI and EuRoC.

    Examples:

      slam convert runs/desk-1 desk.kitti

      slam convert state_groundtruth.csv groundtruth.txt
    """
    from slam.trajectory import read_note, read_trajectory, recognise_format, write_trajectory

    expect_new(target)
    path = source / "trajectory.txt" if source.is_dir() else source
    format = from_format or recognise_format(path)
    trajectory = read_trajectory(path, format)
    write_trajectory(target, trajectory, to_format, note=read_note(path))
    if format == "kitti":
        say(f"{path}: KITTI's format has no times; 10 poses a second assumed")
    say(f"wrote {target}: {trajectory}")

"""`slam convert`: conversion of trajectories between formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from slam.cli.options import AsJson, Format, Times, expect_new, say


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Trajectory file, or a run folder.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .txt or .tum, .kitti, .csv (EuRoC).")],
    from_format: Annotated[
        Format | None,
        typer.Option("--from", help="Format of IN. Default: from its first line.", show_default=False),
    ] = None,
    to_format: Annotated[
        Format | None, typer.Option("--to", help="Format of OUT. Default: from its suffix.", show_default=False)
    ] = None,
    times: Times = None,
    as_json: AsJson = False,
) -> None:
    """Convert a trajectory between TUM, KITTI and EuRoC.

    If IN has a header line with column names, it determines the column order.

    Examples:

      slam convert runs/desk-1 desk.kitti

      slam convert state_groundtruth.csv groundtruth.txt

      slam convert poses/07.txt groundtruth.txt --times sequences/07/times.txt
    """
    from slam.evaluation.pose_files import open_poses, timed
    from slam.evaluation.trajectory_files import format_of_suffix, read_note, write_trajectory

    expect_new(target)
    format = to_format or format_of_suffix(target)
    poses = open_poses(source, from_format)
    for remark in poses.file.remarks:
        say(f"{poses.path}: {remark}")
    if times is not None:
        poses = timed(poses, times)
    trajectory = poses.trajectory
    write_trajectory(target, trajectory, format, note=read_note(poses.path))
    if not trajectory.has_times and format != "kitti":
        say(f"{poses.path}: KITTI's format has no times; 10 poses a second assumed, as {target} says in a comment")
    if format == "kitti" and (missing := poses.frames_without_pose):
        frames = len(trajectory) + missing
        say(f"{poses.path}: {missing} of {frames} frames have no pose, so a line of {target} is no longer a frame")
    say(f"wrote {target}: {trajectory}")
    if as_json:
        values = {"file": str(target), "format": format, "poses": len(trajectory), "length": trajectory.length}
        print(json.dumps(values, indent=2))

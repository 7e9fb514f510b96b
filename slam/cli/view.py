"""`slam view`: replay of a finished run in Rerun, without recomputation."""

from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relocalizer.errors import OutputError
from slam.cli.options import UNUSABLE, complain, expect_new, say

if TYPE_CHECKING:
    from slam.evaluation.trajectory import Trajectory
    from slam.run.replay import Replay
    from slam.viz.rerun_viewer import RerunViewer


def view(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    view: Annotated[
        str | None,
        typer.Option(
            metavar="VIEW",
            help="spawn opens the Rerun viewer; web serves a page to this machine until Ctrl-C (web:0.0.0.0 to the "
            "network); connect:HOST:PORT sends to a viewer that runs already. Default: spawn, without --record.",
            show_default=False,
        ),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="With --view web: exit at the end of the replay.")] = False,
    record: Annotated[
        Path | None, typer.Option("-o", "--record", metavar="FILE", help="Write a Rerun recording (.rrd).")
    ] = None,
    ground_truth: Annotated[
        Path | None,
        typer.Option("--ground-truth", metavar="FILE", help="Trajectory file with the ground truth to show."),
    ] = None,
) -> None:
    """Show a finished run in Rerun, from the files of its folder.

    All panels are made from the run folder: images and tracked points are those of the keyframes.

    Examples:

      slam view runs/desk

      slam view runs/desk -o desk.rrd

      slam view runs/desk --view web --ground-truth groundtruth.txt
    """
    from slam.viz.installation import expect_installed

    expect_installed("slam view")
    from slam.run.replay import open_replay
    from slam.run.runner import wait_for_stop_signal
    from slam.viz.rerun_viewer import RerunViewer

    if record is not None:
        if record.suffix != ".rrd":
            raise OutputError(f"--record {record}: a recording's name ends in .rrd")
        expect_new(record, option="--record")
    truth = None if ground_truth is None else _ground_truth(run, ground_truth)
    replay = open_replay(run)
    for sentence in replay.missing:
        say(f"{run}: {sentence}")
    with ExitStack() as closing:
        viewer = RerunViewer(
            record=record, view=view or ("none" if record else "spawn"), ground_truth=truth, title=run.resolve().name,
            camera=replay.camera,
        )  # fmt: skip
        closing.callback(viewer.close)
        _replay_events(replay, viewer)
        if viewer.url and not (no_wait or viewer.problem):
            say(f"the run is shown at {viewer.url} until Ctrl-C")
            wait_for_stop_signal()
    if viewer.problem:
        complain(f"not all of the run could be shown: {viewer.problem}")
        raise typer.Exit(UNUSABLE)
    if record is not None:
        command = "rerun" if shutil.which("rerun") else Path(sys.executable).with_name("rerun")
        say(f"wrote {record}; next: {command} {record}")


def _ground_truth(run: Path, path: Path) -> Trajectory:
    """The ground truth with timestamps of the run's clock."""
    from slam.evaluation.pose_files import open_poses, pair

    truth = open_poses(path)
    if truth.trajectory.has_times:
        return truth.trajectory
    paired = pair(open_poses(run), truth)
    say(paired.said)
    return paired.ground_truth


def _replay_events(replay: Replay, viewer: RerunViewer) -> None:
    """Send all events to the viewer, and show the progress."""
    from slam.events import FrameProcessed
    from slam.progress import TaskProgress

    progress, shown = TaskProgress(sys.stderr), 0
    try:
        for event in replay.events():
            viewer(event)
            viewer.catch_up()
            if isinstance(event, FrameProcessed):
                shown += 1
                progress("frames", shown, replay.frames or None)
    finally:
        progress.close()

"""What `slam run` prints when a run ends: its summary, its failures, and the next commands."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slam.cli.options import INTERNAL_ERROR, USER_ERROR, complain, say
from slam.cli.terminal import with_colored_verdict
from slam.evaluation.verdict import Grade

if TYPE_CHECKING:
    from slam.cli.run_arguments import RunArguments
    from slam.run.recorded_run import RunReport


def summarize(request: RunArguments, folder: Path, report: dict[str, Any]) -> None:
    from slam.run.report import report_text

    if request.as_json:
        print(json.dumps(json.loads(report_text(report)), indent=2))  # in ASCII, for any terminal
        return
    if request.quiet:
        return
    from slam.cli.text_tables import render
    from slam.run.run_page import PAGE
    from slam.run.summary import summary_rows

    print(with_colored_verdict(render(summary_rows(report), title=str(folder))))
    if report["status"] == "failed":
        return
    print(f"\nreport: {folder / PAGE}")
    for command in _next_commands(request, folder, report):
        print(f"next: {command}")


def _next_commands(request: RunArguments, folder: Path, report: dict[str, Any]) -> list[str]:
    from slam.run.next_steps import next_steps

    viewer = ""
    if request.record is not None:
        rerun = "rerun" if shutil.which("rerun") else str(Path(sys.executable).with_name("rerun"))
        viewer = shlex.join([rerun, str(request.record)])
    commands = [step.command for step in next_steps(report, folder, viewer=viewer)]
    if not viewer and Grade(report["verdict"]["grade"]).is_below(Grade.PARTIAL):
        # A recording shows every image, and where initialization or the map failed.
        in_map = f" --map {shlex.quote(str(request.map))}" if request.map else ""
        only = " --localize-only" if request.localize_only else ""
        commands.append(f"slam run {request.source}{in_map}{only} --record {shlex.quote(folder.name + '.rrd')}")
    return commands


def report_failures(request: RunArguments, recorded: RunReport) -> int:
    """Print the failures, tracebacks first, and how to continue; returns the exit code."""
    for failure in recorded.failures:
        if failure.is_internal:
            say(failure.traceback.rstrip())
    for failure in recorded.failures[1:]:
        complain(f"and {failure.sentence}")
    internal = any(failure.is_internal for failure in recorded.failures)
    kind = "internal error: " if recorded.failures[0].is_internal else ""
    complain(f"{kind}{recorded.failures[0].sentence}; {_remaining_results(request, recorded)}")
    return INTERNAL_ERROR if internal else USER_ERROR


def _remaining_results(request: RunArguments, recorded: RunReport) -> str:
    report, folder = recorded.values, recorded.folder
    if report["status"] != "failed":  # only an observer failed, on which the result does not depend
        return f"the run itself is whole, in {folder}"
    has_map = " and a map" if recorded.has_map else ""
    poses = f"{report['tracked']} poses" if "tracked" in report else "the poses"
    kept = f"{poses}{has_map} are kept in {folder}"
    if recorded.is_complete:
        return kept
    start = recorded.last_frame_index + 1
    start_map = folder if recorded.has_map else request.map
    in_map = f" --map {shlex.quote(str(start_map))}" if start_map else ""
    return f"{kept}; to continue: slam run {request.source} --start {start}{in_map}"

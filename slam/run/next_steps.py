"""What to do after a run, as commands that can be pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam.evaluation.verdict import Grade
from slam.run.run_folder import MAP, SECOND_PASS


@dataclass(frozen=True, slots=True)
class NextStep:
    """A command and what it is for.

    Attributes:
        purpose: what the command does, in a few words.
        command: with its paths quoted; words in capitals are for the reader to replace.
    """

    purpose: str
    command: str


def next_steps(report: Mapping[str, Any], folder: Path, *, viewer: str = "") -> list[NextStep]:
    """What fits a run: to look at it, to find what went wrong, to use its map.

    Args:
        report: contents of its report.json.
        folder: the run folder.
        viewer: command that shows the run; by default the replay of its folder.
    """
    run = shlex.quote(str(folder.parent if folder.name == SECOND_PASS else folder))
    view = NextStep("see the run in Rerun", viewer or f"slam view {run}")
    explain = NextStep("what went wrong, in which frames, and what would help", f"slam explain {run}")
    if "verdict" not in report:
        return [explain]
    grade = Grade(report["verdict"]["grade"])
    steps = [view, explain] if grade is Grade.GOOD else [explain, view]
    if not (folder / MAP).is_dir() or grade.is_below(Grade.PARTIAL):
        return steps
    name = shlex.quote(f"{folder.name}_colmap")
    return [
        *steps,
        NextStep("where another image was taken", f"slam relocalize {run} IMAGE"),
        NextStep("a later video in the same map", f"slam run VIDEO --map {run}"),
        NextStep("a COLMAP model, for Gaussian splats", f"slam map export {run} --format colmap -o {name}"),
    ]

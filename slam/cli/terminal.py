"""Colors on a terminal: none in a file or a pipe, and none where NO_COLOR is set (https://no-color.org)."""

from __future__ import annotations

import os
import sys

import typer

GRADES = {"good": "green", "partial": "yellow", "poor": "red", "failed": "red"}


def has_colors() -> bool:
    """Whether standard output is a terminal that wants colors."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def heading(text: str) -> str:
    return typer.style(text, bold=True) if has_colors() else text


def with_colored_verdict(summary: str) -> str:
    """The summary of a run with the grade of its first line `verdict       good: ...` in color."""
    if not has_colors():
        return summary
    lines = summary.split("\n")
    for k, line in enumerate(lines):
        name, _, rest = line.partition(" ")
        grade = rest.strip().partition(":")[0]
        if name == "verdict" and grade in GRADES:
            lines[k] = line.replace(grade, typer.style(grade, fg=GRADES[grade], bold=True), 1)
            break
    return "\n".join(lines)

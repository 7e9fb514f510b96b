"""The options of a command in panels: Input, Camera, Map, ... instead of one long list.

Typer's own panels need rich, which would make `slam --help` three times as slow, and boxes that a log or a pipe does
not want. These are the plain sections of the help.
"""

from __future__ import annotations

from typing import Any

import typer
import typer.core

from slam.cli.terminal import heading

# An option is in the same panel of every command; those of no panel are special to their command.
PANELS = {
    "Input": (
        "--max-frames", "--stride", "--start", "--topic", "--times", "--time-offset", "--max-difference",
        "--ground-truth", "--data", "--limit", "--pairs", "--step", "--from", "--segment", "--min-distance",
        "--min-angle", "--photos",
    ),
    "Camera": ("--camera", "--mask", "--one-pass", "--board"),
    "Map": ("--map", "--localize-only", "--units"),
    "Scale": ("--scale-from",),
    "Output": (
        "--out", "--json", "--quiet", "--plot", "--html", "--preview", "--force", "--format", "--to", "--markdown",
        "--fail-under", "--fail-above", "--fail-below", "--max-ate", "--unpack", "--video",
    ),
    "Viewer": ("--view", "--no-wait", "--record"),
    "Advanced": (
        "--preset", "--config", "--set", "--predictor", "--weights", "--random-weights", "--seed", "--seeds",
        "--refine", "--jobs", "--ray", "--top-k",
    ),
}  # fmt: skip
_PANEL_OF = {option: panel for panel, options in PANELS.items() for option in options}
_ORDER = ("Arguments", *PANELS, "Options")


class PanelCommand(typer.core.TyperCommand):
    """A command whose help lists the options panel by panel."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                rows.setdefault(_panel_of(parameter), []).append(record)
        for panel in sorted(rows, key=_ORDER.index):
            with formatter.section(heading(panel)):
                formatter.write_dl(rows[panel])


def in_panels(app: typer.Typer) -> None:
    """Show the help of all commands of an app in panels."""
    for command in app.registered_commands:
        command.cls = PanelCommand


def _panel_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    return next((_PANEL_OF[option] for option in parameter.opts if option in _PANEL_OF), "Options")

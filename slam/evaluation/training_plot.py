"""Plot of a training: loss, angles and held-out errors over the epochs, from its log."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from relocalizer.errors import OutputError, UserError
from slam.evaluation.plot import PLOT_SUFFIXES

ANGLES = ("rotation1_deg", "rotation2_deg", "direction1_deg", "direction2_deg")


def expect_plottable(path: Path) -> None:
    """Check, before hours of training, that a plot can be drawn.

    Raises:
        UserError: matplotlib is not installed.
        OutputError: the suffix is not that of a plot.
    """
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise OutputError(f"{path}: a plot is written as {', '.join(PLOT_SUFFIXES)}, not {path.suffix!r}")
    if find_spec("matplotlib") is None:
        raise UserError("drawing a plot needs matplotlib, which is not installed: pip install 'reloc3r-slam[eval]'")


def plot_training(log: Path, path: Path) -> None:
    """Plot log.jsonl of a training into a .png, .pdf or .svg.

    Raises:
        UserError: matplotlib is not installed, or there is no log.
        OutputError: the suffix is another one, or the file cannot be written.
    """
    expect_plottable(path)
    from matplotlib.figure import Figure

    lines = _lines(log)
    steps = [line for line in lines if line.get("loss") is not None]
    held_out = [line for line in lines if "held_out" in line]
    figure = Figure(figsize=(12.0, 4.0), dpi=110, layout="constrained")
    loss, angles, errors = figure.subplots(1, 3)
    loss.plot([line["epoch"] for line in steps], [line["loss"] for line in steps], label="trained on")
    loss.plot(*_held_out(held_out, "loss"), "o-", label="held out")
    for name in ANGLES:
        angles.plot([line["epoch"] for line in steps], [line[name] for line in steps], label=name.removesuffix("_deg"))
    for name in ("rotation_deg", "direction_deg"):
        errors.plot(*_held_out(held_out, name), "o-", label=name.removesuffix("_deg"))
    titles = ("loss, radians", "mean angles, degrees", "held out: median errors, degrees")
    for axes, title in zip((loss, angles, errors), titles, strict=True):
        axes.set(title=title, xlabel="epoch", ylim=(0, None))
        axes.legend(fontsize=7)
    try:
        figure.savefig(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None


def _held_out(lines: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    return [line["epoch"] for line in lines], [line["held_out"][name] for line in lines]


def _lines(log: Path) -> list[dict[str, Any]]:
    try:
        texts = log.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{log}: cannot be read ({error.strerror}); give the folder of a training") from None
    found = []
    for text in texts:
        with suppress(ValueError):  # a last line that was cut off
            found.append(json.loads(text))
    return found

"""Plot of an evaluation: both paths from above, and the errors over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import OutputError, UserError
from relocalizer.geometry import FloatArray
from slam.evaluation.metrics import Evaluation, orientation_errors_deg, position_errors
from slam.evaluation.trajectory import runs_without_gaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes


PLOT_SUFFIXES = (".png", ".pdf", ".svg")


def plot_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Plot both paths from above and the errors over time into a .png, .pdf or .svg.

    The vertical axis is that of the ground truth's world along which the path extends least.

    Raises:
        UserError: matplotlib is not installed.
        OutputError: the suffix is another one, or the file cannot be written.
    """
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise OutputError(f"{path}: a plot is written as {', '.join(PLOT_SUFFIXES)}, not {path.suffix!r}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "drawing a plot needs matplotlib, which is not installed: pip install 'reloc3r-slam[eval]'"
        ) from None
    figure = Figure(figsize=(12.0, 6.0), dpi=110, layout="constrained")
    figure.suptitle(evaluation.title, fontsize=10)
    grid = figure.add_gridspec(2, 2, width_ratios=[1.15, 1.0])
    _draw_from_above(figure.add_subplot(grid[:, 0]), evaluation)
    _draw_errors(figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1]), evaluation)
    try:
        figure.savefig(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None


def _draw_from_above(axes: Axes, evaluation: Evaluation) -> None:
    stamps, truth = evaluation.aligned.timestamps_ns, evaluation.reference.positions
    up = int(np.argmin(np.ptp(truth, axis=0)))
    across, along = [axis for axis in range(3) if axis != up]
    plane, estimate = truth[:, [across, along]], evaluation.aligned.positions[:, [across, along]]
    errors = position_errors(evaluation.aligned, evaluation.reference)
    _draw_line(axes, stamps, *plane.T, color="0.55", width=2.5, label="ground truth")
    _draw_line(axes, stamps, *estimate.T, color="tab:blue", width=0.8, label="estimate, Sim(3)")
    dots = axes.scatter(estimate[:, 0], estimate[:, 1], c=errors, s=7, cmap="viridis", zorder=3)
    axes.plot(*plane[0], "o", color="black", markersize=7, fillstyle="none", label="start")
    axes.figure.colorbar(dots, ax=axes, label="position error", shrink=0.8)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel("xyz"[across])
    axes.set_ylabel("xyz"[along])
    axes.set_title(f"Seen along {'xyz'[up]}, units of the ground truth", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _draw_errors(upper: Axes, lower: Axes, evaluation: Evaluation) -> None:
    aligned, reference = evaluation.aligned, evaluation.reference
    stamps, ate = aligned.timestamps_ns, evaluation.ate_sim3
    seconds = (stamps - stamps[0]) * 1e-9
    _draw_line(upper, stamps, seconds, position_errors(aligned, reference), color="tab:blue", width=1.0)
    upper.axhline(ate.rmse, color="tab:red", linewidth=0.8, linestyle="--")
    upper.set_title(
        f"Position RMSE: Sim(3) {ate.rmse:.4g} (red), {evaluation.ate_percent:.2g} % of the path\n"
        f"(after SE(3): {evaluation.ate_se3.rmse:.4g})",
        fontsize=10,
    )
    upper.set_ylabel("position error")
    rotation_deg = orientation_errors_deg(aligned, reference)
    _draw_line(lower, stamps, seconds, rotation_deg, color="tab:orange", width=1.0)
    orientation = evaluation.orientation_deg
    summary = "not determined: positions on one line"
    if orientation is not None:
        summary = f"median {orientation.median:.3g} deg, RMSE {orientation.rmse:.3g} deg"
    lower.set_title(f"Orientation: {summary}", fontsize=10)
    lower.set_ylabel("orientation error, deg")
    lower.set_xlabel("time, s")
    for axes in (upper, lower):
        axes.set_ylim(bottom=0.0)
        axes.grid(alpha=0.3)


def _draw_line(
    axes: Axes,
    stamps: NDArray[np.int64],
    x: FloatArray,
    y: FloatArray,
    *,
    color: str,
    width: float,
    label: str | None = None,
) -> None:
    """A line with gaps where poses are missing."""
    for run in runs_without_gaps(stamps):
        axes.plot(x[run], y[run], color=color, linewidth=width, label=label if run.start == 0 else None)

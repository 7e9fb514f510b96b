"""Comparison of several trajectories with one ground truth: tables, spread and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from slam.benchmarks.plots import BarPlot, LinePlot, Plot, Series
from slam.benchmarks.suite import Cell, Summary, Table
from slam.evaluation.metrics import Evaluation, position_errors
from slam.evaluation.path_errors import ScaleDrift, length_errors, scale_drift
from slam.evaluation.trajectory import runs_without_gaps

SPREAD: Mapping[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: float(np.mean(values)),
    "median": lambda values: float(np.median(values)),
    "smallest": min,
    "largest": max,
    "standard deviation": lambda values: float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
}


def compare(evaluations: Mapping[str, Evaluation]) -> Summary:
    """Tables and plots of one or several estimates of the same path, by name."""
    drifts = {name: scale_drift(own.aligned, own.reference) for name, own in evaluations.items()}
    figures = {name: figures_of(own, drifts[name]) for name, own in evaluations.items()}
    names = list(next(iter(figures.values())))
    columns: list[list[Cell]] = [[name, *own.values()] for name, own in figures.items()]
    if len(columns) > 1:
        columns += [[name, *spread_of(figures, names, of).values()] for name, of in SPREAD.items()]
    rows = list(zip(*[["", *names], *columns], strict=True))
    notes = [f"{name}: {note}." for name, own in evaluations.items() for note in own.notes]
    first = next(iter(evaluations.values()))
    protocol = {"matched": "by " + first.matched_by, "alignment": "Umeyama, Sim(3) with scale and SE(3) without"}
    if first.matched_by == "time":
        protocol["matched"] += f", at most {first.max_difference_s:g} s apart"
    return Summary(
        title="Evaluation of trajectories",
        protocol=protocol,
        figures={name: float(value) for name, value in figures[next(iter(figures))].items() if value is not None},
        tables=[Table("Errors", [str(name) for name in rows[0]], rows[1:], " ".join(notes))],
        plots=_plots(evaluations, drifts),
    )


def figures_of(found: Evaluation, drift: ScaleDrift | None) -> dict[str, float | None]:
    """The figures of one estimate, in the ground truth's unit; None where it has none."""
    along = length_errors(found.aligned, found.reference)
    second, orientation = found.rpe_second, found.orientation_deg
    return {
        "ATE Sim(3)": found.ate_sim3.rmse,
        "ATE SE(3)": found.ate_se3.rmse,
        "scale": found.scale,
        "orientation, deg": None if orientation is None else orientation.rmse,
        "RPE frame": found.rpe_frame.translation.rmse,
        "RPE frame, deg": found.rpe_frame.rotation_deg.rmse,
        "RPE 1 s": None if second is None else second.translation.rmse,
        "drift, %": found.drift_percent,
        "scale change, %": None if drift is None else drift.change_percent,
        "scale spread, %": None if drift is None else drift.spread_percent,
        "KITTI, %": None if along is None else along.translation_percent,
        "KITTI, deg/100": None if along is None else along.rotation_deg_per_100,
        "coverage, %": 100 * found.coverage,
    }


def spread_of(
    figures: Mapping[str, Mapping[str, float | None]], columns: Sequence[str], of: Callable[[Sequence[float]], float]
) -> dict[str, float | None]:
    """A statistic of each figure over the estimates; None where one of them has none."""
    found: dict[str, float | None] = {}
    for column in columns:
        values = [own[column] for own in figures.values()]
        known = [value for value in values if value is not None]
        found[column] = of(known) if len(known) == len(values) else None
    return found


def report_values(evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """The figures of each estimate and their spread, for JSON."""
    figures = {name: figures_of(own, scale_drift(own.aligned, own.reference)) for name, own in evaluations.items()}
    columns = list(next(iter(figures.values())))
    return {"estimates": figures, "spread": {name: spread_of(figures, columns, of) for name, of in SPREAD.items()}}


def _plots(evaluations: Mapping[str, Evaluation], drifts: Mapping[str, ScaleDrift | None]) -> list[Plot]:
    first = next(iter(evaluations.values()))
    up = int(np.argmin(np.ptp(first.reference.positions, axis=0)))
    across, along = [axis for axis in range(3) if axis != up]
    paths = [Series("ground truth", *_with_gaps(first, first.reference.positions[:, [across, along]]), None)]
    errors, scales = [], []
    for k, (name, own) in enumerate(evaluations.items()):
        seconds = (own.aligned.timestamps_ns - first.reference.timestamps_ns[0]) * 1e-9
        paths.append(Series(name, *_with_gaps(own, own.aligned.positions[:, [across, along]]), k))
        over_time = np.column_stack([seconds, position_errors(own.aligned, own.reference)])
        errors.append(Series(name, *_with_gaps(own, over_time), k))
        drift = drifts[name]
        if drift is not None:
            scales.append(Series(name, seconds[drift.rows], drift.scale, k))
    plots: list[Plot] = [
        LinePlot("From above, after Sim(3)", "xyz"[across], "xyz"[along], paths, is_map=True),
        LinePlot("Position error over time", "time, s", "error", errors),
    ]
    if scales:
        plots.append(
            LinePlot("Scale along the path, over a tenth of it", "time, s", "relative scale", scales, from_zero=False)
        )
    if len(evaluations) > 1:
        rmse = [own.ate_sim3.rmse for own in evaluations.values()]
        plots.append(BarPlot("ATE Sim(3)", "RMSE", list(evaluations), rmse))
    return plots


def _with_gaps(found: Evaluation, points: Any) -> tuple[list[float], list[float]]:
    """The columns of points (N, 2), with NaN where poses are missing, so that no line is drawn there."""
    x: list[float] = []
    y: list[float] = []
    for run in runs_without_gaps(found.aligned.timestamps_ns):
        x += [*points[run, 0].tolist(), np.nan]
        y += [*points[run, 1].tolist(), np.nan]
    return x, y

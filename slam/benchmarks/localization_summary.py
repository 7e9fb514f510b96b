"""Scores, tables and plots of the localization suites."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from relocalizer.geometry import FloatArray
from slam.benchmarks.plots import BarPlot, LinePlot, Plot, cumulative
from slam.benchmarks.scene_localizer import METHODS
from slam.benchmarks.suite import Cell, Result, Summary, Table

RECALLS = ((0.05, 5.0), (0.25, 2.0), (0.5, 5.0), (5.0, 10.0))  # Meters and degrees of the recalls.
FAILED_DEG = 180.0  # Rotation error of a query without a pose, degrees; its position error is infinite.
Queries = Sequence[Mapping[str, Any]]


def summarize_queries(
    title: str,
    protocol: Mapping[str, str],
    results: Mapping[str, Result],
    means: Mapping[str, Sequence[str]],
    published: Table,
) -> Summary:
    """The summary of the queries so far, for each method.

    Args:
        means: scenes of each named mean.
    """
    scenes: dict[str, list[Mapping[str, Any]]] = {}
    for result in results.values():
        scenes.setdefault(result["scene"], []).extend(result["queries"])
    figures: dict[str, float] = {}
    tables = []
    for method in METHODS:
        rows = {name: _scores(queries, method) for name, queries in scenes.items() if queries}
        here = {name: [rows[scene] for scene in own if scene in rows] for name, own in means.items()}
        of_means = {name: _mean_of(own) for name, own in here.items() if own}
        labels = {name: _label(name, len(here[name]), len(means[name])) for name in of_means}
        tables.append(_table(method, rows, {labels[name]: row for name, row in of_means.items()}))
        for name, row in of_means.items():
            key = f"{_key(method)}_{_key(name)}"
            figures |= {f"{key}_m": _number(row[1]), f"{key}_deg": _number(row[2])}
    return Summary(title=title, protocol=protocol, figures=figures, tables=[*tables, published], plots=_plots(scenes))


def errors_of(queries: Queries, method: str) -> tuple[list[float], list[float]]:
    """Position errors, meters, and rotation errors, degrees; failures count as infinite and 180 degrees."""
    found = [query[method] for query in queries]
    return (
        [math.inf if one["m"] is None else one["m"] for one in found],
        [FAILED_DEG if one["deg"] is None else one["deg"] for one in found],
    )


def _scores(queries: Queries, method: str) -> list[Cell]:
    """Queries, medians, recalls and the share with a pose, the last ones in percent."""
    meters, degrees = errors_of(queries, method)
    m, deg = np.array(meters), np.array(degrees)
    recalls = [100 * float(np.mean((m <= far) & (deg <= turned))) for far, turned in RECALLS]
    medians = [_median(values) for values in (m, deg)]
    return [len(queries), _finite(medians[0]), medians[1], *recalls, 100 * float(np.mean(np.isfinite(m)))]


def _median(values: FloatArray) -> float:
    """The median; of an even number of values one of which is infinite, the larger of the two in the middle."""
    if np.isinf(values).any():
        return float(np.quantile(values, 0.5, method="higher"))
    return float(np.median(values))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(cell: Cell) -> float:
    return float(cell) if isinstance(cell, int | float) else math.inf


def _mean_of(rows: Sequence[Sequence[Cell]]) -> list[Cell]:
    """The number of queries, and the means of the columns of at least one scene; None where a scene has none."""
    means: list[Cell] = [sum(int(_number(row[0])) for row in rows)]
    for k in range(1, len(rows[0])):
        means.append(_finite(float(np.mean([_number(row[k]) for row in rows]))))
    return means


def _table(method: str, rows: Mapping[str, Sequence[Cell]], means: Mapping[str, Sequence[Cell]]) -> Table:
    recalls = [f"{far:g} m, {turned:g} deg" for far, turned in RECALLS]
    columns = ["scene", "queries", "median m", "median deg", *(f"% in {name}" for name in recalls), "% with a pose"]
    note = "A dash is a median beyond all queries with a pose."
    return Table(f"Method: {method}", columns, [[name, *row] for name, row in {**rows, **means}.items()], note)


def _label(name: str, scenes: int, needed: int) -> str:
    """The name of a mean, which says how many scenes are missing."""
    return name if scenes == needed else f"{name}: only {scenes} of {needed} scenes"


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _plots(scenes: Mapping[str, Queries]) -> list[Plot]:
    everything = [query for queries in scenes.values() for query in queries]
    if not everything:
        return []
    errors = {method: errors_of(everything, method) for method in METHODS}
    known = [m for meters, _ in errors.values() for m in meters if math.isfinite(m)]
    up_to = float(np.quantile(known, 0.9)) if known else 1.0
    plots: list[Plot] = []
    for k, (label, unit, limit) in enumerate((("position", "m", max(up_to, 1e-6)), ("rotation", "deg", 10.0))):
        curves = [cumulative(own[k], method, up_to=limit, color=n) for n, (method, own) in enumerate(errors.items())]
        plots.append(LinePlot(f"Share of queries below a {label} error", unit, "share of queries", curves))
    for method in METHODS:
        medians = [_scores(queries, method)[1] if queries else None for queries in scenes.values()]
        values = [None if value is None else _number(value) for value in medians]
        plots.append(BarPlot(f"Median position error: {method}", "m", list(scenes), values))
    return plots

"""Scores, tables and plots of the pair suites, from the errors of the pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np

from slam.benchmarks.pair_metrics import AUC_DEG, accuracy, mean_average_accuracy, pose_auc
from slam.benchmarks.plots import BarPlot, LinePlot, Plot, cumulative
from slam.benchmarks.suite import Cell, Result, Summary, Table

CONVENTIONS = ("plain", "folded")
OVERLAP_CLASSES = (("small, 5 to 30 %", 0.05, 0.3), ("medium, 30 to 55 %", 0.3, 0.55), ("large, 55 to 80 %", 0.55, 0.8))
CURVE_DEG = 30.0  # Right end of the cumulative curves, degrees.
Pair = Mapping[str, Any]


class PairTables(Enum):
    """Which scores a pair benchmark publishes."""

    AUC = "auc"
    AUC_BY_OVERLAP = "auc by overlap"
    ACCURACY = "accuracy"
    ACCURACY_BY_GROUP = "accuracy by group"


def summarize_pairs(
    title: str,
    kind: PairTables,
    protocol: Mapping[str, str],
    results: Mapping[str, Result],
    published: Table | None,
) -> Summary:
    """The summary of a pair suite; AUC of both conventions is always in it."""
    pairs = [pair for result in results.values() for pair in result["pairs"]]
    if not pairs:
        return Summary(title=title, protocol=protocol, figures={}, tables=())
    figures, tables = _auc(pairs)
    if kind is PairTables.AUC_BY_OVERLAP:
        tables.append(_by_overlap(pairs))
    if kind in (PairTables.ACCURACY, PairTables.ACCURACY_BY_GROUP):
        more, table = _accuracies(results, by_group=kind is PairTables.ACCURACY_BY_GROUP)
        figures |= more
        tables.insert(0, table)
    sizes = sorted({size for result in results.values() for size in result["sizes"]})
    facts = {"scored": f"{len(pairs)} pairs", **_answered(pairs), "resolution": _in_words(sizes)}
    return Summary(
        title=title,
        protocol={**protocol, **facts},
        figures=figures,
        tables=[*tables, *([published] if published else [])],
        plots=_plots(pairs, results),
    )


def errors_of(pairs: Sequence[Pair], convention: str) -> list[float]:
    """The larger of rotation and direction error of each pair, degrees; `convention` is plain or folded."""
    return [max(pair["rotation_deg"], pair[f"{convention}_deg"]) for pair in pairs]


def _auc(pairs: Sequence[Pair]) -> tuple[dict[str, float], list[Table]]:
    figures: dict[str, float] = {}
    rows: list[list[Cell]] = []
    for convention in CONVENTIONS:
        areas = [100 * area for area in pose_auc(errors_of(pairs, convention))]
        figures |= {f"auc{threshold:g}_{convention}": area for threshold, area in zip(AUC_DEG, areas, strict=True)}
        directions = [pair[f"{convention}_deg"] for pair in pairs]
        rows.append([convention, *(round(area, 2) for area in areas), round(float(np.median(directions)), 3)])
    figures["rotation_median_deg"] = float(np.median([pair["rotation_deg"] for pair in pairs]))
    figures["direction_median_deg"] = float(np.median([pair["plain_deg"] for pair in pairs]))
    columns = ("direction error", *(f"AUC@{threshold:g}" for threshold in AUC_DEG), "direction median, deg")
    note = f"{len(pairs)} pairs; rotation median {figures['rotation_median_deg']:.3f} deg."
    return figures, [Table("Pose AUC, %", columns, rows, note)]


def _answered(pairs: Sequence[Pair]) -> dict[str, str]:
    missing = sum(bool(pair["missing"]) for pair in pairs)
    return {"answered": f"{100 * (1 - missing / len(pairs)):.1f} % of the pairs have a rotation and a direction"}


def _in_words(sizes: Sequence[str]) -> str:
    return ", ".join(sizes) if len(sizes) <= 4 else f"{len(sizes)} sizes, such as {sizes[0]} and {sizes[-1]}"


def _by_overlap(pairs: Sequence[Pair]) -> Table:
    rows: list[list[Cell]] = []
    for name, low, high in OVERLAP_CLASSES:
        own = [p for p in pairs if p["overlap"] is not None and (low < p["overlap"] or p["overlap"] == low == 0.05)]
        own = [p for p in own if p["overlap"] <= high]
        areas = [round(100 * area, 2) for area in pose_auc(errors_of(own, "folded"))] if own else [None] * len(AUC_DEG)
        rows.append([name, len(own), *areas])
    columns = ("overlap", "pairs", *(f"AUC@{threshold:g}" for threshold in AUC_DEG))
    return Table("Pose AUC by overlap, folded direction error, %", columns, rows)


def _accuracies(results: Mapping[str, Result], *, by_group: bool) -> tuple[dict[str, float], Table]:
    """RRA, RTA and mAA, the last two with the folded direction error; per group and their mean, or over all pairs."""
    groups: dict[str, list[Pair]] = {}
    for result in results.values():
        groups.setdefault(result["group"] if by_group else "all", []).extend(result["pairs"])
    scores = {name: _scores(pairs) for name, pairs in sorted(groups.items()) if pairs}
    mean = [float(np.mean([own[k] for own in scores.values()])) for k in range(3)]
    rows: list[list[Cell]] = [[name, *(round(score, 2) for score in own)] for name, own in scores.items()]
    if by_group:
        rows.append(["mean", *(round(score, 2) for score in mean)])
    figures = dict(zip(("rra15", "rta15", "maa30"), mean, strict=True))
    first = "category" if by_group else "pairs"
    return figures, Table("Accuracy, folded direction error, %", (first, "RRA@15", "RTA@15", "mAA@30"), rows)


def _scores(pairs: Sequence[Pair]) -> list[float]:
    rotations, directions = ([pair[name] for pair in pairs] for name in ("rotation_deg", "folded_deg"))
    scores = accuracy(rotations), accuracy(directions), mean_average_accuracy(errors_of(pairs, "folded"))
    return [100 * score for score in scores]


def _plots(pairs: Sequence[Pair], results: Mapping[str, Result]) -> list[Plot]:
    curves = [
        cumulative(errors_of(pairs, "plain"), "pose, plain", up_to=CURVE_DEG, color=0),
        cumulative(errors_of(pairs, "folded"), "pose, folded", up_to=CURVE_DEG, color=1),
        cumulative([pair["rotation_deg"] for pair in pairs], "rotation", up_to=CURVE_DEG, color=2),
    ]
    groups: dict[str, list[Pair]] = {}
    for result in results.values():
        groups.setdefault(result["group"], []).extend(result["pairs"])
    medians = [float(np.median(errors_of(own, "plain"))) if own else None for own in groups.values()]
    return [
        LinePlot("Share of pairs below an error", "error, deg", "share of pairs", curves),
        BarPlot("Median pose error by scene, plain", "deg", list(groups), medians),
    ]

"""Tables and plots of the SLAM suites."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from slam.benchmarks.plots import BarPlot, LinePlot, Plot, Series
from slam.benchmarks.suite import Cell, Result, Summary, Table

NO_TRUTH = "no ground truth"  # Reason of a sequence without errors.
MOST_PATHS = 30  # Number of sequences whose path and error are plotted.
KINDS = (("all", "all frames"), ("keyframes_errors", "keyframes"), ("online", "live poses"))
Runs = Mapping[str, Sequence[Result]]  # The runs of each sequence.


def summarize_runs(
    title: str, protocol: Mapping[str, str], results: Mapping[str, Result], missing: Sequence[str]
) -> Summary:
    """The summary of the runs so far.

    Args:
        missing: sequences of the published benchmark that are not in the data.
    """
    runs: dict[str, list[Result]] = {}
    for result in results.values():
        runs.setdefault(result["sequence"], []).append(result)
    figures = _figures(runs)
    return Summary(
        title=title,
        protocol=protocol,
        figures=figures,
        tables=[_accuracy(runs, missing), _relative(runs), _tracking(runs)],
        plots=_plots(results),
    )


def _rmse(kind: str, alignment: str) -> Callable[[Result], float | None]:
    return lambda result: result[kind][alignment]["rmse"] if result[kind] else None


def _median(runs: Sequence[Result], value: Callable[[Result], float | None]) -> float | None:
    """Median over the runs of a sequence; None if one of them has no result."""
    values = [value(result) for result in runs]
    known = [number for number in values if number is not None]
    return float(np.median(known)) if known and len(known) == len(values) else None


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean over the sequences; None if one of them has no result."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _with_truth(runs: Runs) -> Runs:
    """The sequences that can have an error."""
    return {name: own for name, own in runs.items() if any(result["reason"] != NO_TRUTH for result in own)}


def _figures(runs: Runs) -> dict[str, float]:
    """Means over the sequences; one that lost a sequence is infinite, so that it exceeds any limit."""
    with_truth = _with_truth(runs)
    if not with_truth:
        return {}
    figures = {}
    for kind, suffix in (("all", ""), ("keyframes_errors", "_keyframes"), ("online", "_online")):
        for alignment in ("sim3", "se3"):
            mean = _mean([_median(own, _rmse(kind, f"ate_{alignment}")) for own in with_truth.values()])
            figures[f"ate_{alignment}{suffix}"] = math.inf if mean is None else mean
    coverages = [float(np.median([result["coverage"] for result in own])) for own in runs.values()]
    return {**figures, "coverage": float(np.mean(coverages))}


def _accuracy(runs: Runs, missing: Sequence[str]) -> Table:
    columns = ["sequence", *(f"Sim(3), {words}" for _, words in KINDS), *(f"SE(3), {words}" for _, words in KINDS)]
    rows: list[list[Cell]] = []
    for name, own in runs.items():
        errors = [_median(own, _rmse(kind, f"ate_{a}")) for a in ("sim3", "se3") for kind, _ in KINDS]
        rows.append([name, *errors, _median(own, lambda r: r["all"]["scale"] if r["all"] else None), _spread(own)])
    counted = [row for row, name in zip(rows, runs, strict=True) if name in _with_truth(runs)]
    if len(counted) > 1:
        columns_of_errors = list(zip(*(row[1:7] for row in counted), strict=True))
        rows.append(["mean", *(_mean(column) for column in columns_of_errors), None, ""])
    notes = ["RMSE of the positions in the unit of the ground truth; a dash is a sequence without a result."]
    if missing:
        notes.append(f"Not in the data, so not in the mean: {', '.join(missing)}.")
    reasons = [f"{r['sequence']}: {r['reason']}" for own in runs.values() for r in own if r["reason"]]
    notes += [f"{'; '.join(reasons)}."] if reasons else []
    return Table("Absolute trajectory error", [*columns, "scale", "runs"], rows, " ".join(notes))


def _spread(runs: Sequence[Result]) -> str:
    """Smallest and largest error of several runs."""
    errors = [result["all"]["ate_sim3"]["rmse"] for result in runs if result["all"]]
    if len(runs) < 2:
        return "1"
    return f"{len(runs)}, {min(errors):.4g} to {max(errors):.4g}" if errors else f"{len(runs)}, none with a result"


def _relative(runs: Runs) -> Table:
    rows: list[list[Cell]] = []
    for name, own in runs.items():
        values = [_median(own, value) for value in _RELATIVE.values()]
        rows.append([name, *values])
    note = "After scaling by the Sim(3) alignment. KITTI's lengths are 100 to 800 m; shorter paths have none."
    return Table("Relative pose error, RMSE; KITTI's mean", ["sequence", *_RELATIVE], rows, note)


def _of_rpe(kind: str, part: str) -> Callable[[Result], float | None]:
    return lambda result: result["all"][kind][part]["rmse"] if result["all"] and result["all"][kind] else None


def _of_kitti(name: str) -> Callable[[Result], float | None]:
    return lambda result: result["kitti"][name] if result["kitti"] else None


_RELATIVE: Mapping[str, Callable[[Result], float | None]] = {
    "frame": _of_rpe("rpe_frame", "translation"),
    "frame, deg": _of_rpe("rpe_frame", "rotation_deg"),
    "1 s": _of_rpe("rpe_second", "translation"),
    "1 s, deg": _of_rpe("rpe_second", "rotation_deg"),
    "KITTI, %": _of_kitti("translation_percent"),
    "KITTI, deg/100 m": _of_kitti("rotation_deg_per_100"),
}


def _tracking(runs: Runs) -> Table:
    rows: list[list[Cell]] = []
    for name, own in runs.items():
        shares = [_percent(own, "posed"), _percent(own, "coverage"), _median(own, lambda r: r.get("maps"))]
        errors = [_median(own, _ate_percent), _median(own, _rotation_deg)]
        counts = [
            int(np.median([r[key] for r in own])) for key in ("lost_episodes", "lost_frames", "keyframes", "loops")
        ]
        speed = [float(np.median([result["fps"] for result in own])), _median(own, lambda r: r.get("cpu_ms"))]
        rows.append([name, own[0]["frames"], *shares, *errors, *counts, *speed, own[0]["verdict"]])
    columns = (
        "sequence", "frames", "posed, %", "coverage, %", "maps", "ATE, % of path", "rotation, deg", "times lost",
        "frames lost", "keyframes", "loops", "frames/s", "CPU ms/frame", "verdict",
    )  # fmt: skip
    note = (
        "Posed: share of all frames with a pose in any map; coverage: in the largest one. ATE: RMSE after Sim(3), per "
        "length of the true path; rotation: RMSE of the orientations. CPU: of the whole run, reading included."
    )
    reasons = [
        f"{name}: {own[0]['verdict']}, {'; '.join(own[0]['verdict_reasons'])}."
        for name, own in runs.items()
        if own[0]["verdict"] != "good" and own[0].get("verdict_reasons")
    ]
    return Table("Tracking", columns, rows, " ".join([note, *reasons]))


def _percent(runs: Sequence[Result], key: str) -> float | None:
    share = _median(runs, lambda result: result.get(key))
    return None if share is None else round(100 * share, 1)


def _ate_percent(result: Result) -> float | None:
    return result["all"].get("ate_percent") if result["all"] else None


def _rotation_deg(result: Result) -> float | None:
    found = result["all"] and result["all"].get("orientation_deg")
    return found["rmse"] if found else None


def _plots(results: Mapping[str, Result]) -> list[Plot]:
    drawn = {item: result for item, result in results.items() if result["plot"]}
    plots: list[Plot] = []
    if drawn:
        errors = [result["all"]["ate_sim3"]["rmse"] if result["all"] else None for result in results.values()]
        plots.append(BarPlot("ATE Sim(3), all frames", "RMSE", list(results), errors))
        share = np.linspace(0, 1, 101)
        curves = [Series(item, r["plot"]["quantiles"], share, k) for k, (item, r) in enumerate(list(drawn.items())[:8])]
        plots.append(LinePlot("Share of frames below an error", "position error", "share of frames", curves))
    for item, result in list(drawn.items())[:MOST_PATHS]:
        plots += _of_sequence(item, result["plot"])
    return plots


def _of_sequence(item: str, values: Mapping[str, Sequence[float]]) -> list[Plot]:
    truth, estimate = np.array(values["truth"]), np.array(values["estimate"])
    x_axis, y_axis = values["axes"]
    path = [
        Series("ground truth", truth[:, 0], truth[:, 1], None),
        Series("estimate, Sim(3)", estimate[:, 0], estimate[:, 1], 0),
    ]
    over_time = [Series("", values["seconds"], values["error"], 1)]
    return [
        LinePlot(f"{item}, from above", str(x_axis), str(y_axis), path, is_map=True),
        LinePlot(f"{item}, error over time", "time, s", "position error", over_time),
    ]

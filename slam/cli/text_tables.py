"""Formatting of run states, summaries and tables as text; `slam.cli` prints it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from slam.bench.ablation import AblationRow
from slam.bench.cost import RunCost, StageCost
from slam.bench.live_latency import LiveLatency
from slam.bench.perturbation import PerturbedRow, Spread
from slam.bench.recording_cost import RecordingCost
from slam.components.predictor_choice import RANDOM_WEIGHTS
from slam.run.run_statistics import RunStatistics
from slam.run.summary import counted, percent


def state_line(statistics: RunStatistics, frames: int, seconds: float) -> str:
    """State of a run in one line: 'tracking, 24.1 fps, 31 keyframes, 2 loops'."""
    parts = [statistics.state.value, f"{frames / seconds if seconds > 0 else 0.0:.1f} fps"]
    parts += [counted(statistics.keyframes, "keyframe")]
    if statistics.loops_accepted:
        parts.append(counted(statistics.loops_accepted, "loop"))
    if statistics.lost:
        parts.append(f"lost {counted(len(statistics.lost), 'time')}")
    return ", ".join(parts)


def evaluation_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Metrics of an evaluation, in the unit of the ground truth."""
    rows = [
        (name, f"{values['rmse']:.4f} rmse, {values['median']:.4f} median, {values['max']:.4f} max")
        for name, values in (("ATE, Sim(3)", evaluation["ate_sim3"]), ("ATE, SE(3)", evaluation["ate_se3"]))
    ]
    rows.append(("ATE per path", f"{evaluation['ate_percent']:.2f} % of {evaluation['path_length']:.3f}"))
    if evaluation["orientation_deg"]:
        rows.append(("orientation", f"{evaluation['orientation_deg']['rmse']:.3f} deg rmse"))
    for name, key in (("RPE, next pose", "rpe_frame"), ("RPE, one second", "rpe_second")):
        relative = evaluation[key]
        if relative:
            translation, turn = relative["translation"]["rmse"], relative["rotation_deg"]["rmse"]
            rows.append((name, f"{translation:.4f} rmse, {turn:.3f} deg rmse ({relative['pairs']} pairs)"))
    rows.append(("drift", f"{evaluation['drift_percent']:.2f} % from first to last"))
    rows.append(("scale", f"{evaluation['scale']:.6g} ground truth units per unit of the estimate"))
    coverage = f"{percent(evaluation['coverage'])} ({evaluation['covered']} of {evaluation['expected']} "
    rows.append(("coverage", coverage + f"{evaluation['coverage_of']})"))
    return rows


def bench_rows(cost: RunCost) -> list[tuple[str, str]]:
    """Total time and memory of a run."""
    return [
        ("frames", f"{cost.frames}, {cost.tracked} of them tracked, {counted(cost.keyframes, 'keyframe')}"),
        ("predictor", _predictor_words(cost)),
        ("speed", f"{cost.live_fps:.1f} frames/s live, {cost.fps:.1f} with the final bundle adjustment"),
        (
            "time",
            f"{cost.wall_s:.1f} s, {cost.finish_s:.1f} s of it the final bundle adjustment; CPU {cost.cpu_s:.1f} s",
        ),
        ("ready after", f"{cost.ready_s:.1f} s, self-calibration before the run: CPU {cost.calibration_cpu_s:.1f} s"),
        ("peak memory", f"{cost.peak_memory_mb:.0f} MB"),
        *_recording_rows(cost.recording),
    ]


def live_rows(found: LiveLatency) -> list[tuple[str, str]]:
    """How a live camera would have been followed."""
    ages = ", ".join(f"{age:.1f} ms {name}" for name, age in found.age_ms.items()) or "no frame had a pose"
    late = f"; {found.late} were read too late from the file" if found.late else ""
    rows = [
        ("images", f"{found.images} at {found.fps:.1f} per second{late}"),
        ("dropped", f"{found.dropped}, {found.dropped_tracking} of them after the first pose"),
        ("tracked", f"{found.tracked} of {found.frames} frames, {counted(found.keyframes, 'keyframe')}"),
        ("age of a pose", ages),
    ]
    if found.ate is not None:
        rows.append(("ATE, Sim(3)", f"{found.ate:.4f}, live poses {_error(found.ate_live)}"))
    return rows


def _recording_rows(cost: RecordingCost | None) -> list[tuple[str, str]]:
    if cost is None:
        return []
    memory = "" if cost.memory_growth_mb is None else f", memory {cost.memory_growth_mb:+.0f} MB"
    time = f"{cost.wall_s:.1f} s, {100 * cost.share:.1f} % of the rest of the run"
    return [("recording", f"{time}; {cost.mb_per_100_frames:.2f} MB per 100 frames{memory}")]


def part_rows(parts: Sequence[AblationRow]) -> list[tuple[str, ...]]:
    """Results of an ablation, with the column headings first; errors in the ground truth's unit."""
    heads = ("", "ATE Sim(3)", "ATE SE(3)", "coverage", "keyframes", "loops", "CPU s", "why")
    rows: list[tuple[str, ...]] = [heads]
    for part in parts:
        seconds = "" if part.cpu_s is None else f"{part.cpu_s:.1f}"
        errors = (_error(part.ate_sim3), _error(part.ate_se3))
        rows.append(
            (part.name, *errors, percent(part.coverage), str(part.keyframes), str(part.loops), seconds, part.reason)
        )
    return rows


def perturbed_rows(runs: Sequence[PerturbedRow]) -> list[tuple[str, ...]]:
    """Results of perturbed runs, with the column headings first; errors in the ground truth's unit and in degrees."""
    heads = ("", "ATE Sim(3)", "deg", "coverage", "maps", "keyframes", "loops", "lost", "CPU s", "why")
    rows: list[tuple[str, ...]] = [heads]
    for run in runs:
        counts = (run.maps, run.keyframes, run.loops, run.losses)
        errors = (_error(run.ate_sim3), _degrees(run.rotation_deg))
        rows.append((run.name, *errors, percent(run.coverage), *map(str, counts), f"{run.cpu_s:.1f}", run.reason))
    return rows


def spread_rows(found: Mapping[str, Spread]) -> list[tuple[str, ...]]:
    """Spread of each figure over perturbed runs, with the column headings first."""
    names = {"ate_sim3": "ATE Sim(3)", "rotation_deg": "rotation, deg", "losses": "times lost", "cpu_s": "CPU s"}
    rows: list[tuple[str, ...]] = [("spread", "least", "median", "most", "most / median")]
    for figure, spread in found.items():
        ratio = f"{spread.most / spread.median:.2f}" if spread.median > 0 else "-"
        values = (f"{value:.4g}" for value in (spread.least, spread.median, spread.most))
        rows.append((names.get(figure, figure), *values, ratio))
    return rows


def _degrees(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _predictor_words(cost: RunCost) -> str:
    if cost.predictor == "geometric":
        return cost.predictor
    warning = f" ({RANDOM_WEIGHTS})" if cost.random_weights else ""
    return f"{cost.predictor}, {cost.backend}, precision {cost.precision}{warning}"


def stage_rows(stages: Mapping[str, StageCost]) -> list[tuple[str, ...]]:
    """Time of each stage in the frames that ran it, milliseconds, with the column headings first."""
    rows: list[tuple[str, ...]] = [("stage", f"{'frames':>7}", f"{'p50 ms':>8}", f"{'p95 ms':>8}", f"{'all s':>7}")]
    for name, cost in stages.items():
        times = (f"{cost.p50_ms:8.1f}", f"{cost.p95_ms:8.1f}", f"{cost.total_s:7.1f}")
        rows.append((name, f"{cost.frames:7}", *times))
    return rows


def network_rows(times: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Time of the network per runtime, compared with a naive implementation, with the column headings first."""
    naive, keyframes = times["naive_pair_s"], times["keyframes"]
    ten = f"against {keyframes}"
    rows: list[tuple[str, ...]] = [
        ("seconds", "encode", "decode", "edge", "naive/", ten, "naive/", "rotation", "direction", "ready"),
        ("naive", "", "", f"{naive:.3f}", "1.0", f"{keyframes * naive:.2f}", "1.0", "deg", "deg", ""),
    ]
    for way in times["ways"]:
        seconds = (f"{way[part]:.3f}" for part in ("encode_s", "decode_s", "edge_s"))
        against = (f"{way['edge_ratio']:.1f}", f"{way['relocalize_s']:.2f}", f"{way['relocalize_ratio']:.1f}")
        moved = (f"{way['rotation_deg']:.4f}", f"{way['direction_deg']:.4f}", f"{way['ready_s']:.1f}")
        rows.append((f"{way['backend']} {way['precision']}", *seconds, *against, *moved))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [(row[0], *(cell.rjust(widths[n]) for n, cell in enumerate(row[1:], start=1))) for row in rows]


def network_facts(times: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Conditions of the network benchmark."""
    threads = counted(times["threads"], "thread")
    products = ", float32 products by oneDNN" if times["onednn"] else ""
    weights = "random weights" if times["random_weights"] else "trained weights"
    ratio = "CPU seconds" if times["device"] == "cpu" else "wall time"
    peak, peak_all = (f"{times[key] / 2**20:.0f} MB" for key in ("peak_bytes", "peak_bytes_all"))
    entry = f"{times['pose_difference']:.1e}"
    return [
        ("network", f"{times['predictor']}, {times['width']} x {times['height']}, {weights}"),
        ("device", f"{times['device']}, {threads}{products}"),
        ("figures", f"medians of {times['repeats']}; seconds of wall time, naive/ of {ratio}, measured in turns"),
        ("edge", f"a new image against a keyframe; ready: the first one; against {times['keyframes']}: keyframes"),
        ("equal", f"no entry of a naive pose moves by more than {entry} by the fused way; degrees: largest of 6"),
        ("peak memory", f"{peak} with the first way, {peak_all} with all of them"),
    ]


def render(rows: Sequence[Sequence[str]], *, title: str = "", width: int = 110) -> str:
    """Rows as an aligned table without colors."""
    table = Table(title=title or None, title_justify="left", show_header=False, box=None, pad_edge=False)
    for column in range(len(rows[0])):
        table.add_column(no_wrap=column == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=width, markup=False, highlight=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def training_rows(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Speed of each way of training, with the column headings first."""
    rows: list[tuple[str, ...]] = [("trained", "cache", "pairs/s", "waiting for data", "gain", "MB a pair")]
    for one in found:
        rows.append(
            (
                one["tune"],
                one["cache"],
                f"{one['pairs_per_s']:.3g}",
                f"{100 * one['waiting_share']:.1f} %",
                f"{one['gain']:.1f}",
                f"{one['cached_bytes'] / 1e6:.2f}",
            )
        )
    return rows

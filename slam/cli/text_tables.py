"""Formatting of run states, summaries and tables as text; `slam.cli` prints it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from slam.bench.ablation import AblationRow
from slam.bench.cost import RunCost, StageCost
from slam.bench.live_latency import LiveLatency
from slam.bench.recording_cost import RecordingCost
from slam.components.predictor_choice import RANDOM_WEIGHTS
from slam.run.run_statistics import RunStatistics

if TYPE_CHECKING:
    from slam.map.lens_evidence import LensEvidence


MIN_OVERLAY_SHARE = 0.01  # minimum fraction of overlay points to report; less may be a speck of dirt
MIN_RESTING_SHARE = 0.1  # minimum fraction of frames at rest to report


def state_line(statistics: RunStatistics, frames: int, seconds: float) -> str:
    """State of a run in one line: 'tracking, 24.1 fps, 31 keyframes, 2 loops'."""
    parts = [statistics.state.value, f"{frames / seconds if seconds > 0 else 0.0:.1f} fps"]
    parts += [_count(statistics.keyframes, "keyframe")]
    if statistics.loops_accepted:
        parts.append(_count(statistics.loops_accepted, "loop"))
    if statistics.lost:
        parts.append(f"lost {_count(len(statistics.lost), 'time')}")
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def summary_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Summary of a run, from its report."""
    loops, lost, stages = report["loops"], report["lost_episodes"], report["stage_ms"]
    rows = [("WARNING", RANDOM_WEIGHTS.upper())] if report["predictor"]["random_weights"] else []
    rows.append(("verdict", verdict_words(report["verdict"])))
    rows += [
        ("frames", f"{report['frames']}" + (" (interrupted)" if report["status"] == "interrupted" else "")),
        ("tracked", f"{report['tracked']} ({_percent(report['coverage'])}; "
                    f"{_percent(report['coverage_after_start'])} since the map began)"),
        ("keyframes", str(report["keyframes"])),
        ("loops", f"{loops['accepted']} accepted, {loops['rejected']} rejected"),
        ("lost", _lost_words(lost)),
    ]  # fmt: skip
    rows += _image_rows(report)
    if report["other_segments"]:
        frames = _count(sum(report["other_segments"]), "frame")
        rows.append(("apart", f"{frames} in {_count(len(report['other_segments']), 'other map')} of their own"))
    rows.append(("path", _path_words(report["path_length"], report["units"])))
    if words := _lens_words(report["lens"]):
        rows.append(("camera", words))
    rows += [("camera, apart", words) for lens in report["other_lenses"] if (words := _other_lens_words(lens))]
    if first := report.get("first_pass"):
        tracked, grade = _percent(first.coverage), first.verdict.grade
        rows.append(("first pass", f"{grade}, {tracked} tracked, in first_pass/; {first.reason}"))
    rows += _map_rows(report.get("map"))
    if report["skipped"] or report["dropped"]:
        rows.append(("left out", f"{len(report['skipped'])} unreadable, {report['dropped']} dropped"))
    rows.append(("speed", f"{report['fps']:.1f} frames/s ({report['wall_s']:.1f} s)"))
    slowest = sorted(stages.items(), key=lambda item: -item[1]["p95"])[:3]
    if slowest:
        rows.append(("slowest, p95", ", ".join(f"{name} {times['p95']:.0f} ms" for name, times in slowest)))
    rows.append(("peak memory", f"{report['peak_memory_mb']:.0f} MB"))
    rows += _accuracy_rows(report["evaluation"], report["units"])
    return rows


def verdict_words(verdict: Mapping[str, Any]) -> str:
    """Verdict of a run with its reasons: 'partial: 64 of 100 frames (64 %) have a pose in the map'."""
    return ": ".join(filter(None, (str(verdict["grade"]), "; ".join(verdict["reasons"]))))


def _path_words(length: float, units: Mapping[str, Any]) -> str:
    return f"{length:.3f} {units['name']}" + (f" (scale: {units['source']})" if units["source"] else "")


def _lens_words(lens: Mapping[str, Any]) -> str:
    """Evidence about the lens; empty for a given camera that the evidence supports."""
    file = " (camera.yaml)" if lens["has_calibration"] else ""
    distorted_pixels = f"images distorted by {lens['corner_px']:.1f} px at the corners" if lens["corner_px"] else ""
    parts = [_focal_words(lens)]
    if distorted_pixels:
        parts.append(
            f"{distorted_pixels}{file}"
            if lens["assumed"]
            else f"{distorted_pixels} beyond the calibration, now corrected{file}"
        )
    elif parts[0]:
        parts[0] += file
    if change := lens["change"]:
        parts.append(str(change))
    return "; ".join(part for part in parts if part)


def _other_lens_words(evidence: LensEvidence) -> str:
    """Evidence against the camera of another segment; a change between two segments is reported only once."""
    if evidence.change is not None or not evidence.reason:
        return ""
    return f"{evidence.state}: {evidence.reason}"


def _focal_words(lens: Mapping[str, Any]) -> str:
    """Evidence about the focal length; empty if it was given and the evidence supports it."""
    start, final = lens["focal_px"]["start"], lens["focal_px"]["final"]
    source = "assumed" if lens["assumed"] else "given"
    if (before := lens.get("before_run")) and before["is_used"]:
        source = f"estimated before the run, {before['assumed_px']:.1f} assumed"
    sigma = "" if lens["focal_sigma"] is None else f", +- {100 * lens['focal_sigma']:.1f} %"
    match lens["state"]:
        case "known":
            return f"focal length {final:.1f} px{sigma}, found in the footage ({start:.1f} {source})"
        case "guess":
            moved = f"{sigma} ({start:.1f} {source})" if final != start else f" ({source})"
            return (
                f"focal length {final:.1f} px is a guess{moved}: this footage does not determine it ({lens['reason']})"
            )
        case _ if lens["reason"]:
            return f"focal length {start:.1f} px as given, but {lens['reason']}"
        case _:
            return ""


def _image_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Image regions that do not show the scene, and the fraction of frames at rest."""
    rows = []
    if report.get("masked_share", 0.0) > 0:
        rows.append(("masked", f"{_percent(report['masked_share'])} of the image"))
    if report.get("overlay_share", 0.0) >= MIN_OVERLAY_SHARE:
        share = f"{_percent(report['overlay_share'])} of the points never move in the image (an overlay?)"
        rows.append(("overlay", f"{share}; they were left out; --mask names such a region"))
    if report["frames"] and report.get("frames_resting", 0) >= MIN_RESTING_SHARE * report["frames"]:
        rows.append(
            (
                "at rest",
                f"the camera did not move in {_percent(report['frames_resting'] / report['frames'])} of the frames",
            )
        )
    return rows


def _map_rows(report: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if not report or not report["from"]:
        return []
    return [("map", map_words(report))]


def map_words(report: Mapping[str, Any]) -> str:
    """Whether the run was localized in the map in which it started."""
    name, found = report["from"], report["found_at_frame"]
    if found >= 0:
        words = f"found in {name} at frame {found}"
    elif report["poses_in_map"]:
        words = f"found in {name} on the way"
    elif report["localize_only"]:
        return f"NOT FOUND in {name}"
    else:
        return f"NOT FOUND in {name}: poses are in a frame and units of their own"
    return words + (", which stays as it is" if report["localize_only"] else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _lost_words(lost: Sequence[Any]) -> str:
    if not lost:
        return "never"
    frames = sum(episode.frames for episode in lost)
    return f"{_count(len(lost), 'time')}, {_count(frames, 'frame')} (first: {lost[0].reason})"


def _accuracy_rows(evaluation: Mapping[str, Any] | None, units: Mapping[str, Any]) -> list[tuple[str, str]]:
    if evaluation is None:
        return []
    if "error" in evaluation:
        return [("accuracy", f"not measured: {evaluation['error']}")]
    return [
        (
            "ATE, Sim(3)",
            f"{evaluation['ate_sim3']['rmse']:.4f} ({evaluation['ate_percent']:.2f} % of the path)",
        ),
        (
            "ATE, SE(3)",
            f"{evaluation['ate_se3']['rmse']:.4f}"
            + ("" if units["source"] else " (the estimate is in map units, so this is no accuracy)"),
        ),
    ]


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
    coverage = f"{_percent(evaluation['coverage'])} ({evaluation['covered']} of {evaluation['expected']} "
    rows.append(("coverage", coverage + f"{evaluation['coverage_of']})"))
    return rows


def bench_rows(cost: RunCost) -> list[tuple[str, str]]:
    """Total time and memory of a run."""
    return [
        ("frames", f"{cost.frames}, {cost.tracked} of them tracked, {_count(cost.keyframes, 'keyframe')}"),
        ("predictor", _predictor_words(cost)),
        ("speed", f"{cost.live_fps:.1f} frames/s live, {cost.fps:.1f} with the last refinement"),
        ("time", f"{cost.wall_s:.1f} s, {cost.finish_s:.1f} s of it the last refinement; CPU {cost.cpu_s:.1f} s"),
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
        ("tracked", f"{found.tracked} of {found.frames} frames, {_count(found.keyframes, 'keyframe')}"),
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
            (part.name, *errors, _percent(part.coverage), str(part.keyframes), str(part.loops), seconds, part.reason)
        )
    return rows


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
    threads = _count(times["threads"], "thread")
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

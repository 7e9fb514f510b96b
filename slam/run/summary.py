"""The figures of a run in words, from its report: the summary at the end of `slam run`, and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slam.components.predictor_choice import RANDOM_WEIGHTS

if TYPE_CHECKING:
    from slam.map.lens_evidence import LensEvidence

MIN_OVERLAY_SHARE = 0.01  # minimum fraction of overlay points to report; less may be a speck of dirt
MIN_RESTING_SHARE = 0.1  # minimum fraction of frames at rest to report


def summary_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Summary of a run, from its report."""
    loops, lost, stages = report["loops"], report["lost_episodes"], report["stage_ms"]
    rows = [("WARNING", RANDOM_WEIGHTS.upper())] if report["predictor"]["random_weights"] else []
    rows.append(("verdict", verdict_words(report["verdict"])))
    rows += [
        ("frames", f"{report['frames']}" + (" (interrupted)" if report["status"] == "interrupted" else "")),
        ("tracked", f"{report['tracked']} ({percent(report['coverage'])}; "
                    f"{percent(report['coverage_after_start'])} since initialization)"),
        ("keyframes", str(report["keyframes"])),
        ("loops", f"{loops['accepted']} accepted, {loops['rejected']} rejected"),
        ("lost", _lost_words(lost)),
    ]  # fmt: skip
    rows += _image_rows(report)
    if report["other_segments"]:
        frames = counted(sum(report["other_segments"]), "frame")
        rows.append(("other segments", f"{frames} in {counted(len(report['other_segments']), 'segment')} of own units"))
    rows.append(("path", _path_words(report["path_length"], report["units"])))
    if words := _lens_words(report["lens"]):
        rows.append(("camera", words))
    rows += [("camera, others", words) for lens in report["other_lenses"] if (words := _other_lens_words(lens))]
    if first := report.get("first_pass"):
        tracked, grade = percent(first.coverage), first.verdict.grade
        rows.append(("first pass", f"{grade}, {tracked} tracked, in first_pass/; {first.reason}"))
    rows += _map_rows(report.get("map"))
    if report["skipped"] or report["dropped"] or report["left_out"]:
        other = f", {report['left_out']} of another focal length" if report["left_out"] else ""
        rows.append(("left out", f"{len(report['skipped'])} unreadable, {report['dropped']} dropped{other}"))
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
    file = "; see camera.yaml" if lens["has_calibration"] else ""
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
        rows.append(("masked", f"{percent(report['masked_share'])} of the image"))
    if report.get("overlay_share", 0.0) >= MIN_OVERLAY_SHARE:
        share = f"{percent(report['overlay_share'])} of the points never move in the image (an overlay?)"
        rows.append(("overlay", f"{share}; they were left out; --mask names such a region"))
    if report["frames"] and report.get("frames_resting", 0) >= MIN_RESTING_SHARE * report["frames"]:
        rows.append(
            (
                "at rest",
                f"the camera did not move in {percent(report['frames_resting'] / report['frames'])} of the frames",
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


def _lost_words(lost: Sequence[Any]) -> str:
    if not lost:
        return "never"
    frames = sum(episode.frames for episode in lost)
    return f"{counted(len(lost), 'time')}, {counted(frames, 'frame')} (first: {lost[0].reason})"


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


def counted(number: int, noun: str) -> str:
    """A number with its noun: '1 loop', '2 loops'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"

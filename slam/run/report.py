"""Contents of report.json: during a run, when it ends, and when it fails."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relocalizer import __version__
from relocalizer.camera import Camera
from relocalizer.errors import OutputError
from relocalizer.intrinsics_correction import IntrinsicsCorrection
from slam.components.predictor_choice import PredictorChoice
from slam.evaluation.verdict import Grade, Verdict
from slam.run.plain_values import plain, summarize
from slam.run.run_statistics import RunStatistics, percentiles
from slam.run.runner import Failure, RunOutcome

if TYPE_CHECKING:
    from slam.config.schema import SlamConfig
    from slam.input.frame_source import FrameSource
    from slam.map.lens_evidence import LensEvidence
    from slam.result import SlamResult


REPORT_FORMAT = 1
REPORT = "report.json"
_DEPENDENCIES = (
    "numpy",
    "scipy",
    "opencv-python-headless",
    "gtsam",
    "faiss-cpu",
    "torch",
    "rerun-sdk",
    "poselib",
)


@dataclass(frozen=True, slots=True)
class RunFailures:
    """Errors of a run.

    Attributes:
        broken: the exception that ended it, and errors of files that could not be written.
        dropped: errors of observers, on which the result does not depend.
    """

    broken: tuple[Failure, ...] = ()
    dropped: tuple[Failure, ...] = ()


def report_text(report: Mapping[str, Any]) -> str:
    """A report as the text of report.json."""
    return json.dumps(plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def opening_report(config: SlamConfig, source: FrameSource, choice: PredictorChoice) -> dict[str, Any]:
    """Contents of report.json during the run."""
    return {
        "format": REPORT_FORMAT,
        "status": "running",
        "reason": "",
        "source": {"name": source.name, "description": source.description, "length": source.length},
        "camera": source.camera,
        "calibration": source.calibration,
        "predictor": {
            "kind": choice.kind,
            "reason": choice.reason,
            "random_weights": config.predictor.random_weights,
            "backend": config.predictor.backend,
            "precision": config.predictor.precision,
        },
        "seed": config.seed,
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def closing_report(
    opening: Mapping[str, Any],
    outcome: RunOutcome,
    statistics: RunStatistics,
    verdict: Verdict,
    failures: RunFailures,
    *,
    evaluation: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Contents of report.json of a run that was finished, interrupted, or ended by an exception."""
    status = "interrupted" if outcome.interrupted else "finished"
    reasons = [failure.sentence for failure in failures.broken[:1]]
    if verdict.grade is Grade.FAILED:
        reasons += verdict.reasons
    return {
        **opening,
        "status": "failed" if failures.broken else status,
        "reason": "; ".join(reasons),
        "verdict": {"grade": verdict.grade, "reasons": list(verdict.reasons)},
        "errors": [_error_report(failure) for failure in (*failures.broken, *failures.dropped)],
        **_coverage_report(outcome),
        **_camera_report(opening, outcome.result),
        "units": {**summarize(outcome.result.units), "problem": outcome.scale_problem},
        "other_segments": [len(segment) for segment in outcome.result.segments],
        "lost_episodes": statistics.lost,
        "lost_frames": statistics.lost_frames,
        "weak_frames": statistics.weak_frames,
        "reprojection_px": outcome.result.reprojection_px,
        "keyframes": len(outcome.result.keyframe_trajectory),
        "edges": statistics.edges,
        "loops": {"accepted": statistics.loops_accepted, "rejected": statistics.loops_rejected},
        "scale_unobservable": statistics.scale_unobservable,
        "overlay_share": statistics.overlay_share,
        "moving_share": statistics.moving_share,
        "unexplained_share": statistics.unexplained_share,
        "frames_resting": statistics.resting,
        "skipped": [{"name": name, "reason": reason} for name, reason in outcome.skipped],
        "dropped": outcome.dropped,
        "wall_s": outcome.wall_s,
        "fps": outcome.frames / outcome.wall_s,
        "stage_ms": percentiles({"read": outcome.read_ms, **statistics.stage_ms}),
        "peak_memory_mb": outcome.peak_memory_mb,
        "evaluation": evaluation,
    }


def _coverage_report(outcome: RunOutcome) -> dict[str, Any]:
    """How many of the frames have a pose in the largest map."""
    trajectory, stamps = outcome.result.trajectory, outcome.expected_ns
    since_start = int((stamps >= trajectory.timestamps_ns[0]).sum()) if len(trajectory) else 0
    return {
        "frames": outcome.frames,
        "tracked": len(trajectory),
        "coverage": len(trajectory) / outcome.frames if outcome.frames else 0.0,
        "coverage_after_start": len(trajectory) / since_start if since_start else 0.0,
        "path_length": trajectory.length,
    }


def _camera_report(opening: Mapping[str, Any], result: SlamResult) -> dict[str, Any]:
    """The final camera of the largest map, and the evidence for it and for the cameras of all other segments."""
    given: Camera = opening["calibration"]
    calibration = result.lens.calibration(given)
    before = opening["lens"]
    was_estimated = before["before_run"] is not None and before["before_run"]["is_used"]
    return {
        "camera": result.camera if result.lens.has_corrections else opening["camera"],
        "calibration": calibration or given,
        "lens": {
            **_lens_report(given, calibration, result.lens, result.lens_evidence),
            **before,
            "has_calibration": calibration is not None and (result.lens.has_corrections or was_estimated),
        },
        "other_lenses": result.segment_lens_evidence,
    }


def failed_report(opening: Mapping[str, Any], error: BaseException) -> dict[str, Any]:
    """Contents of report.json of a run that ended without a result."""
    if isinstance(error, KeyboardInterrupt):
        return {**opening, "status": "interrupted", "reason": "KeyboardInterrupt"}
    failure = Failure("the run", error if isinstance(error, Exception) else RuntimeError(repr(error)))
    return {**opening, "status": "failed", "reason": failure.sentence, "errors": [_error_report(failure)]}


def _error_report(failure: Failure) -> dict[str, str]:
    entry = {"doing": failure.doing, "error": failure.sentence}
    return {**entry, "traceback": failure.traceback} if failure.is_internal else entry


def _lens_report(
    given: Camera, found: Camera | None, lens: IntrinsicsCorrection, evidence: LensEvidence
) -> dict[str, Any]:
    """Evidence about the lens; focal lengths in pixels of the source's images, as in `found`.

    `focal_px` contains the initial focal length, the final one, and the one that the observations determine, if any.
    """
    start = given.mean_focal
    final = start if lens.start is None else start * lens.camera.mean_focal / lens.start.mean_focal
    max_displacement_px = 0.0 if lens.start is None else lens.max_displacement_px * given.width / lens.start.width
    return {
        "state": evidence.state,
        "assumed": given.assumed,
        "focal_px": {
            "start": start,
            "final": final if found is None else found.mean_focal,
            "wanted": None if evidence.focal_ratio is None else start * evidence.focal_ratio,
        },
        "focal_sigma": evidence.focal_sigma,
        "reason": evidence.reason,
        "change": evidence.change,
        "may_change": evidence.may_change,
        "corner_px": max_displacement_px,
    }


def versions() -> dict[str, str]:
    """The version of this code, and those of the dependencies that affect its results, without importing them.

    The metadata of an editable installation may be those of an earlier version, so they are not asked for this package.
    """
    found = {"reloc3r-slam": __version__}
    for name in _DEPENDENCIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a run folder.

    Raises:
        OutputError: the folder has no report, or it cannot be read.
    """
    path = folder / REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OutputError(f"{folder}: not a run folder ({REPORT} is missing); give one that slam run made") from None
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: not a readable report ({error})") from None
    if not isinstance(report, dict) or report.get("format") != REPORT_FORMAT:
        raise OutputError(f"{path}: expected a report of format {REPORT_FORMAT}")
    return report

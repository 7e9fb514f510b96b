"""A run folder: what a run leaves on disk, written so that a crash or Ctrl-C leaves something readable."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.errors import OutputError
from relocalizer.geometry import Similarity, rigid
from relocalizer.images import Camera
from relocalizer.lens import Lens
from relocalizer.map_folder import save_map
from slam.events import Event, FrameProcessed
from slam.frames import Frame, Keyframe
from slam.pipeline import (
    Failure,
    PredictorChoice,
    RunOutcome,
    RunStatistics,
    percentiles,
)
from slam.trajectory import Trajectory, write_tum
from slam.verdict import Grade, Verdict

if TYPE_CHECKING:
    from relocalizer.reference_map import ReferenceMap
    from slam.config import SlamConfig
    from slam.frame_source import FrameSource
    from slam.lens_evidence import LensEvidence
    from slam.slam_result import SlamResult

logger = logging.getLogger(__name__)

REPORT_FORMAT = 1
CONFIG, EVENTS, REPORT = "config.yaml", "events.jsonl", "report.json"
CAMERA = "camera.yaml"
TRAJECTORY, KEYFRAMES, ONLINE = "trajectory.txt", "keyframes.txt", "trajectory_online.txt"
MAP, KEYFRAMES_ON_THE_WAY = "map", ".keyframes"

_CHECKPOINT_S = 5.0
# A checkpoint may take this share of the time at most; long runs are saved less often.
_CHECKPOINT_SHARE = 0.05
# Longer arrays are logged by their shape: the log is for reading what happened, not for rebuilding it.
_LOGGED_NUMBERS = 16
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


def next_run_folder(parent: Path, name: str) -> Path:
    """The first of name-1, name-2, ... below `parent` that does not exist."""
    number = 1
    while os.path.lexists(parent / f"{name}-{number}"):
        number += 1
    return parent / f"{name}-{number}"


class RunFolder:
    """Writes the files of one run. Make one with `create`."""

    def __init__(self, path: Path, *, is_new: bool = False) -> None:
        self.path = path
        self._is_new = is_new

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new or empty folder.

        Raises:
            OutputError: it holds something already, or cannot be made or written.
        """
        is_new = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise OutputError(
                    f"{path}: is there already and not empty; choose another --out or remove it "
                    "(nothing is overwritten)"
                )
            probe = path / ".probe"
            probe.touch()
            probe.unlink()
        except (FileExistsError, NotADirectoryError):
            raise OutputError(f"{path}: a file stands where a folder is needed; choose another --out") from None
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be written ({error.strerror}); choose another folder with --out"
            ) from None
        return cls(path, is_new=is_new)

    def discard(self) -> None:
        """Take back a folder in which nothing was started; a recording that is in it goes too."""
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if self._is_new:
            with suppress(OSError):
                self.path.rmdir()

    def write_config(self, text: str) -> None:
        """The effective settings. Raises OutputError when the disk refuses."""
        write_atomically(self.path / CONFIG, text)

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Replace report.json in one step. Raises OutputError when the disk refuses."""
        write_atomically(self.path / REPORT, report_text(report))

    def write_trajectory(self, name: str, trajectory: Trajectory, *, note: str = "") -> None:
        """Replace one trajectory file in one step. Raises OutputError when the disk refuses."""
        with _replacing(self.path / name) as temporary:
            write_tum(temporary, trajectory, note=note)

    def result_files(self, result: SlamResult, calibration: Camera) -> list[tuple[str, Callable[[], None]]]:
        """The final trajectories, as (file name, what writes it): every frame, keyframes, live poses, other segments.

        With them goes a camera.yaml when more is known of the lens than `calibration`, of the source's own pictures,
        and a camera can say it.
        """
        note = result.units.note
        trajectories = [
            (TRAJECTORY, result.trajectory, note),
            (KEYFRAMES, result.keyframe_trajectory, note),
            (ONLINE, result.online, note),
        ]
        trajectories += [
            (f"trajectory_segment{number}.txt", segment, "") for number, segment in enumerate(result.segments, start=2)
        ]
        files: list[tuple[str, Callable[[], None]]] = [
            (name, partial(self.write_trajectory, name, trajectory, note=said))
            for name, trajectory, said in trajectories
        ]
        found = result.lens.calibration(calibration)
        if result.lens.is_known_better and found is not None and not found.assumed:
            files.append((CAMERA, partial(write_atomically, self.path / CAMERA, found.to_yaml())))
        return files

    def write_map(self, reference_map: ReferenceMap) -> None:
        """Write `map/`, whole or not at all. Raises OutputError when the disk refuses."""
        save_map(self.path / MAP, reference_map)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that after a crash either the old or the new one is there, whole.

    Bytes of a file's name that are no text are written as `\\udcXX`, which JSON reads back as what they were.

    Raises:
        OutputError: no space, no permission, or the like.
    """
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write: it takes its place when it is whole, and goes when it is not."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, OutputError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise error if isinstance(error, OutputError) else _refused(path, error) from None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Whatever the disk says becomes one line."""
    try:
        yield
    except OSError as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(f"{path}: cannot be written ({reason}); make room or choose another place with --out")


class EventLog:
    """An observer that streams every event to events.jsonl, a line each, arrays shortened."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.path / EVENTS
        with _writing(self._path):
            self._file: TextIO = self._path.open("w", encoding="utf-8", buffering=1)

    def __call__(self, event: Event) -> None:
        line = json.dumps({"event": type(event).__name__, **summarise(event)}, allow_nan=False)
        try:
            self._file.write(line + "\n")
        except OSError as error:
            with suppress(OSError):  # closing tries to write the rest once more
                self._file.close()
            raise _refused(self._path, error) from None

    def close(self) -> None:
        """Safe to call twice. Raises OutputError when the disk refuses."""
        with _writing(self._path):
            self._file.close()


class Checkpoints:
    """An observer that saves the live trajectory now and then, so that even a killed run can be read."""

    def __init__(self, folder: RunFolder, report: dict[str, Any], *, every_s: float = _CHECKPOINT_S) -> None:
        self._folder, self._report, self._every_s = folder, report, every_s
        self._times: list[int] = []
        self._poses: list[np.ndarray[Any, np.dtype[np.float64]]] = []
        self._frames = 0
        self._due = time.monotonic() + every_s
        self._has_warned = False

    def __call__(self, event: Event) -> None:
        if not isinstance(event, FrameProcessed):
            return
        self._frames += 1
        if event.world_from_cam is not None:
            self._times.append(event.frame.timestamp_ns)
            self._poses.append(event.world_from_cam.as_matrix())
        if time.monotonic() >= self._due:
            self._save_if_possible()

    def _save_if_possible(self) -> None:
        """A disk that refuses now may have room again at the next time."""
        try:
            self.save()
        except OutputError as error:
            self._due = time.monotonic() + self._every_s
            if not self._has_warned:
                logger.warning("%s", error)
                self._has_warned = True

    def save(self) -> None:
        """Write what there is. Raises OutputError when the disk refuses."""
        started = time.monotonic()
        live = Trajectory(np.array(self._times, np.int64), np.array(self._poses).reshape(-1, 4, 4))
        self._folder.write_trajectory(TRAJECTORY, live)
        self._folder.write_report({**self._report, "frames": self._frames, "tracked": len(live)})
        took = time.monotonic() - started
        self._due = started + max(self._every_s, took / _CHECKPOINT_SHARE)


def report_text(report: Mapping[str, Any]) -> str:
    """A report as the text of report.json."""
    return json.dumps(_plain(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def summarise(value: Any) -> dict[str, Any]:
    """The fields of an event (or another dataclass) as plain values in their order, big arrays by shape."""
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: Any) -> Any:
    """What JSON can hold. Numbers are rounded to nine digits; NaN and infinity become null."""
    match value:
        case Enum():
            return value.value
        case bool() | int() | str() | None:
            return value
        case float() | np.floating():
            return float(f"{value:.9g}") if math.isfinite(value) else None
        case np.integer() | np.bool_():
            return value.item()
        case RigidTransform():
            return _plain([*value.translation, *value.rotation.as_quat(canonical=True)])
        case Similarity():
            return [*_plain(rigid(value.rotation, value.translation)), _plain(value.scale)]
        case Frame():
            return {"index": value.index, "timestamp_ns": value.timestamp_ns}
        case Keyframe():
            return {name: getattr(value, name) for name in ("id", "frame_index", "timestamp_ns")}
        case np.ndarray():
            return _plain_array(value)
        case Mapping():
            if len(value) > _LOGGED_NUMBERS and not all(isinstance(key, str) for key in value):
                return {"count": len(value)}
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case Path():
            return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return summarise(value)
    raise TypeError(f"{type(value).__name__} has no place in a report")


def _plain_array(value: np.ndarray[Any, Any]) -> Any:
    if value.dtype == np.bool_:
        return {"true": int(value.sum()), "of": int(value.size)}
    if value.size <= _LOGGED_NUMBERS:
        return _plain(value.tolist())
    return {"shape": list(value.shape)}


def opening_report(config: SlamConfig, source: FrameSource, choice: PredictorChoice) -> dict[str, Any]:
    """report.json as it stands while the run goes on."""
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
    *,
    broken: Sequence[Failure] = (),
    dropped: Sequence[Failure] = (),
    evaluation: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """report.json of a run that came to its end, by itself, by Ctrl-C or by an exception.

    Args:
        broken: what ended it, and files that could not be written.
        dropped: observers that failed; the result does not depend on them.
    """
    trajectory, stamps = outcome.result.trajectory, outcome.expected_ns
    since_start = int((stamps >= trajectory.timestamps_ns[0]).sum()) if len(trajectory) else 0
    status = "interrupted" if outcome.interrupted else "finished"
    reasons = [failure.sentence for failure in broken[:1]]
    if verdict.grade is Grade.FAILED:
        reasons += verdict.reasons
    result = outcome.result
    calibration = result.lens.calibration(opening["calibration"])
    return {
        **opening,
        "status": "failed" if broken else status,
        "reason": "; ".join(reasons),
        "verdict": {"grade": verdict.grade, "reasons": list(verdict.reasons)},
        "errors": [_error_report(failure) for failure in (*broken, *dropped)],
        "frames": outcome.frames,
        "tracked": len(trajectory),
        "coverage": len(trajectory) / outcome.frames if outcome.frames else 0.0,
        "coverage_after_start": len(trajectory) / since_start if since_start else 0.0,
        "path_length": trajectory.length,
        "camera": outcome.result.camera if outcome.result.lens.is_known_better else opening["camera"],
        "calibration": calibration or opening["calibration"],
        "lens": _lens_report(opening["calibration"], calibration, result.lens, result.lens_evidence),
        "other_lenses": result.segment_lens_evidence,
        "units": {**summarise(outcome.result.units), "problem": outcome.anchor_problem},
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
        "frames_resting": statistics.resting,
        "skipped": [{"name": name, "reason": reason} for name, reason in outcome.skipped],
        "dropped": outcome.dropped,
        "wall_s": outcome.wall_s,
        "fps": outcome.frames / outcome.wall_s,
        "stage_ms": percentiles({"read": outcome.read_ms, **statistics.stage_ms}),
        "peak_memory_mb": outcome.peak_memory_mb,
        "evaluation": evaluation,
    }


def failed_report(opening: Mapping[str, Any], error: BaseException) -> dict[str, Any]:
    """report.json of a run that ended without a result."""
    if isinstance(error, KeyboardInterrupt):
        return {**opening, "status": "interrupted", "reason": "KeyboardInterrupt"}
    failure = Failure("the run", error if isinstance(error, Exception) else RuntimeError(repr(error)))
    return {**opening, "status": "failed", "reason": failure.sentence, "errors": [_error_report(failure)]}


def _error_report(failure: Failure) -> dict[str, str]:
    said = {"doing": failure.doing, "error": failure.sentence}
    return {**said, "traceback": failure.traceback} if failure.is_internal else said


def _lens_report(given: Camera, found: Camera | None, lens: Lens, evidence: LensEvidence) -> dict[str, Any]:
    """What is known of the lens; focal lengths in pixels of the source's own pictures, as in `found`.

    `focal_px` has that of the start, that which the run ends with, and that which the footage wants, if it tells one.
    """
    start = given.mean_focal
    kept = start if lens.start is None else start * lens.camera.mean_focal / lens.start.mean_focal
    corner_px = 0.0 if lens.start is None else lens.corner_px * given.width / lens.start.width
    return {
        "state": evidence.state,
        "assumed": given.assumed,
        "focal_px": {
            "start": start,
            "final": kept if found is None else found.mean_focal,
            "wanted": None if evidence.focal_ratio is None else start * evidence.focal_ratio,
        },
        "focal_sigma": evidence.focal_sigma,
        "reason": evidence.reason,
        "change": evidence.change,
        "corner_px": corner_px,
        "has_calibration": lens.is_known_better and found is not None and not found.assumed,
    }


def versions() -> dict[str, str]:
    """Installed versions of the product and of what its results depend on, without importing them."""
    found = {}
    for name in ("reloc3r-slam", *_DEPENDENCIES):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def read_report(folder: Path) -> dict[str, Any]:
    """A run folder's report.

    Raises:
        OutputError: there is none, or it cannot be read.
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

"""A run folder: what a run leaves on disk, written so that a crash or Ctrl-C leaves something readable."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.errors import OutputError
from relocalizer.geometry import Similarity, rigid
from relocalizer.images import Camera, decode_image, encode_jpeg
from relocalizer.lens import Lens
from relocalizer.map_folder import JPEG_QUALITY, save_map
from slam.events import Event, FrameProcessed, KeyframeAdded
from slam.frames import Frame, Keyframe
from slam.pipeline import RANDOM_WEIGHTS, PredictorChoice, RunOutcome, RunStatistics, percentiles, why_unusable
from slam.trajectory import Trajectory, write_tum

if TYPE_CHECKING:
    from relocalizer.reference_map import ReferenceMap
    from slam.config import SlamConfig
    from slam.sequence import FrameSource
    from slam.slam_result import SlamResult

REPORT_FORMAT = 1
CONFIG, EVENTS, REPORT = "config.yaml", "events.jsonl", "report.json"
CAMERA = "camera.yaml"
TRAJECTORY, KEYFRAMES, ONLINE = "trajectory.txt", "keyframes.txt", "trajectory_online.txt"
MAP, _KEYFRAMES_ON_THE_WAY = "map", ".keyframes"

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
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"


class RunFolder:
    """Writes the files of one run. Make one with `create`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new or empty folder.

        Raises:
            OutputError: it holds something already, or cannot be made or written.
        """
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
        return cls(path)

    def write_config(self, text: str) -> None:
        """The effective settings. Raises OutputError when the disk refuses."""
        write_atomically(self.path / CONFIG, text)

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Replace report.json in one step. Raises OutputError when the disk refuses."""
        text = json.dumps(_plain(report), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.path / REPORT, text + "\n")

    def write_trajectory(self, name: str, trajectory: Trajectory, *, note: str = "") -> None:
        """Replace one trajectory file in one step. Raises OutputError when the disk refuses."""
        with _replacing(self.path / name) as temporary:
            write_tum(temporary, trajectory, note=note)

    def write_result(self, result: SlamResult, calibration: Camera) -> None:
        """The final trajectories: every frame, keyframes, poses as they were live, and parts nothing ties.

        With them goes a camera.yaml when more was found of the lens than `calibration`, of the source's own pictures.
        """
        note = result.units.note
        self.write_trajectory(TRAJECTORY, result.trajectory, note=note)
        self.write_trajectory(KEYFRAMES, result.keyframe_trajectory, note=note)
        self.write_trajectory(ONLINE, result.online, note=note)
        if result.lens.is_known_better:
            write_atomically(self.path / CAMERA, result.lens.calibration(calibration).to_yaml())
        for number, segment in enumerate(result.segments, start=2):
            self.write_trajectory(f"trajectory_segment{number}.txt", segment)

    def write_map(self, reference_map: ReferenceMap) -> None:
        """Write `map/`, whole or not at all. Raises OutputError when the disk refuses."""
        save_map(self.path / MAP, reference_map)


class KeyframePictures:
    """An observer that puts the keyframes' pictures on the disk as they come, for the map that is saved at the end."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder.path / _KEYFRAMES_ON_THE_WAY

    def __call__(self, event: Event) -> None:
        if not isinstance(event, KeyframeAdded) or event.image is None:
            return
        with _writing(self._folder):
            self._folder.mkdir(exist_ok=True)
            self._path(event.keyframe.id).write_bytes(encode_jpeg(event.image, JPEG_QUALITY))

    def jpeg(self, keyframe_id: int) -> bytes:
        """A keyframe's picture. Raises OutputError when it cannot be read back."""
        with _writing(self._folder):
            return self._path(keyframe_id).read_bytes()

    def straightened(self, lens: Lens) -> Callable[[int], bytes]:
        """`jpeg`, of pictures as the corrected camera of the map would have taken them."""
        if not lens.bends:
            return self.jpeg

        def straight(keyframe_id: int) -> bytes:
            picture = decode_image(self.jpeg(keyframe_id), f"keyframe {keyframe_id}")
            return encode_jpeg(lens.picture(picture), JPEG_QUALITY)

        return straight

    def close(self) -> None:
        """Remove them; the map has its own."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, keyframe_id: int) -> Path:
        return self._folder / f"{keyframe_id:06d}.jpg"


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that after a crash either the old or the new one is there, whole.

    Raises:
        OutputError: no space, no permission, or the like.
    """
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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

    def __call__(self, event: Event) -> None:
        if not isinstance(event, FrameProcessed):
            return
        self._frames += 1
        if event.world_from_cam is not None:
            self._times.append(event.frame.timestamp_ns)
            self._poses.append(event.world_from_cam.as_matrix())
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Write what there is. Raises OutputError when the disk refuses."""
        started = time.monotonic()
        live = Trajectory(np.array(self._times, np.int64), np.array(self._poses).reshape(-1, 4, 4))
        self._folder.write_trajectory(TRAJECTORY, live)
        self._folder.write_report({**self._report, "frames": self._frames, "tracked": len(live)})
        took = time.monotonic() - started
        self._due = started + max(self._every_s, took / _CHECKPOINT_SHARE)


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
    *,
    evaluation: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """report.json of a run that came to its end, by itself or by Ctrl-C."""
    trajectory, stamps = outcome.result.trajectory, outcome.expected_ns
    since_start = int((stamps >= trajectory.timestamps_ns[0]).sum()) if len(trajectory) else 0
    meaningless = RANDOM_WEIGHTS if opening["predictor"]["random_weights"] else ""
    reason = "; ".join(filter(None, (meaningless, why_unusable(outcome, statistics))))
    calibration = outcome.result.lens.calibration(opening["calibration"])
    return {
        **opening,
        "status": "interrupted" if outcome.interrupted else "finished",
        "reason": reason,
        "usable": not reason,
        "frames": outcome.frames,
        "tracked": len(trajectory),
        "coverage": len(trajectory) / outcome.frames if outcome.frames else 0.0,
        "coverage_after_start": len(trajectory) / since_start if since_start else 0.0,
        "path_length": trajectory.length,
        "camera": outcome.result.camera if outcome.result.lens.is_known_better else opening["camera"],
        "calibration": calibration,
        "lens": _lens_report(opening["calibration"], calibration, outcome.result.lens),
        "units": {**summarise(outcome.result.units), "problem": outcome.anchor_problem},
        "other_segments": [len(segment) for segment in outcome.result.segments],
        "lost_episodes": statistics.lost,
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


def _lens_report(given: Camera, found: Camera, lens: Lens) -> dict[str, Any] | None:
    """What the run found of the lens, pixels of the source's own pictures as in `found`; None when there is nothing."""
    if lens.start is None:
        return None
    focal_px = {"start": given.mean_focal, "found": found.mean_focal} if lens.refocuses else None
    corner_px = lens.corner_px * given.width / lens.start.width
    return {"assumed": given.assumed, "focal_px": focal_px, "corner_px": corner_px}


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

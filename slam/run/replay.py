"""A finished run told again: the files of its folder back to the events they came from. Nothing is computed anew.

`events.jsonl` has what happened in order, with long arrays by their shape alone: points followed are counted and not
shown. The map has the keyframes' images, their last poses and the landmarks; without it (a run that was killed) the
poses come from `keyframes.txt` and the other two are missing, which `Replay.missing` says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.errors import UserError
from relocalizer.features import DESCRIPTOR_SIZE, LocalFeatures
from relocalizer.geometry import Similarity, rotation_from_quaternion_xyzw
from relocalizer.images import Image
from relocalizer.maps.map_reader import load_map
from relocalizer.maps.reference_map import ReferenceMap
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_tum
from slam.events import (
    EdgeAccepted,
    EdgeRejected,
    EstimateRefused,
    Event,
    FrameLocalizedLater,
    FrameNotLocalized,
    FrameProcessed,
    FramesSkipped,
    GraphOptimized,
    Initialized,
    KeyframeAdded,
    LandmarksUpdated,
    Relocalized,
    RunFinished,
    ScaleSet,
    ScaleUnobservable,
    TrackingLost,
)
from slam.map.frames import Frame, Keyframe
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.map.tracking_status import TrackingState
from slam.run.event_log import EVENTS
from slam.run.report import read_report
from slam.run.run_folder import KEYFRAMES, MAP, TRAJECTORY

_NO_IMAGE: Image = np.zeros((0, 0, 3), np.uint8)
_NO_FEATURES = LocalFeatures(
    np.zeros((0, 2), np.float32), np.zeros((0, DESCRIPTOR_SIZE), np.float32), np.zeros(0, np.float32)
)
_AT_THE_END = {"LandmarksUpdated", "RunFinished"}  # told once, from the files that hold their arrays


class ReplayError(UserError):
    """A run folder that cannot be told again."""


class Replay:
    """A run folder, opened with `open_replay`.

    Attributes:
        camera: of the run's images.
        frames: how many the run says it had; 0 when it was killed before it said so.
        missing: what the folder does not hold and what cannot be shown for it, a sentence each.
    """

    def __init__(
        self, folder: Path, report: Mapping[str, Any], kept: ReferenceMap | None, missing: Sequence[str]
    ) -> None:
        self.folder = folder
        self.camera = Camera(**{**report["camera"], "distortion": tuple(report["camera"]["distortion"])})
        self.frames = int(report.get("frames") or 0)
        self.missing = tuple(missing)
        self._report = report
        self._map = kept

    def events(self) -> Iterator[Event]:
        """What happened, in order, in the units of the run's trajectory.

        Frames have an image where they became a keyframe of the map, and an empty one elsewhere.

        Raises:
            ReplayError: a line of the log cannot be read.
            TrajectoryError: the trajectory cannot be read.
        """
        teller = _EventReader(self.camera, self._report, self._image_of_frame())
        yield from teller.read_events(self.folder / EVENTS)
        yield from self._outcome(teller)

    def _image_of_frame(self) -> Callable[[int], Image]:
        """The image of a frame by its index: only keyframes have kept theirs."""
        rows: dict[int, int] = {}
        for _, name, value in _lines(self.folder / EVENTS):
            if self._map is not None and name == "KeyframeAdded" and value["keyframe"]["id"] in self._map.row_of:
                rows[value["keyframe"]["frame_index"]] = self._map.row_of[value["keyframe"]["id"]]
        kept = self._map
        return lambda index: _NO_IMAGE if kept is None or index not in rows else kept.image(rows[index])

    def _outcome(self, teller: _EventReader) -> Iterator[Event]:
        """The map and the path as the run left them."""
        poses = self._final_poses(teller)
        if poses:
            yield GraphOptimized(
                frame_index=teller.last_frame,
                world_from_keyframe=poses,
                error_before=np.nan,
                error_after=np.nan,
                cause="the map as the run left it",
            )
        if self._map is not None:
            yield LandmarksUpdated(
                frame_index=teller.last_frame,
                ids=self._map.landmarks.ids,
                points_world=self._map.points_world,
                colors=self._map.landmarks.colors,
            )
        path = _trajectory(self.folder / TRAJECTORY)
        yield RunFinished(
            timestamps_ns=path.timestamps_ns,
            frame_indices=np.array([teller.index_at.get(t, -1) for t in path.timestamps_ns.tolist()], np.int64),
            world_from_cam=path.world_from_cam,
            interrupted=self._report["status"] != "finished",
        )

    def _final_poses(self, teller: _EventReader) -> dict[int, Similarity]:
        if self._map is not None:
            rows = self._map.row_of
            return {k: self._map.keyframes.world_from_keyframe(rows[k]) for k in teller.scale_of if k in rows}
        path = _trajectory(self.folder / KEYFRAMES)
        poses = zip(path.timestamps_ns.tolist(), path.world_from_cam, strict=True)
        known = {teller.keyframe_at[t]: pose for t, pose in poses if t in teller.keyframe_at}
        return {k: Similarity(pose[:3, :3], pose[:3, 3], teller.scale_of[k]) for k, pose in known.items()}


def open_replay(folder: Path) -> Replay:
    """Open a run folder.

    Raises:
        ReplayError: there is no such folder, or no log of events in it.
        OutputError: its report cannot be read. MapError: its map is damaged.
    """
    if not folder.is_dir():
        raise ReplayError(f"{folder}: no such folder; expected one that slam run made")
    report = read_report(folder)
    if not (folder / EVENTS).is_file():
        raise ReplayError(f"{folder}: holds no {EVENTS}, so there is nothing to tell again")
    there_is_a_map = (folder / MAP).is_dir()
    missing = [] if there_is_a_map else [f"no {MAP}/ in it: keyframes have no images and landmarks are not shown"]
    if report["status"] in ("running", "failed"):
        missing.append(
            f"the run did not end by itself ({report['reason'] or report['status']}): poses are as saved last"
        )
    return Replay(folder, report, load_map(folder / MAP) if there_is_a_map else None, missing)


class _EventReader:
    """Makes events of the lines of a log, and remembers what ties its frames and keyframes to other files."""

    def __init__(self, camera: Camera, report: Mapping[str, Any], image: Callable[[int], Image]) -> None:
        self._camera = camera
        self._image = image
        # Lines are in map units, files in those of the report.
        self._unit = float((report.get("units") or {}).get("meters_per_unit") or 1.0)
        self.last_frame = -1
        self.index_at: dict[int, int] = {}
        self.keyframe_at: dict[int, int] = {}
        self.scale_of: dict[int, float] = {}

    def read_events(self, path: Path) -> Iterator[Event]:
        for place, name, value in _lines(path):
            if name in _AT_THE_END:
                continue
            try:
                event = self._event(name, value)
            except (KeyError, TypeError, ValueError) as error:
                raise ReplayError(f"{place}: not the event {name} of this version ({error!r})") from None
            if event is not None:
                yield event

    def _event(self, name: str, value: dict[str, Any]) -> Event | None:
        match name:
            case "FrameProcessed":
                return self._frame(value)
            case "KeyframeAdded":
                return self._keyframe(value)
            case "EdgeAccepted":
                return EdgeAccepted(edge=_edge(value["edge"]), frame_index=value["frame_index"])
            case "EdgeRejected":
                return EdgeRejected(**{**value, "kind": EdgeKind(value["kind"])})
            case "GraphOptimized":
                errors = {key: _number(value[key]) for key in ("error_before", "error_after")}
                return GraphOptimized(
                    frame_index=value["frame_index"], world_from_keyframe={}, cause=value["cause"], **errors
                )
            case "Initialized":
                return Initialized(**{**value, "frame_indices": tuple(value["frame_indices"])})
            case "ScaleUnobservable":
                return ScaleUnobservable(**value)
            case "EstimateRefused":
                return EstimateRefused(**value)
            case "TrackingLost":
                return TrackingLost(**value)
            case "Relocalized":
                return Relocalized(**value)
            case "FrameLocalizedLater":
                return FrameLocalizedLater(**value)
            case "FrameNotLocalized":
                return FrameNotLocalized(**value)
            case "FramesSkipped":
                return FramesSkipped(**value)
            case "ScaleSet":
                return ScaleSet(**value)
        return None  # of a newer version

    def _frame(self, value: dict[str, Any]) -> FrameProcessed:
        index, timestamp_ns = value["frame"]["index"], value["frame"]["timestamp_ns"]
        self.last_frame = max(self.last_frame, index)
        self.index_at[timestamp_ns] = index
        agreeing, followed = _counts(value["is_inlier"])
        pose = value["world_from_cam"]
        return FrameProcessed(
            frame=Frame(index=index, timestamp_ns=timestamp_ns, image=self._image(index), camera=self._camera),
            state=TrackingState(value["state"]),
            reason=value["reason"],
            world_from_cam=None if pose is None else self._similarity([*pose, 1.0]).rigid,
            keyframe_id=value["keyframe_id"],
            pixels=np.zeros((0, 2), np.float32),
            track_ids=np.arange(followed),
            is_inlier=np.arange(followed) < agreeing,
            depth=self._unit * _number(value["depth"]),
            stage_ms=value["stage_ms"],
        )

    def _keyframe(self, value: dict[str, Any]) -> KeyframeAdded:
        pose, keyframe = self._similarity(value["world_from_keyframe"]), value["keyframe"]
        self.keyframe_at[keyframe["timestamp_ns"]] = keyframe["id"]
        self.scale_of[keyframe["id"]] = pose.scale
        return KeyframeAdded(
            keyframe=Keyframe(
                id=keyframe["id"],
                frame_index=keyframe["frame_index"],
                timestamp_ns=keyframe["timestamp_ns"],
                camera=self._camera,
                encoded=None,
                descriptor=np.zeros(1, np.float32),
                features=_NO_FEATURES,
            ),
            world_from_keyframe=pose,
            reason=value["reason"],
        )

    def _similarity(self, numbers: list[float]) -> Similarity:
        pose = _similarity(numbers)
        return Similarity(pose.rotation, self._unit * pose.translation, self._unit * pose.scale)


def _lines(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(place, name, fields) of each event; a last line that was cut off is left out."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    value = json.loads(line)
                    name = value.pop("event")
                except (ValueError, AttributeError, KeyError, TypeError):
                    if not line.endswith("\n"):
                        return
                    raise ReplayError(f"{path}, line {number}: not an event; expected what slam run wrote") from None
                yield f"{path}, line {number}", name, value
    except (OSError, UnicodeDecodeError) as error:
        raise ReplayError(f"{path}: cannot be read ({error})") from None


def _similarity(numbers: list[float]) -> Similarity:
    """From x, y, z, quaternion x, y, z, w, scale, as the log has them."""
    return Similarity(rotation_from_quaternion_xyzw(numbers[3:7]), np.array(numbers[:3]), numbers[7])


def _edge(value: dict[str, Any]) -> Edge:
    known = {field.name for field in fields(Edge)}
    plain = {key: item for key, item in value.items() if key in known}
    return Edge(**{**plain, "i_from_j": _similarity(value["i_from_j"]), "kind": EdgeKind(value["kind"])})


def _counts(is_inlier: Any) -> tuple[int, int]:
    """(true, all) of an array of truths, which the log counts."""
    return int(is_inlier["true"]), int(is_inlier["of"])


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _trajectory(path: Path) -> Trajectory:
    """A trajectory that may be empty."""
    nothing: NDArray[np.float64] = np.zeros((0, 4, 4))
    if not path.is_file():
        return Trajectory(np.zeros(0, np.int64), nothing)
    holds_poses = any(line.strip() and not line.startswith("#") for line in path.read_text("utf-8").splitlines())
    return read_tum(path) if holds_poses else Trajectory(np.zeros(0, np.int64), nothing)

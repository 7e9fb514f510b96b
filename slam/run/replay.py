"""Replay of a finished run: restores its events from the files of the run folder, without recomputation.

`events.jsonl` contains the events in order, with only the shape of long arrays: tracked points are known in the
frames that became keyframes, and counted in all others. The map contains the keyframes' images, their final poses and
the landmarks. Without a map (a killed run) the poses come from `keyframes.txt`, and `Replay.missing` lists the
missing images and landmarks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.errors import UserError
from relocalizer.features import DESCRIPTOR_SIZE, LocalFeatures
from relocalizer.geometry import Similarity, rotation_from_quaternion_xyzw
from relocalizer.images import Image, decode_image
from relocalizer.maps.map_reader import load_map
from relocalizer.maps.reference_map import ReferenceMap
from slam import events
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_tum
from slam.events import Event
from slam.map.edge_residuals import EdgeResiduals, residuals_at
from slam.map.frames import Frame, Keyframe
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.map.tracking_status import TrackingState
from slam.run import logged_values
from slam.run.event_log import EVENTS
from slam.run.frame_thumbnails import thumbnail_path
from slam.run.report import read_report
from slam.run.run_folder import KEYFRAMES, MAP, TRAJECTORY

_NO_IMAGE: Image = np.zeros((0, 0, 3), np.uint8)
_NO_FEATURES = LocalFeatures(
    np.zeros((0, 2), np.float32), np.zeros((0, DESCRIPTOR_SIZE), np.float32), np.zeros(0, np.float32)
)
# Events whose fields the log contains as they are.
_PLAIN: dict[str, Callable[..., Event]] = {
    plain.__name__: plain
    for plain in (
        events.ScaleUnobservable,
        events.EstimateRefused,
        events.TrackingLost,
        events.Relocalized,
        events.FrameLocalizedLater,
        events.FrameNotLocalized,
        events.FramesSkipped,
        events.ScaleSet,
    )
}
_FROM_OTHER_FILES = {"LandmarksUpdated", "RunFinished"}  # restored once, from the files that contain their arrays


class ReplayError(UserError):
    """A run folder that cannot be replayed."""


class Replay:
    """A run folder, opened with `open_replay`.

    Attributes:
        camera: camera of the run's images.
        frames: number of frames of the run; 0 when it was killed before the first report of it.
        missing: sentences on the missing files and what cannot be shown without them.
    """

    def __init__(
        self, folder: Path, report: Mapping[str, Any], saved_map: ReferenceMap | None, missing: Sequence[str]
    ) -> None:
        self.folder = folder
        self.camera = Camera(**{**report["camera"], "distortion": tuple(report["camera"]["distortion"])})
        self.frames = int(report.get("frames") or 0)
        self.missing = tuple(missing)
        self._report = report
        self._map = saved_map

    def events(self) -> Iterator[Event]:
        """The events in order, in the units of the run's trajectory.

        Frames that became keyframes of the map have their image, other frames an empty one.

        Raises:
            ReplayError: a line of the log cannot be read.
            TrajectoryError: the trajectory cannot be read.
        """
        reader = _EventReader(self.camera, self._report, self._image_of_frame(), self._descriptor_of)
        yield from reader.read_events(self.folder / EVENTS)
        yield from self._outcome(reader)

    def _descriptor_of(self, keyframe_id: int) -> NDArray[np.float32]:
        """The place descriptor of a keyframe; of size 1 if it is not known."""
        if self._map is None or keyframe_id not in self._map.row_of:
            return np.zeros(1, np.float32)
        return np.asarray(self._map.keyframes.descriptors[self._map.row_of[keyframe_id]])

    def _image_of_frame(self) -> Callable[[int], Image]:
        """Function from a frame index to its image: of keyframes, small ones of a few other frames; else empty."""
        rows: dict[int, int] = {}
        for _, name, value in _lines(self.folder / EVENTS):
            if self._map is not None and name == "KeyframeAdded" and value["keyframe"]["id"] in self._map.row_of:
                rows[value["keyframe"]["frame_index"]] = self._map.row_of[value["keyframe"]["id"]]
        saved = self._map
        return lambda index: self._thumbnail(index) if saved is None or index not in rows else saved.image(rows[index])

    def _thumbnail(self, index: int) -> Image:
        path = thumbnail_path(self.folder, index)
        return decode_image(path.read_bytes(), str(path)) if path.is_file() else _NO_IMAGE

    def _outcome(self, reader: _EventReader) -> Iterator[Event]:
        """The final map and trajectory."""
        poses = self._final_poses(reader)
        if poses:
            yield events.GraphOptimized(
                frame_index=reader.last_frame,
                world_from_keyframe=poses,
                error_before=np.nan,
                error_after=np.nan,
                cause="the map as the run left it",
                after=None if self._map is None else _residuals_of_map(self._map),
            )
        if self._map is not None:
            yield events.LandmarksUpdated(
                frame_index=reader.last_frame,
                ids=self._map.landmarks.ids,
                points_world=self._map.points_world,
                colors=self._map.landmarks.colors,
                depth_sigmas=self._map.depth_sigmas_world,
            )
        path = _trajectory(self.folder / TRAJECTORY)
        yield events.RunFinished(
            timestamps_ns=path.timestamps_ns,
            frame_indices=np.array([reader.index_at.get(t, -1) for t in path.timestamps_ns.tolist()], np.int64),
            world_from_cam=path.world_from_cam,
            interrupted=self._report["status"] != "finished",
        )

    def _final_poses(self, reader: _EventReader) -> dict[int, Similarity]:
        if self._map is not None:
            rows = self._map.row_of
            return {k: self._map.keyframes.world_from_keyframe(rows[k]) for k in reader.scale_of if k in rows}
        path = _trajectory(self.folder / KEYFRAMES)
        poses = zip(path.timestamps_ns.tolist(), path.world_from_cam, strict=True)
        known = {reader.keyframe_at[t]: pose for t, pose in poses if t in reader.keyframe_at}
        return {k: Similarity(pose[:3, :3], pose[:3, 3], reader.scale_of[k]) for k, pose in known.items()}


def open_replay(folder: Path) -> Replay:
    """Open a run folder.

    Raises:
        ReplayError: there is no such folder, or it contains no event log.
        OutputError: its report cannot be read. MapError: its map is damaged.
    """
    if not folder.is_dir():
        raise ReplayError(f"{folder}: no such folder; expected one that slam run made")
    report = read_report(folder)
    if not (folder / EVENTS).is_file():
        raise ReplayError(f"{folder}: holds no {EVENTS}, so there is nothing to replay")
    has_map = (folder / MAP).is_dir()
    missing = [] if has_map else [f"no {MAP}/ in it: keyframes have no images and landmarks are not shown"]
    if report["status"] in ("running", "failed"):
        missing.append(
            f"the run did not end by itself ({report['reason'] or report['status']}): poses are as saved last"
        )
    return Replay(folder, report, load_map(folder / MAP) if has_map else None, missing)


class _EventReader:
    """Creates events from the lines of a log, and indexes its frames and keyframes for the lookup in other files."""

    def __init__(
        self,
        camera: Camera,
        report: Mapping[str, Any],
        image: Callable[[int], Image],
        descriptor: Callable[[int], NDArray[np.float32]],
    ) -> None:
        self._camera = camera
        self._image, self._descriptor = image, descriptor
        # The log is in map units, the other files in the units of the report.
        self._unit = float((report.get("units") or {}).get("meters_per_unit") or 1.0)
        self.last_frame = -1
        self.index_at: dict[int, int] = {}
        self.keyframe_at: dict[int, int] = {}
        self.scale_of: dict[int, float] = {}

    def read_events(self, path: Path) -> Iterator[Event]:
        for position, name, value in _lines(path):
            if name in _FROM_OTHER_FILES:
                continue
            try:
                event = self._event(name, value)
            except (KeyError, TypeError, ValueError) as error:
                raise ReplayError(f"{position}: not the event {name} of this version ({error!r})") from None
            if event is not None:
                yield event

    def _event(self, name: str, value: dict[str, Any]) -> Event | None:
        match name:
            case "FrameProcessed":
                return self._frame(value)
            case "KeyframeAdded":
                return self._keyframe(value)
            case "EdgeAccepted":
                return events.EdgeAccepted(edge=_edge(value["edge"]), frame_index=value["frame_index"])
            case "EdgeRejected":
                return events.EdgeRejected(**{**value, "kind": EdgeKind(value["kind"])})
            case "LoopExamined":
                gates, matches = logged_values.gates(value["gates"]), logged_values.matched_points(value["matches"])
                return events.LoopExamined(**{**value, "gates": gates, "matches": matches})
            case "PairRelated":
                return events.PairRelated(**{**value, "estimate": logged_values.pair_estimate(value["estimate"])})
            case "RelocalizationTried":
                attempts = logged_values.attempts(value["attempts"])
                matches = logged_values.matched_points(value["matches"])
                pose = self._pose(value.get("world_from_cam"))
                changed = {"attempts": attempts, "matches": matches, "world_from_cam": pose}
                return events.RelocalizationTried(**{**value, **changed})
            case "GraphOptimized":
                return events.GraphOptimized(
                    frame_index=value["frame_index"],
                    world_from_keyframe={},
                    error_before=logged_values.number(value["error_before"]),
                    error_after=logged_values.number(value["error_after"]),
                    cause=value["cause"],
                    before=logged_values.edge_residuals(value.get("before")),
                    after=logged_values.edge_residuals(value.get("after")),
                )
            case "Initialized":
                return events.Initialized(**{**value, "frame_indices": tuple(value["frame_indices"])})
        return _PLAIN[name](**value) if name in _PLAIN else None  # None: an event of a newer version

    def _frame(self, value: dict[str, Any]) -> events.FrameProcessed:
        index, timestamp_ns = value["frame"]["index"], value["frame"]["timestamp_ns"]
        self.last_frame = max(self.last_frame, index)
        self.index_at[timestamp_ns] = index
        inlier_count, track_count = _counts(value["is_inlier"])
        return events.FrameProcessed(
            frame=Frame(index=index, timestamp_ns=timestamp_ns, image=self._image(index), camera=self._camera),
            state=TrackingState(value["state"]),
            reason=value["reason"],
            world_from_cam=self._pose(value["world_from_cam"]),
            keyframe_id=value["keyframe_id"],
            pixels=np.zeros((0, 2), np.float32),
            track_ids=np.arange(track_count),
            is_inlier=np.arange(track_count) < inlier_count,
            depth=self._unit * logged_values.number(value["depth"]),
            stage_ms=value["stage_ms"],
            camera_rests=value.get("camera_rests", False),
            overlay_share=value.get("overlay_share") or 0.0,
            moving_share=value.get("moving_share") or 0.0,
            measurement=logged_values.measurement(value.get("measurement")),
            keyframe_criteria=logged_values.gates(value.get("keyframe_criteria")),
            points=logged_values.tracked_points(value.get("points")),
            is_keyframe=value.get("is_keyframe", False),
        )

    def _keyframe(self, value: dict[str, Any]) -> events.KeyframeAdded:
        pose, keyframe = self._similarity(value["world_from_keyframe"]), value["keyframe"]
        self.keyframe_at[keyframe["timestamp_ns"]] = keyframe["id"]
        self.scale_of[keyframe["id"]] = pose.scale
        return events.KeyframeAdded(
            keyframe=Keyframe(
                id=keyframe["id"],
                frame_index=keyframe["frame_index"],
                timestamp_ns=keyframe["timestamp_ns"],
                camera=self._camera,
                encoded=None,
                descriptor=self._descriptor(keyframe["id"]),
                features=_NO_FEATURES,
            ),
            world_from_keyframe=pose,
            reason=value["reason"],
            image=self._image(keyframe["frame_index"]),
        )

    def _pose(self, numbers: list[float] | None) -> RigidTransform | None:
        return None if numbers is None else self._similarity([*numbers, 1.0]).rigid

    def _similarity(self, numbers: list[float]) -> Similarity:
        pose = _similarity(numbers)
        return Similarity(pose.rotation, self._unit * pose.translation, self._unit * pose.scale)


def _lines(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(position, name, fields) of each event; an incomplete last line is skipped."""
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
    """From (x, y, z, quaternion x, y, z, w, scale), as in the log."""
    return Similarity(rotation_from_quaternion_xyzw(numbers[3:7]), np.array(numbers[:3]), numbers[7])


def _edge(value: dict[str, Any]) -> Edge:
    known = {field.name for field in fields(Edge)}
    plain = {key: item for key, item in value.items() if key in known}
    return Edge(**{**plain, "i_from_j": _similarity(value["i_from_j"]), "kind": EdgeKind(value["kind"])})


def _counts(is_inlier: Any) -> tuple[int, int]:
    """(number of True, size) of a boolean array, of which the log contains these counts."""
    return int(is_inlier["true"]), int(is_inlier["of"])


def _residuals_of_map(saved: ReferenceMap) -> EdgeResiduals:
    """Residuals of the edges of a saved map at its poses."""
    table = saved.edges
    edges = [
        Edge(
            i=int(table.i[n]),
            j=int(table.j[n]),
            i_from_j=Similarity(table.rotations[n], table.translations[n], float(table.scales[n])),
            sigmas=table.sigmas[n],
            kind=EdgeKind.LOOP if table.is_loop[n] else EdgeKind.ODOMETRY,
            inliers=int(table.inliers[n]),
            evidence_fraction=float(table.shares[n]),
        )
        for n in range(len(table.i))
    ]
    poses = {k: saved.keyframes.world_from_keyframe(row) for k, row in saved.row_of.items()}
    return residuals_at(edges, table.weights, poses)


def _trajectory(path: Path) -> Trajectory:
    """A trajectory from a file that may be missing or empty."""
    no_poses: NDArray[np.float64] = np.zeros((0, 4, 4))
    if not path.is_file():
        return Trajectory(np.zeros(0, np.int64), no_poses)
    has_poses = any(line.strip() and not line.startswith("#") for line in path.read_text("utf-8").splitlines())
    return read_tum(path) if has_poses else Trajectory(np.zeros(0, np.int64), no_poses)

"""trajectory.png: a run from above, from the files of its folder."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import OutputError, TrajectoryError
from relocalizer.maps.reference_map import ReferenceMap
from slam.evaluation.top_view import thinned, top_view_axes
from slam.evaluation.trajectory import Trajectory, nanoseconds_from_seconds, runs_without_gaps
from slam.evaluation.trajectory_files import read_note, read_tum
from slam.plain_text import plain
from slam.run.files import replacing
from slam.run.frames_table import FRAMES
from slam.run.run_folder import KEYFRAMES, TRAJECTORY
from slam.run.top_view_image import TopView, draw_top_view

PLOT = "trajectory.png"
MOST_LANDMARKS = 40_000  # landmarks that are drawn; more of them only cover each other
SAME_PLACE = 1e-4  # largest distance of a keyframe in the map from that in keyframes.txt, relative to the path's size
_NONE = np.zeros((0, 3))


def write_plot(path: Path, folder: Path, reference_map: ReferenceMap | None, name: str) -> None:
    """Draw a run into a PNG file, which is replaced if it is there.

    Args:
        folder: the run folder, with its trajectory.
        reference_map: the map in it; None draws the path alone.
        name: of the source, for the title.

    Raises:
        TrajectoryError: the run has no pose, or its files cannot be read. OutputError: `path` cannot be written.
    """
    image = draw_top_view(top_view(folder, reference_map, name))
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise OutputError(f"{path}: OpenCV cannot encode PNG; reinstall opencv-python-headless")
    with replacing(path) as temporary:
        temporary.write_bytes(bytes(data))


def top_view(folder: Path, reference_map: ReferenceMap | None, name: str) -> TopView:
    """What is drawn of a run: its largest part, as other parts have worlds of their own.

    Raises:
        TrajectoryError: as `write_plot`.
    """
    trajectory = _read(folder / TRAJECTORY)
    if trajectory is None:
        raise TrajectoryError(f"{folder}: no frame of this run has a pose, so there is nothing to draw")
    keyframes = _read(folder / KEYFRAMES)
    axes = top_view_axes(trajectory.world_from_cam if keyframes is None else keyframes.world_from_cam)
    frames = _frame_times(folder / FRAMES)
    pieces, lost = _pieces(trajectory, frames)
    in_map = _MapPart.of(reference_map, keyframes)
    positions = in_map.keyframes if len(in_map.keyframes) else _NONE if keyframes is None else keyframes.positions
    units = "meters" if read_note(folder / TRAJECTORY) else "map units"
    of = f" of {len(frames)}" if len(frames) else ""
    facts = [f"{len(trajectory)}{of} frames with a pose", f"{len(positions)} keyframes"]
    facts += [f"{in_map.landmark_count} landmarks"] * bool(in_map.landmark_count)
    facts += [_count(len(in_map.loops), "loop closure"), f"path of {trajectory.length:.4g} {units}"]
    others = len(list(folder.glob("trajectory_segment*.txt")))
    facts += [f"{_count(others, 'unconnected part')} not drawn"] * bool(others)
    return TopView(
        title=plain(f"{name}, seen from above"),
        facts=", ".join(facts),
        units=units,
        path=[trajectory.positions[piece] @ axes.T for piece in pieces],
        lost=lost,
        keyframes=positions @ axes.T,
        landmarks=in_map.landmarks @ axes.T,
        loops=in_map.loops @ axes.T,
        path_ns=trajectory.timestamps_ns,
        keyframes_ns=_keyframe_times(in_map, keyframes),
        landmarks_ns=in_map.landmarks_ns,
    )


def _keyframe_times(in_map: _MapPart, keyframes: Trajectory | None) -> NDArray[np.int64]:
    if len(in_map.keyframes):
        return in_map.keyframes_ns
    return np.zeros(0, np.int64) if keyframes is None else keyframes.timestamps_ns


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' if number != 1 else ''}"


def _read(path: Path) -> Trajectory | None:
    """The trajectory of a file; None when the file is missing or has no pose."""
    if not path.is_file() or not any(
        line.strip() and not line.startswith("#") for line in path.read_text(encoding="utf-8").splitlines()
    ):
        return None
    return read_tum(path)


def _frame_times(path: Path) -> NDArray[np.int64]:
    """Times (N,) of all frames of a run, nanoseconds; empty for a folder without the table of frames."""
    if not path.is_file():
        return np.zeros(0, np.int64)
    with path.open(encoding="utf-8", newline="") as file:
        times = [nanoseconds_from_seconds(row["timestamp"]) for row in csv.DictReader(file)]
    return np.array(times, dtype=np.int64)


def _pieces(trajectory: Trajectory, frames: NDArray[np.int64]) -> tuple[list[slice], list[int]]:
    """Pieces of a trajectory without a missing frame, and the number of frames without a pose after each but the last.

    Without `frames`, the pieces end at gaps in time, and their missing frames are not counted.
    """
    times = trajectory.timestamps_ns
    if not len(frames):
        return runs_without_gaps(times), []
    missing = np.diff(np.searchsorted(frames, times)) - 1
    breaks = np.flatnonzero(missing > 0)
    starts, ends = [0, *(breaks + 1).tolist()], [*(breaks + 1).tolist(), len(times)]
    return [slice(begin, end) for begin, end in zip(starts, ends, strict=True)], missing[breaks].tolist()


class _MapPart:
    """Keyframes (N, 3), thinned landmarks (M, 3) and loop closures (L, 2, 3) of the map in the trajectory's world.

    `keyframes_ns` (N,) and `landmarks_ns` (M,) are the times of the keyframes and of the anchors of the landmarks.
    """

    def __init__(self) -> None:
        self.keyframes, self.landmarks, self.loops = _NONE, _NONE, np.zeros((0, 2, 3))
        self.keyframes_ns = self.landmarks_ns = np.zeros(0, np.int64)
        self.landmark_count = 0

    @classmethod
    def of(cls, reference_map: ReferenceMap | None, keyframes: Trajectory | None) -> _MapPart:
        """The part of the map that the keyframes of the run are in; empty when they are not in it."""
        part = cls()
        segment = None if reference_map is None or keyframes is None else _segment_of(reference_map, keyframes)
        if reference_map is None or segment is None:
            return part
        table = reference_map.keyframes
        part.keyframes = table.translations[table.segment == segment]
        part.keyframes_ns = table.timestamps_ns[table.segment == segment]
        ids = table.ids[table.segment == segment]
        rows = np.flatnonzero(np.isin(reference_map.landmarks.anchor, ids))
        part.landmark_count = len(rows)
        rows = thinned(rows, MOST_LANDMARKS)
        part.landmarks = reference_map.points_world[rows]
        part.landmarks_ns = table.timestamps_ns[np.searchsorted(table.ids, reference_map.landmarks.anchor[rows])]
        edges = reference_map.edges
        chosen = edges.is_loop & np.isin(edges.i, ids) & np.isin(edges.j, ids)
        ends = [[reference_map.row_of[int(k)] for k in side[chosen]] for side in (edges.i, edges.j)]
        part.loops = np.stack([table.translations[rows] for rows in ends], axis=1).reshape(-1, 2, 3)
        return part


def _segment_of(reference_map: ReferenceMap, keyframes: Trajectory) -> int | None:
    """The segment of the map whose world is that of the run's keyframes; None when there is none."""
    table = reference_map.keyframes
    latest = reference_map.session_of_keyframe == len(reference_map.sessions) - 1
    at = np.searchsorted(keyframes.timestamps_ns, table.timestamps_ns).clip(max=len(keyframes) - 1)
    same = latest & (keyframes.timestamps_ns[at] == table.timestamps_ns)
    size = np.ptp(keyframes.positions, axis=0).max()
    same &= np.linalg.norm(keyframes.positions[at] - table.translations, axis=1) <= SAME_PLACE * size + 1e-6
    return int(np.bincount(table.segment[same]).argmax()) if same.any() else None

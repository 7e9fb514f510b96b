"""A trajectory: timestamps and camera poses. Reading and writing of its file formats.

| format | a line | time |
|---|---|---|
| TUM | `timestamp tx ty tz qx qy qz qw` | seconds |
| KITTI | the upper three rows of the 4x4 pose, row by row: 12 numbers | none: one line a frame |
| EuRoC | `timestamp,px,py,pz,qw,qx,qy,qz` and more columns that are not used | integer nanoseconds |

Every pose is `world_from_x`: x is the camera in TUM and KITTI files, the IMU body in EuRoC's ground truth
(the caller composes `world_from_body @ body_from_cam`). Time is parsed from its digits, never through a
float, so a stamp such as 1403636579763555584 ns survives a round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from relocalizer.errors import OutputError, TrajectoryError
from relocalizer.geometry import (
    FloatArray,
    Similarity,
    frozen_array,
    quaternion_xyzw_from_rotation,
    rotation_from_quaternion_wxyz,
    rotation_from_quaternion_xyzw,
)

TrajectoryFormat = Literal["tum", "kitti", "euroc"]

LARGEST_SECONDS = 2**63 // 10**9  # what 64 bits of nanoseconds hold
KITTI_FRAME_NS = 100_000_000  # the odometry sequences run at 10 Hz; used when no times are given
QUATERNION_TOLERANCE = 0.1  # further from length one, the columns are not what they should be
ROTATION_TOLERANCE = 1e-2  # entries of R R^T - 1; files carry six digits or so
GAP = 5.0  # steps in time, relative to the median one, that mean nothing was there
TUM_HEADER = "# timestamp tx ty tz qx qy qz qw"
EUROC_HEADER = "#timestamp [ns],p_RS_R_x [m],p_RS_R_y [m],p_RS_R_z [m],q_RS_w [],q_RS_x [],q_RS_y [],q_RS_z []"


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Camera poses over time, in map units (or metres, when whoever made it knew them).

    Attributes:
        timestamps_ns: (N,) int64, strictly increasing.
        world_from_cam: (N, 4, 4) rigid matrices.
    """

    timestamps_ns: NDArray[np.int64]
    world_from_cam: FloatArray

    def __post_init__(self) -> None:
        times = np.array(self.timestamps_ns, dtype=np.int64)
        poses = frozen_array("Trajectory.world_from_cam", self.world_from_cam, (None, 4, 4))
        if times.shape != (len(poses),):
            raise ValueError(f"Trajectory: {times.shape} timestamps for {len(poses)} poses")
        if (np.diff(times) <= 0).any():
            raise ValueError("Trajectory.timestamps_ns: must increase")
        times.setflags(write=False)
        object.__setattr__(self, "timestamps_ns", times)
        object.__setattr__(self, "world_from_cam", poses)

    def __len__(self) -> int:
        return len(self.timestamps_ns)

    @property
    def positions(self) -> FloatArray:
        """Camera centres (N, 3)."""
        return self.world_from_cam[:, :3, 3]

    @property
    def length(self) -> float:
        """Path length, in the trajectory's unit."""
        return float(np.linalg.norm(np.diff(self.positions, axis=0), axis=1).sum())

    @property
    def duration_s(self) -> float:
        return float(self.timestamps_ns[-1] - self.timestamps_ns[0]) * 1e-9 if len(self) else 0.0

    def transformed(self, a_from_world: Similarity) -> Trajectory:
        """The same path in frame a; a similarity's scale stretches positions, orientations turn with it."""
        poses = self.world_from_cam.copy()
        poses[:, :3, :3] = a_from_world.rotation @ poses[:, :3, :3]
        poses[:, :3, 3] = a_from_world.apply(self.positions)
        return Trajectory(self.timestamps_ns, poses)

    def __str__(self) -> str:
        return f"{len(self)} poses, {self.length:.3f} units long, {self.duration_s:.1f} s"


def nanoseconds_from_seconds(text: str) -> int:
    """Seconds written in decimal, such as "1403636579.763555584" or "1.5e-1", as nanoseconds, exactly.

    Digits below a nanosecond are rounded to the nearest, half to even.

    Raises:
        ValueError: not a finite number, or too large for 64 bits (nanoseconds where seconds belong).
    """
    try:
        seconds = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"expected a time in seconds, got {text!r}") from None
    if not seconds.is_finite():
        raise ValueError(f"expected a time in seconds, got {text!r}")
    if abs(seconds) >= LARGEST_SECONDS:
        raise ValueError(f"expected a time in seconds, got {text} (is it in nanoseconds?)")
    return int((seconds * 1_000_000_000).to_integral_value())


def seconds_from_nanoseconds(timestamp_ns: int) -> str:
    """Nanoseconds as decimal seconds with all nine digits; `nanoseconds_from_seconds` reads them back."""
    seconds, nanoseconds = divmod(abs(timestamp_ns), 1_000_000_000)
    return f"{'-' * (timestamp_ns < 0)}{seconds}.{nanoseconds:09d}"


def runs_without_gaps(timestamps_ns: NDArray[np.int64]) -> list[slice]:
    """Stretches of increasing stamps without a hole, to draw as one line each.

    A step of more than `GAP` times the median step is a hole.
    """
    steps = np.diff(timestamps_ns)
    if len(steps) == 0:
        return [slice(0, len(timestamps_ns))]
    breaks = (np.flatnonzero(steps > GAP * np.median(steps)) + 1).tolist()
    return [slice(begin, end) for begin, end in pairwise([0, *breaks, len(timestamps_ns)])]


def read_trajectory(path: Path, format: TrajectoryFormat | None = None) -> Trajectory:
    """Read a trajectory file; without `format` the first line of data decides.

    Commas mean EuRoC, 12 columns KITTI (10 Hz assumed, as `read_kitti` says), 8 columns TUM.

    Raises:
        TrajectoryError: the file is missing, of no known format, or damaged; names the line.
    """
    match format or recognise_format(path):
        case "tum":
            return read_tum(path)
        case "kitti":
            return read_kitti(path)
        case "euroc":
            return read_euroc(path)


def write_trajectory(
    path: Path, trajectory: Trajectory, format: TrajectoryFormat | None = None, *, note: str = ""
) -> None:
    """Write a trajectory file; without `format` the suffix decides.

    .csv is EuRoC, .kitti KITTI, .txt and .tum TUM; TUM alone has a place for the note.

    Raises:
        TrajectoryError: no format given and a suffix that means none.
        OutputError: the file cannot be written.
    """
    match format or _format_of_suffix(path):
        case "tum":
            write_tum(path, trajectory, note=note)
        case "kitti":
            write_kitti(path, trajectory)
        case "euroc":
            write_euroc(path, trajectory)


def read_tum(path: Path) -> Trajectory:
    """Read `timestamp tx ty tz qx qy qz qw` lines, seconds; `#` starts a comment.

    Raises:
        TrajectoryError: the file is missing, empty or damaged; names the line and what was expected.
    """
    times: list[int] = []
    rows: list[list[float]] = []
    for place, fields in _rows(path, separator=None):
        _expect_columns(place, fields, (8,), "timestamp tx ty tz qx qy qz qw")
        times.append(_parse_time(place, fields[0], nanoseconds_from_seconds, times))
        rows.append(_parse_numbers(place, fields[1:]))
        _expect_unit_quaternion(place, rows[-1][3:])
    values = _non_empty(path, rows)
    return _trajectory(times, rotation_from_quaternion_xyzw(values[:, 3:]), values[:, :3])


def write_tum(path: Path, trajectory: Trajectory, *, note: str = "") -> None:
    """Write TUM lines with nine decimals; the same trajectory gives the same bytes.

    Args:
        note: a second line of comment at the top, such as what the lengths are.

    Raises:
        OutputError: the file cannot be written.
    """
    quaternions = quaternion_xyzw_from_rotation(trajectory.world_from_cam[:, :3, :3])
    lines = [TUM_HEADER, *([f"# {note}"] if note else [])]
    for time, position, xyzw in zip(trajectory.timestamps_ns, trajectory.positions, quaternions, strict=True):
        lines.append(" ".join([seconds_from_nanoseconds(int(time)), *_decimals(position), *_decimals(xyzw)]))
    _write_lines(path, lines)


def read_note(path: Path) -> str:
    """The note that `write_tum` put at the head of a file; empty when there is none, or no such file."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first, second = file.readline().rstrip("\n"), file.readline().rstrip("\n")
    except OSError:
        return ""
    return second.removeprefix("# ") if first == TUM_HEADER and second.startswith("# ") else ""


def read_kitti(path: Path, timestamps_ns: ArrayLike | None = None) -> Trajectory:
    """Read lines of 12 numbers: the 3x4 `world_from_cam`, row by row.

    Args:
        timestamps_ns: (N,) nanoseconds, one for each line. Without them frame k is at k / 10 s, the rate of
            the KITTI odometry sequences.

    Raises:
        TrajectoryError: the file is missing, empty or damaged, or has not as many lines as there are times.
    """
    rows: list[list[float]] = []
    for place, fields in _rows(path, separator=None):
        _expect_columns(place, fields, (12,), "the 3x4 pose row by row")
        rows.append(_parse_numbers(place, fields))
        _expect_rotation(place, np.reshape(rows[-1], (3, 4))[:, :3])
    poses = _non_empty(path, rows).reshape(-1, 3, 4)
    times = np.arange(len(poses)) * KITTI_FRAME_NS if timestamps_ns is None else np.asarray(timestamps_ns)
    if times.shape != (len(poses),):
        raise TrajectoryError(f"{path}: {len(poses)} poses, but {times.size} timestamps were given for them")
    if (np.diff(times) <= 0).any():
        raise TrajectoryError(f"{path}: the timestamps given for its poses do not increase")
    return _trajectory(times.tolist(), Rotation.from_matrix(poses[:, :, :3]).as_matrix(), poses[:, :, 3])


def write_kitti(path: Path, trajectory: Trajectory) -> None:
    """Write 12 numbers a line with nine decimals; timestamps are lost, as the format has none.

    Raises:
        OutputError: the file cannot be written.
    """
    _write_lines(path, [" ".join(_decimals(pose[:3].ravel())) for pose in trajectory.world_from_cam])


def read_euroc(path: Path) -> Trajectory:
    """Read a data.csv: nanoseconds, position, quaternion w x y z; columns after the eighth are not used.

    EuRoC's own ground truth gives the pose of the IMU body, `world_from_body`: compose it with the camera's
    `body_from_cam` before comparing it with a camera.

    Raises:
        TrajectoryError: the file is missing, empty or damaged; names the line and what was expected.
    """
    times: list[int] = []
    rows: list[list[float]] = []
    for place, fields in _rows(path, separator=","):
        _expect_columns(place, fields, (8, 17), "timestamp, position, quaternion w x y z")
        times.append(_parse_time(place, fields[0], _nanoseconds_from_integer, times))
        rows.append(_parse_numbers(place, fields[1:8]))
        _expect_unit_quaternion(place, rows[-1][3:])
    values = _non_empty(path, rows)
    return _trajectory(times, rotation_from_quaternion_wxyz(values[:, 3:]), values[:, :3])


def write_euroc(path: Path, trajectory: Trajectory) -> None:
    """Write EuRoC's first eight columns with nine decimals; the same trajectory gives the same bytes.

    Raises:
        OutputError: the file cannot be written.
    """
    quaternions = quaternion_xyzw_from_rotation(trajectory.world_from_cam[:, :3, :3])
    lines = [EUROC_HEADER]
    for time, position, xyzw in zip(trajectory.timestamps_ns, trajectory.positions, quaternions, strict=True):
        lines.append(",".join([str(int(time)), *_decimals(position), *_decimals(xyzw[[3, 0, 1, 2]])]))
    _write_lines(path, lines)


def recognise_format(path: Path) -> TrajectoryFormat:
    """By the first line that holds anything.

    Raises:
        TrajectoryError: the file is missing, empty, or of no known format.
    """
    for place, fields in _rows(path, separator=None):
        if "," in "".join(fields):
            return "euroc"
        if len(fields) in (8, 12):
            return "tum" if len(fields) == 8 else "kitti"
        raise TrajectoryError(
            f"{place}: no known trajectory format: {len(fields)} columns "
            "(TUM has 8, KITTI 12, EuRoC is separated by commas)"
        )
    raise TrajectoryError(f"{path}: holds no poses")


def _format_of_suffix(path: Path) -> TrajectoryFormat:
    formats: dict[str, TrajectoryFormat] = {".csv": "euroc", ".kitti": "kitti", ".txt": "tum", ".tum": "tum"}
    if path.suffix.lower() not in formats:
        raise TrajectoryError(
            f"{path}: the suffix {path.suffix!r} names no trajectory format "
            "(.txt and .tum are TUM, .kitti KITTI, .csv EuRoC); rename it, or give the format"
        )
    return formats[path.suffix.lower()]


def _rows(path: Path, separator: str | None) -> Iterator[tuple[str, list[str]]]:
    """(file and line, fields) of each line that is not empty and not a comment."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TrajectoryError(f"{path}: no such trajectory file") from None
    except IsADirectoryError:
        raise TrajectoryError(f"{path}: a folder; expected a trajectory file, such as one in it") from None
    except UnicodeDecodeError:
        raise TrajectoryError(f"{path}: not a text file, so not a trajectory") from None
    except OSError as error:
        raise TrajectoryError(f"{path}: cannot be read ({error.strerror})") from None
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if content:
            yield f"{path}, line {number}", [field.strip() for field in content.split(separator)]


def _expect_columns(place: str, fields: Sequence[str], counts: tuple[int, ...], meaning: str) -> None:
    if len(fields) not in counts:
        wanted = " or ".join(map(str, counts))
        raise TrajectoryError(f"{place}: expected {wanted} columns ({meaning}), got {len(fields)}")


def _parse_time(place: str, text: str, parse: Callable[[str], int], before: Sequence[int]) -> int:
    try:
        time = parse(text)
    except ValueError as error:
        raise TrajectoryError(f"{place}: {error}") from None
    if before and time <= before[-1]:
        raise TrajectoryError(
            f"{place}: timestamps must increase, but {seconds_from_nanoseconds(time)} s "
            f"follows {seconds_from_nanoseconds(before[-1])} s; sort the file and remove duplicates"
        )
    return time


def _nanoseconds_from_integer(text: str) -> int:
    try:
        nanoseconds = int(text)
    except ValueError:
        raise ValueError(f"expected a time in integer nanoseconds, got {text!r}") from None
    if abs(nanoseconds) >= 2**63:
        raise ValueError(f"expected a time in integer nanoseconds, got {text}, which needs more than 64 bits")
    return nanoseconds


def _parse_numbers(place: str, fields: Sequence[str]) -> list[float]:
    try:
        numbers = [float(field) for field in fields]
    except ValueError as error:
        raise TrajectoryError(f"{place}: expected numbers ({error})") from None
    if not np.isfinite(numbers).all():
        raise TrajectoryError(f"{place}: holds NaN or infinity; remove the line if there is no pose")
    return numbers


def _expect_unit_quaternion(place: str, quaternion: Sequence[float]) -> None:
    length = float(np.linalg.norm(quaternion))
    if abs(length - 1.0) > QUATERNION_TOLERANCE:
        raise TrajectoryError(f"{place}: expected a unit quaternion, got one of length {length:.3g}")


def _expect_rotation(place: str, matrix: FloatArray) -> None:
    off = float(np.abs(matrix @ matrix.T - np.eye(3)).max())
    if off > ROTATION_TOLERANCE or np.linalg.det(matrix) < 0:
        raise TrajectoryError(f"{place}: expected a rotation in columns 1-3, 5-7 and 9-11, off by {off:.3g}")


def _non_empty(path: Path, rows: list[list[float]]) -> FloatArray:
    if not rows:
        raise TrajectoryError(f"{path}: holds no poses")
    return np.array(rows, dtype=np.float64)


def _trajectory(times: Sequence[int], rotations: FloatArray, positions: FloatArray) -> Trajectory:
    poses = np.tile(np.eye(4), (len(times), 1, 1))
    poses[:, :3, :3] = rotations
    poses[:, :3, 3] = positions
    return Trajectory(np.array(times, dtype=np.int64), poses)


def _decimals(values: FloatArray) -> list[str]:
    return [f"{value + 0.0:.9f}" for value in np.round(values, 9)]  # + 0.0 turns -0.0 into 0.0


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    try:
        path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None

"""A trajectory: timestamps and camera poses. Reading and writing of its file formats.

| format | a line | time |
|---|---|---|
| TUM | `timestamp tx ty tz qx qy qz qw` | seconds |
| KITTI | the upper three rows of the 4x4 pose (or all four), row by row: 12 (16) numbers | none: one line a frame |
| EuRoC | `timestamp,px,py,pz,qw,qx,qy,qz` and more columns that are not used | integer nanoseconds |

A header line that names all columns of a pose decides their order and the unit of time, whatever the format has
(`slam.evaluation.pose_columns`); blanks, commas and semicolons between columns are read alike.

Every pose is `world_from_x`: x is the camera in TUM and KITTI files, the IMU body in EuRoC's ground truth
(the caller composes `world_from_body @ body_from_cam`). Time is parsed from its digits, never through a
float, so a stamp such as 1403636579763555584 ns survives a round trip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from relocalizer.errors import OutputError, TrajectoryError
from relocalizer.geometry import FloatArray, quaternion_xyzw_from_rotation, rotation_from_quaternion_xyzw
from slam.evaluation.pose_columns import EUROC, NANOSECONDS_IN, TUM, Columns, TimeUnit, time_unit
from slam.evaluation.trajectory import (
    FARTHEST,
    NO_TIMES,
    Trajectory,
    nanoseconds_from_seconds,
    seconds_from_nanoseconds,
)
from slam.evaluation.trajectory_table import NAME_COLUMNS, Table, read_table

TrajectoryFormat = Literal["tum", "kitti", "euroc"]
KITTI_FRAME_NS = 100_000_000  # the odometry sequences run at 10 Hz; numbers the poses when no times are given
QUATERNION_TOLERANCE = 0.1  # further from length one, the columns are not what they should be
ROTATION_TOLERANCE = 1e-2  # entries of R R^T - 1; files carry six digits or so
KITTI_COLUMNS = (12, 16)
TUM_HEADER = "# timestamp tx ty tz qx qy qz qw"
EUROC_HEADER = "#timestamp [ns],p_RS_R_x [m],p_RS_R_y [m],p_RS_R_z [m],q_RS_w [],q_RS_x [],q_RS_y [],q_RS_z []"


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryFile:
    """What a trajectory file holds.

    Attributes:
        assumed_order: of the quaternion, as the format has it ("x y z w" or "w x y z"); empty where a header names
            its columns, or there is no quaternion.
        remarks: what its reader had to decide and a person should know, a sentence each.
    """

    trajectory: Trajectory
    assumed_order: str = ""
    remarks: tuple[str, ...] = ()


def read_trajectory(path: Path, format: TrajectoryFormat | None = None) -> Trajectory:
    """Read a trajectory file; without `format` the first lines decide.

    12 or 16 columns are KITTI, which has no times; any other commas mean EuRoC, 8 columns TUM.

    Raises:
        TrajectoryError: the file is missing, of no known format, or damaged; names the line.
    """
    return read_trajectory_file(path, format).trajectory


def read_trajectory_file(path: Path, format: TrajectoryFormat | None = None) -> TrajectoryFile:
    """`read_trajectory`, with what had to be decided on the way.

    Raises:
        TrajectoryError: as `read_trajectory`.
    """
    table = read_table(path)
    match format or _format_of(table):
        case "tum":
            return _timed_poses(table, TUM)
        case "euroc":
            return _timed_poses(table, EUROC)
        case "kitti":
            return TrajectoryFile(_untimed_poses(table))


def write_trajectory(
    path: Path, trajectory: Trajectory, format: TrajectoryFormat | None = None, *, note: str = ""
) -> None:
    """Write a trajectory file; without `format` the suffix decides.

    .csv is EuRoC, .kitti KITTI, .txt and .tum TUM; TUM alone has a place for the note.

    Raises:
        TrajectoryError: no format given and a suffix that means none.
        OutputError: the file cannot be written.
    """
    match format or format_of_suffix(path):
        case "tum":
            write_tum(path, trajectory, note=note)
        case "kitti":
            write_kitti(path, trajectory)
        case "euroc":
            write_euroc(path, trajectory)


def read_tum(path: Path) -> Trajectory:
    """Read `timestamp tx ty tz qx qy qz qw` lines, seconds, or what a header names; `#` starts a comment.

    Raises:
        TrajectoryError: the file is missing, empty or damaged; names the line and what was expected.
    """
    return read_trajectory_file(path, "tum").trajectory


def write_tum(path: Path, trajectory: Trajectory, *, note: str = "") -> None:
    """Write TUM lines with nine decimals; the same trajectory gives the same bytes.

    A comment says so when the trajectory has no times, and `read_tum` believes it.

    Args:
        note: a second line of comment at the top, such as what the lengths are.

    Raises:
        OutputError: the file cannot be written.
    """
    quaternions = quaternion_xyzw_from_rotation(trajectory.world_from_cam[:, :3, :3])
    remarks = [note, "" if trajectory.has_times else NO_TIMES]
    lines = [TUM_HEADER, *(f"# {remark}" for remark in remarks if remark)]
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
    note = second.removeprefix("# ") if first == TUM_HEADER and second.startswith("# ") else ""
    return "" if note == NO_TIMES else note


def read_kitti(path: Path, timestamps_ns: ArrayLike | None = None) -> Trajectory:
    """Read lines of 12 numbers: the 3x4 `world_from_cam`, row by row; or of 16, the 4x4.

    Args:
        timestamps_ns: (N,) nanoseconds, one for each line. Without them the trajectory has no times, and pose k
            stands at k / 10 s.

    Raises:
        TrajectoryError: the file is missing, empty or damaged, or has not as many lines as there are times.
    """
    untimed = read_trajectory_file(path, "kitti").trajectory
    return untimed if timestamps_ns is None else with_times(untimed, timestamps_ns, str(path))


def with_times(untimed: Trajectory, timestamps_ns: ArrayLike, name: str) -> Trajectory:
    """The poses with their times (N,), nanoseconds.

    Args:
        name: of the poses, for errors.

    Raises:
        TrajectoryError: there are not as many times as poses, or they do not increase.
    """
    times = np.asarray(timestamps_ns)
    if times.shape != (len(untimed),):
        raise TrajectoryError(f"{name}: {len(untimed)} poses, but {times.size} timestamps were given for them")
    if (np.diff(times) <= 0).any():
        raise TrajectoryError(f"{name}: the timestamps given for its poses do not increase")
    return Trajectory(times, untimed.world_from_cam)


def write_kitti(path: Path, trajectory: Trajectory) -> None:
    """Write 12 numbers a line with nine decimals; timestamps are lost, as the format has none.

    Raises:
        OutputError: the file cannot be written.
    """
    _write_lines(path, [" ".join(_decimals(pose[:3].ravel())) for pose in trajectory.world_from_cam])


def read_euroc(path: Path) -> Trajectory:
    """Read a data.csv: nanoseconds, position, quaternion w x y z, or what its header names; others are not used.

    EuRoC's own ground truth gives the pose of the IMU body, `world_from_body`: compose it with the camera's
    `body_from_cam` before comparing it with a camera.

    Raises:
        TrajectoryError: the file is missing, empty or damaged; names the line and what was expected.
    """
    return read_trajectory_file(path, "euroc").trajectory


def write_euroc(path: Path, trajectory: Trajectory) -> None:
    """Write EuRoC's first eight columns with nine decimals; the same trajectory gives the same bytes.

    A comment says so when the trajectory has no times, and `read_euroc` believes it.

    Raises:
        OutputError: the file cannot be written.
    """
    quaternions = quaternion_xyzw_from_rotation(trajectory.world_from_cam[:, :3, :3])
    lines = [EUROC_HEADER, *([] if trajectory.has_times else [f"# {NO_TIMES}"])]
    for time, position, xyzw in zip(trajectory.timestamps_ns, trajectory.positions, quaternions, strict=True):
        lines.append(",".join([str(int(time)), *_decimals(position), *_decimals(xyzw[[3, 0, 1, 2]])]))
    _write_lines(path, lines)


def recognize_format(path: Path) -> TrajectoryFormat:
    """By a header that names the columns, or the first line that holds anything.

    Raises:
        TrajectoryError: the file is missing, empty, or of no known format.
    """
    return _format_of(read_table(path))


def format_of_suffix(path: Path) -> TrajectoryFormat:
    """What a file of this name holds: .csv is EuRoC, .kitti KITTI, .txt and .tum TUM.

    Raises:
        TrajectoryError: the suffix names no format.
    """
    formats: dict[str, TrajectoryFormat] = {".csv": "euroc", ".kitti": "kitti", ".txt": "tum", ".tum": "tum"}
    if path.suffix.lower() not in formats:
        raise TrajectoryError(
            f"{path}: the suffix {path.suffix!r} names no trajectory format "
            "(.txt and .tum are TUM, .kitti KITTI, .csv EuRoC); rename it, or give the format"
        )
    return formats[path.suffix.lower()]


def _format_of(table: Table) -> TrajectoryFormat:
    if table.named is not None:
        return "euroc" if table.commas else "tum"
    if table.columns in KITTI_COLUMNS:
        return "kitti"
    if table.commas:
        return "euroc"
    if table.columns == len(TUM.meaning.split()):
        return "tum"
    raise TrajectoryError(
        f"{table.rows[0][0]}: no known trajectory format: {table.columns} columns (TUM has 8, KITTI 12 or 16, EuRoC is "
        f"separated by commas; {NAME_COLUMNS})"
    )


def _timed_poses(table: Table, assumed: Columns) -> TrajectoryFile:
    columns = table.named or assumed
    unit, remark = time_unit(columns, [fields[columns.time] for _, fields in table.rows], assumed=assumed.unit or "s")
    parse = _parser_of(unit)
    times: list[int] = []
    values: list[list[float]] = []
    for place, fields in table.rows:
        _expect_columns(place, fields, columns, table)
        times.append(_parse_time(place, fields[columns.time], parse, times))
        pose = [fields[k] for k in (*columns.position, *columns.quaternion_xyzw)]
        values.append(_parse_numbers(place, pose))
        _expect_position(place, values[-1][:3])
        _expect_unit_quaternion(place, values[-1][3:])
    numbers = np.array(values, dtype=np.float64)
    trajectory = _trajectory(
        times, rotation_from_quaternion_xyzw(numbers[:, 3:]), numbers[:, :3], has_times=table.has_times
    )
    return TrajectoryFile(trajectory, "" if columns.named else columns.order, (remark,) if remark else ())


def _untimed_poses(table: Table) -> Trajectory:
    count = table.columns if table.columns in KITTI_COLUMNS else KITTI_COLUMNS[0]
    values: list[list[float]] = []
    for place, fields in table.rows:
        if len(fields) != count:
            raise TrajectoryError(
                f"{place}: expected {count} columns (the 3x4 pose row by row, or the 4x4), got {len(fields)}"
            )
        values.append(_parse_numbers(place, fields))
        _expect_position(place, values[-1][3:12:4])
        _expect_rotation(place, np.reshape(values[-1][:12], (3, 4))[:, :3])
        if not np.allclose(values[-1][12:], [0.0, 0.0, 0.0, 1.0][: count - 12]):
            raise TrajectoryError(f"{place}: expected 0 0 0 1 in columns 13-16, the last row of a 4x4 pose")
    poses = np.array(values, dtype=np.float64)[:, :12].reshape(-1, 3, 4)
    rotations = Rotation.from_matrix(poses[:, :, :3]).as_matrix()
    return _trajectory(
        range(0, len(poses) * KITTI_FRAME_NS, KITTI_FRAME_NS), rotations, poses[:, :, 3], has_times=False
    )


def _expect_columns(place: str, fields: Sequence[str], columns: Columns, table: Table) -> None:
    if len(fields) in columns.counts:
        return
    if columns.named:
        first = table.rows[0][0].rpartition(", ")[2]
        raise TrajectoryError(f"{place}: expected {table.columns} columns, as in {first}, got {len(fields)}")
    wanted = " or ".join(map(str, columns.counts))
    raise TrajectoryError(f"{place}: expected {wanted} columns ({columns.meaning}), got {len(fields)}; {NAME_COLUMNS}")


def _parser_of(unit: TimeUnit) -> Callable[[str], int]:
    match unit:
        case "s":
            return nanoseconds_from_seconds
        case "ns":
            return _nanoseconds_from_integer
        case _:
            return partial(_nanoseconds_from, unit)


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


def _nanoseconds_from(unit: TimeUnit, text: str) -> int:
    try:
        time = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"expected a time in {unit}, got {text!r}") from None
    if not abs(time) < 2**63 // NANOSECONDS_IN[unit]:
        raise ValueError(f"expected a time in {unit}, got {text!r}")
    return int((time * NANOSECONDS_IN[unit]).to_integral_value())


def _nanoseconds_from_integer(text: str) -> int:
    try:
        time = Decimal(text)
    except InvalidOperation:
        time = Decimal("NaN")
    if not time.is_finite() or time != time.to_integral_value():
        raise ValueError(
            f"expected a time in integer nanoseconds, got {text!r}; where it is in seconds, a header must say so: "
            "# timestamp[s],tx,ty,tz,qx,qy,qz,qw"
        )
    if abs(time) >= 2**63:
        raise ValueError(f"expected a time in integer nanoseconds, got {text}, which needs more than 64 bits")
    return int(time)


def _parse_numbers(place: str, fields: Sequence[str]) -> list[float]:
    try:
        numbers = [float(field) for field in fields]
    except ValueError as error:
        raise TrajectoryError(f"{place}: expected numbers ({error})") from None
    if not np.isfinite(numbers).all():
        raise TrajectoryError(f"{place}: holds NaN or infinity; remove the line if there is no pose")
    return numbers


def _expect_position(place: str, position: Sequence[float]) -> None:
    far = max(position, key=abs)
    if abs(far) >= FARTHEST:
        raise TrajectoryError(f"{place}: {far:g} is no position; expected numbers below {FARTHEST:g}")


def _expect_unit_quaternion(place: str, quaternion: Sequence[float]) -> None:
    length = float(np.linalg.norm(quaternion))
    if abs(length - 1.0) > QUATERNION_TOLERANCE:
        raise TrajectoryError(f"{place}: expected a unit quaternion, got one of length {length:.3g}")


def _expect_rotation(place: str, matrix: FloatArray) -> None:
    off = float(np.abs(matrix @ matrix.T - np.eye(3)).max())
    if off > ROTATION_TOLERANCE:
        raise TrajectoryError(f"{place}: expected a rotation in columns 1-3, 5-7 and 9-11, off by {off:.3g}")
    if np.linalg.det(matrix) < 0:
        raise TrajectoryError(
            f"{place}: expected a rotation in columns 1-3, 5-7 and 9-11, got a mirrored one (determinant -1): "
            "its axes are left-handed; turn one axis of the world and of the camera around first"
        )


def _trajectory(times: Sequence[int], rotations: FloatArray, positions: FloatArray, *, has_times: bool) -> Trajectory:
    poses = np.tile(np.eye(4), (len(times), 1, 1))
    poses[:, :3, :3] = rotations
    poses[:, :3, 3] = positions
    return Trajectory(np.array(times, dtype=np.int64), poses, has_times)


def _decimals(values: FloatArray) -> list[str]:
    return [f"{value + 0.0:.9f}" for value in np.round(values, 9)]  # + 0.0 turns -0.0 into 0.0


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    try:
        path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None

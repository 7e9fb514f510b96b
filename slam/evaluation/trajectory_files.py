"""Reading and writing of trajectory files.

| format | line | time |
|---|---|---|
| TUM | `timestamp tx ty tz qx qy qz qw` | seconds |
| KITTI | the upper three rows of the 4x4 pose (or all four), row by row: 12 (16) numbers | none: one line per frame |
| EuRoC | `timestamp,px,py,pz,qw,qx,qy,qz` and further columns, which are ignored | integer nanoseconds |

A header line that names all columns of a pose overrides the format's column order and unit of time
(`slam.evaluation.pose_columns`); columns may be separated by blanks, commas or semicolons in every format.

Every pose is `world_from_x`: x is the camera in TUM and KITTI files, the IMU body in EuRoC's ground truth
(the caller composes `world_from_body @ body_from_cam`). Times are parsed as decimals, never as floats, so a timestamp
such as 1403636579763555584 ns survives a round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from relocalizer.errors import OutputError, TrajectoryError
from relocalizer.geometry import FloatArray, quaternion_xyzw_from_rotation, rotation_from_quaternion_xyzw
from slam.evaluation.pose_columns import EUROC, TUM, Columns, time_unit
from slam.evaluation.trajectory import NO_TIMES, Trajectory, seconds_from_nanoseconds
from slam.evaluation.trajectory_fields import (
    expect_columns,
    expect_position,
    expect_rotation,
    expect_unit_quaternion,
    parse_numbers,
    parse_time,
    time_parser,
)
from slam.evaluation.trajectory_table import NAME_COLUMNS, Table, read_table
from slam.plain_text import plain

TrajectoryFormat = Literal["tum", "kitti", "euroc"]
KITTI_FRAME_NS = 100_000_000  # Frame period of the odometry sequences, used if no times are given, nanoseconds.
KITTI_COLUMNS = (12, 16)
TUM_HEADER = "# timestamp tx ty tz qx qy qz qw"
EUROC_HEADER = "#timestamp [ns],p_RS_R_x [m],p_RS_R_y [m],p_RS_R_z [m],q_RS_w [],q_RS_x [],q_RS_y [],q_RS_z []"


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryFile:
    """Content of a trajectory file.

    Attributes:
        assumed_order: order of the quaternion according to the format ("x y z w" or "w x y z"); empty if a header
            names the columns, or there is no quaternion.
        remarks: assumptions of the reader that the user should know, one sentence each.
    """

    trajectory: Trajectory
    assumed_order: str = ""
    remarks: tuple[str, ...] = ()


def read_trajectory(path: Path, format: TrajectoryFormat | None = None) -> Trajectory:
    """Read a trajectory file; without `format` it is recognized from the first lines.

    12 or 16 columns are KITTI, which has no times; otherwise commas are EuRoC, and 8 columns without commas TUM.

    Raises:
        TrajectoryError: the file is missing, of no known format, or damaged; names the line.
    """
    return read_trajectory_file(path, format).trajectory


def read_trajectory_file(path: Path, format: TrajectoryFormat | None = None) -> TrajectoryFile:
    """`read_trajectory`, with the assumptions made.

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
    """Write a trajectory file; without `format` it is chosen by the suffix.

    .csv is EuRoC, .kitti KITTI, .txt and .tum TUM; the note is written in TUM files only.

    Raises:
        TrajectoryError: no format is given, and the suffix is of none.
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
    """Read lines `timestamp tx ty tz qx qy qz qw` (seconds), or as a header names them; `#` starts a comment.

    Raises:
        TrajectoryError: the file is missing, empty or damaged; names the line and what was expected.
    """
    return read_trajectory_file(path, "tum").trajectory


def write_tum(path: Path, trajectory: Trajectory, *, note: str = "", names: Sequence[str] = ()) -> None:
    """Write TUM lines with nine decimals; the same trajectory gives the same bytes.

    If the trajectory has no times, a comment states it, and `read_tum` restores `has_times` from it.

    Args:
        note: second comment line at the top, such as the unit of lengths.
        names: names of the images of the poses, written as comments at the end; empty without them.

    Raises:
        OutputError: the file cannot be written.
    """
    quaternions = quaternion_xyzw_from_rotation(trajectory.world_from_cam[:, :3, :3])
    remarks = [note, "" if trajectory.has_times else NO_TIMES]
    lines = [TUM_HEADER, *(f"# {remark}" for remark in remarks if remark)]
    poses = _decimals(np.column_stack([trajectory.positions, quaternions]), " ")
    for time, pose in zip(trajectory.timestamps_ns.tolist(), poses, strict=True):
        lines.append(f"{seconds_from_nanoseconds(time)} {pose}")
    for time, name in zip(trajectory.timestamps_ns, names, strict=False):
        lines.append(f"# {seconds_from_nanoseconds(int(time))} is {plain(name)}")
    _write_lines(path, lines)


def read_note(path: Path) -> str:
    """The note written by `write_tum`; empty if there is none, or no such file."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first, second = file.readline().rstrip("\n"), file.readline().rstrip("\n")
    except OSError:
        return ""
    note = second.removeprefix("# ") if first == TUM_HEADER and second.startswith("# ") else ""
    return "" if note == NO_TIMES else note


def read_kitti(path: Path, timestamps_ns: ArrayLike | None = None) -> Trajectory:
    """Read lines of 12 numbers, the 3x4 `world_from_cam` row by row, or of 16, the 4x4.

    Args:
        timestamps_ns: (N,) nanoseconds, one per line. Without them the trajectory has no times, and pose k has the
            timestamp k / 10 s.

    Raises:
        TrajectoryError: the file is missing, empty or damaged, or the numbers of lines and times differ.
    """
    untimed = read_trajectory_file(path, "kitti").trajectory
    return untimed if timestamps_ns is None else with_times(untimed, timestamps_ns, str(path))


def with_times(untimed: Trajectory, timestamps_ns: ArrayLike, name: str) -> Trajectory:
    """The poses with these times (N,), nanoseconds.

    Args:
        name: name of the poses, for errors.

    Raises:
        TrajectoryError: the numbers of times and poses differ, or the times do not increase.
    """
    times = np.asarray(timestamps_ns)
    if times.shape != (len(untimed),):
        raise TrajectoryError(f"{name}: {len(untimed)} poses, but {times.size} timestamps were given for them")
    if (np.diff(times) <= 0).any():
        raise TrajectoryError(f"{name}: the timestamps given for its poses do not increase")
    return Trajectory(times, untimed.world_from_cam)


def write_kitti(path: Path, trajectory: Trajectory) -> None:
    """Write 12 numbers per line with nine decimals; the format has no timestamps.

    Raises:
        OutputError: the file cannot be written.
    """
    _write_lines(path, _decimals(trajectory.world_from_cam[:, :3].reshape(-1, 12), " "))


def read_euroc(path: Path) -> Trajectory:
    """Read a data.csv: nanoseconds, position, quaternion w x y z, or as its header names them; others are ignored.

    EuRoC's own ground truth gives the pose of the IMU body, `world_from_body`: compose it with the camera's
    `body_from_cam` before comparing it with a camera.

    Raises:
        TrajectoryError: the file is missing, empty or damaged; names the line and what was expected.
    """
    return read_trajectory_file(path, "euroc").trajectory


def write_euroc(path: Path, trajectory: Trajectory) -> None:
    """Write EuRoC's first eight columns with nine decimals; the same trajectory gives the same bytes.

    If the trajectory has no times, a comment states it, and `read_euroc` restores `has_times` from it.

    Raises:
        OutputError: the file cannot be written.
    """
    quaternions = quaternion_xyzw_from_rotation(trajectory.world_from_cam[:, :3, :3])
    lines = [EUROC_HEADER, *([] if trajectory.has_times else [f"# {NO_TIMES}"])]
    poses = _decimals(np.column_stack([trajectory.positions, quaternions[:, [3, 0, 1, 2]]]), ",")
    for time, pose in zip(trajectory.timestamps_ns.tolist(), poses, strict=True):
        lines.append(f"{time},{pose}")
    _write_lines(path, lines)


def recognize_format(path: Path) -> TrajectoryFormat:
    """The format of a file, from a header that names the columns or from the first line that is not empty.

    Raises:
        TrajectoryError: the file is missing, empty, or of no known format.
    """
    return _format_of(read_table(path))


def format_of_suffix(path: Path) -> TrajectoryFormat:
    """The format of a file name: .csv is EuRoC, .kitti KITTI, .txt and .tum TUM.

    Raises:
        TrajectoryError: the suffix is of no format.
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
    parse = time_parser(unit)
    times: list[int] = []
    values: list[list[float]] = []
    for place, fields in table.rows:
        expect_columns(place, fields, columns, table)
        times.append(parse_time(place, fields[columns.time], parse, times))
        pose = [fields[k] for k in (*columns.position, *columns.quaternion_xyzw)]
        values.append(parse_numbers(place, pose))
        expect_position(place, values[-1][:3])
        expect_unit_quaternion(place, values[-1][3:])
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
        values.append(parse_numbers(place, fields))
        expect_position(place, values[-1][3:12:4])
        expect_rotation(place, np.reshape(values[-1][:12], (3, 4))[:, :3])
        if not np.allclose(values[-1][12:], [0.0, 0.0, 0.0, 1.0][: count - 12]):
            raise TrajectoryError(f"{place}: expected 0 0 0 1 in columns 13-16, the last row of a 4x4 pose")
    poses = np.array(values, dtype=np.float64)[:, :12].reshape(-1, 3, 4)
    rotations = Rotation.from_matrix(poses[:, :, :3]).as_matrix()
    return _trajectory(
        range(0, len(poses) * KITTI_FRAME_NS, KITTI_FRAME_NS), rotations, poses[:, :, 3], has_times=False
    )


def _trajectory(times: Sequence[int], rotations: FloatArray, positions: FloatArray, *, has_times: bool) -> Trajectory:
    poses = np.tile(np.eye(4), (len(times), 1, 1))
    poses[:, :3, :3] = rotations
    poses[:, :3, 3] = positions
    return Trajectory(np.array(times, dtype=np.int64), poses, has_times)


def _decimals(rows: FloatArray, separator: str) -> list[str]:
    """The numbers of each row (N, M) with nine decimals."""
    line = separator.join(["%.9f"] * rows.shape[1])
    return [line % tuple(row) for row in (np.round(rows, 9) + 0.0).tolist()]  # + 0.0 converts -0.0 to 0.0


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    try:
        path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None

"""Parsing and validation of the fields of a trajectory file; errors name the line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from functools import partial

import numpy as np

from relocalizer.errors import TrajectoryError
from relocalizer.geometry import FloatArray
from slam.evaluation.pose_columns import NANOSECONDS_IN, Columns, TimeUnit
from slam.evaluation.trajectory import FARTHEST, nanoseconds_from_seconds, seconds_from_nanoseconds
from slam.evaluation.trajectory_table import NAME_COLUMNS, Table

QUATERNION_TOLERANCE = 0.1  # Deviation of a quaternion's norm from 1 above which the columns must be wrong.
ROTATION_TOLERANCE = 1e-2  # Maximum absolute entry of R R^T - I; files have about six digits.


def expect_columns(place: str, fields: Sequence[str], columns: Columns, table: Table) -> None:
    """Raises TrajectoryError if the line at `place` has the wrong number of columns."""
    if len(fields) in columns.counts:
        return
    if columns.named:
        first = table.rows[0][0].rpartition(", ")[2]
        raise TrajectoryError(f"{place}: expected {table.columns} columns, as in {first}, got {len(fields)}")
    wanted = " or ".join(map(str, columns.counts))
    raise TrajectoryError(f"{place}: expected {wanted} columns ({columns.meaning}), got {len(fields)}; {NAME_COLUMNS}")


def time_parser(unit: TimeUnit) -> Callable[[str], int]:
    """A function from text in this unit to nanoseconds; it raises ValueError."""
    match unit:
        case "s":
            return nanoseconds_from_seconds
        case "ns":
            return _nanoseconds_from_integer
        case _:
            return partial(_nanoseconds_from, unit)


def parse_time(place: str, text: str, parse: Callable[[str], int], before: Sequence[int]) -> int:
    """The timestamp of a line, nanoseconds. Raises TrajectoryError unless it is later than the last of `before`."""
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


def parse_numbers(place: str, fields: Sequence[str]) -> list[float]:
    """Finite numbers of a line. Raises TrajectoryError otherwise."""
    try:
        numbers = [float(field) for field in fields]
    except ValueError as error:
        raise TrajectoryError(f"{place}: expected numbers ({error})") from None
    if not np.isfinite(numbers).all():
        raise TrajectoryError(f"{place}: holds NaN or infinity; remove the line if there is no pose")
    return numbers


def expect_position(place: str, position: Sequence[float]) -> None:
    """Raises TrajectoryError if a coordinate is too large for double precision arithmetic."""
    far = max(position, key=abs)
    if abs(far) >= FARTHEST:
        raise TrajectoryError(f"{place}: {far:g} is no position; expected numbers below {FARTHEST:g}")


def expect_unit_quaternion(place: str, quaternion: Sequence[float]) -> None:
    """Raises TrajectoryError if the norm of a quaternion is not 1 within `QUATERNION_TOLERANCE`."""
    length = float(np.linalg.norm(quaternion))
    if abs(length - 1.0) > QUATERNION_TOLERANCE:
        raise TrajectoryError(f"{place}: expected a unit quaternion, got one of length {length:.3g}")


def expect_rotation(place: str, matrix: FloatArray) -> None:
    """Raises TrajectoryError if a matrix (3, 3) is not a rotation within `ROTATION_TOLERANCE`."""
    off = float(np.abs(matrix @ matrix.T - np.eye(3)).max())
    if off > ROTATION_TOLERANCE:
        raise TrajectoryError(f"{place}: expected a rotation in columns 1-3, 5-7 and 9-11, off by {off:.3g}")
    if np.linalg.det(matrix) < 0:
        raise TrajectoryError(
            f"{place}: expected a rotation in columns 1-3, 5-7 and 9-11, got a mirrored one (determinant -1): "
            "its axes are left-handed; turn one axis of the world and of the camera around first"
        )

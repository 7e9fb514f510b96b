"""Columns of a trajectory file, from a header line that names them or from a format.

Similar files differ in their columns: EuRoC's ground truth has the quaternion's w first and times in nanoseconds, TUM's
has w last and seconds, DROID-SLAM distributes EuRoC's columns separated by blanks. Only a header distinguishes them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

TimeUnit = Literal["s", "ms", "us", "ns"]

NANOSECONDS_IN: dict[TimeUnit, int] = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1000, "ns": 1}
SMALLEST_EPOCH_NS = 10**17  # Time above which numbers cannot be seconds: the year 1973, nanoseconds.
_UNITS: dict[str, TimeUnit] = {
    "s": "s", "sec": "s", "secs": "s", "seconds": "s",
    "ms": "ms", "msec": "ms", "milliseconds": "ms",
    "us": "us", "usec": "us", "microseconds": "us",
    "ns": "ns", "nsec": "ns", "nanoseconds": "ns",
}  # fmt: skip
_UNIT = re.compile(rf"[\[(]\s*({'|'.join(_UNITS)})\s*[\])]|_({'|'.join(_UNITS)})$")
_TIME = re.compile(rf"(?:.*[^a-z])?(?:t|time|stamp|timestamps?)(?:_(?:{'|'.join(_UNITS)}))?")
_POSITION = re.compile(r"(?:(?:.*[^a-z])?(?:t|p|pos|position|trans|translation)(?:[^a-z].*)?[^a-z]?)?([xyz])")
_QUATERNION = re.compile(r"(?:.*[^a-z])?(?:q|quat|quaternion|rot|rotation|orientation)(?:[^a-z].*)?[^a-z]?([xyzw])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Indices of the columns of a timed pose, counted from 0.

    Attributes:
        unit: unit of the time; None if a header names the columns without it.
        counts: allowed numbers of columns per line.
        meaning: the columns in words, for errors.
        named: whether a header of the file names the columns; otherwise they are those of a format.
    """

    time: int
    position: tuple[int, int, int]
    quaternion_xyzw: tuple[int, int, int, int]
    unit: TimeUnit | None
    counts: tuple[int, ...]
    meaning: str
    named: bool = False

    @property
    def order(self) -> str:
        """Order of the quaternion's columns, such as "x y z w" or "w x y z"."""
        return " ".join(axis for _, axis in sorted(zip(self.quaternion_xyzw, "xyzw", strict=True)))


TUM = Columns(
    time=0,
    position=(1, 2, 3),
    quaternion_xyzw=(4, 5, 6, 7),
    unit="s",
    counts=(8,),
    meaning="timestamp tx ty tz qx qy qz qw",
)
EUROC = Columns(
    time=0,
    position=(1, 2, 3),
    quaternion_xyzw=(5, 6, 7, 4),
    unit="ns",
    counts=(8, 17),
    meaning="timestamp, position, quaternion w x y z",
)


def named_columns(header: str, count: int) -> Columns | None:
    """The columns named by a header line, for lines of `count` fields; None unless it names a complete timed pose.

    Accepted names are, for the time, time, stamp and timestamp, with the unit in brackets or after an underscore; for
    the position, variants such as x, tx, p_x, position.x; for the quaternion, qx, q_x, q_RS_x, orientation.x.
    """
    names = _split(header)
    if len(names) > count and names[0].endswith(":"):
        names = names[1:]
    names = names[:count]
    time = next((k for k, name in enumerate(names) if _TIME.fullmatch(_bare(name))), None)
    quaternion = _axes(names, _QUATERNION)
    position = _axes(names, _POSITION)
    if time is None or not {*"xyzw"} <= quaternion.keys() or not {*"xyz"} <= position.keys():
        return None
    unit = _UNIT.search(names[time].lower())
    return Columns(
        time=time,
        position=(position["x"], position["y"], position["z"]),
        quaternion_xyzw=(quaternion["x"], quaternion["y"], quaternion["z"], quaternion["w"]),
        unit=_UNITS[unit[1] or unit[2]] if unit else None,
        counts=(count,),
        meaning="as its header names them",
        named=True,
    )


def time_unit(columns: Columns, times: Sequence[str], *, assumed: TimeUnit) -> tuple[TimeUnit, str]:
    """The unit of the times of a file, and a remark if it differs from the stated one, otherwise "".

    Args:
        times: the times as text.
        assumed: the unit if none is stated.
    """
    numbers = [number for text in times if (number := _decimal(text)) is not None]
    whole = len(numbers) == len(times) and all(number == number.to_integral_value() for number in numbers)
    unit = columns.unit or assumed
    if unit == "ns" and columns.named and not whole:  # Nanoseconds are integers.
        remark = "its header says nanoseconds, but its times have fractions, so they are read as seconds"
        return "s", remark if columns.unit else ""
    if (
        unit == "s"
        and not (columns.named and columns.unit)
        and whole
        and all(abs(n) >= SMALLEST_EPOCH_NS for n in numbers)
    ):
        return "ns", "its times are too large for seconds and are read as nanoseconds"
    return unit, ""


def _split(header: str) -> list[str]:
    """Names in a header line; a unit in brackets is kept with its name, longer text in brackets is removed."""
    text = re.sub(r"\([^()]*[\s,;][^()]*\)", " ", header).strip().lstrip("#% ")
    for separator in (",", ";"):
        if separator in text:
            return [name.strip() for name in text.split(separator)]
    return re.sub(r"\s+(?=[\[(])", "", text).split()


def _bare(name: str) -> str:
    """A name in lower case, without quotes and without text in brackets."""
    return re.sub(r"[\[(].*?[\])]", "", name).strip(" \t\"'#%").lower()


def _axes(names: Sequence[str], pattern: re.Pattern[str]) -> dict[str, int]:
    """First column of each axis whose name matches the pattern."""
    found: dict[str, int] = {}
    for k, name in enumerate(names):
        if match := pattern.fullmatch(_bare(name)):
            found.setdefault(match[1], k)
    return found


def _decimal(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None

"""Which column of a trajectory file holds what: as a header line names them, or as a format has them.

Files that look alike differ in this: EuRoC's ground truth has the quaternion's w first and nanoseconds, TUM's has it
last and seconds, DROID-SLAM ships EuRoC's columns with blanks between them. Only a header tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

TimeUnit = Literal["s", "ms", "us", "ns"]

NANOSECONDS_IN: dict[TimeUnit, int] = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1000, "ns": 1}
SMALLEST_EPOCH_NS = 10**17  # nanoseconds of 1973; as seconds this is three billion years
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
    """Columns, counted from 0, of a pose with a time.

    Attributes:
        unit: of the time; None where a header names the columns and not the unit.
        counts: how many columns a line may have.
        meaning: the columns in words, for errors.
        named: by a header of the file; otherwise they are those of a format.
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
        """Of the quaternion: "x y z w" or "w x y z", or any other."""
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
    """The columns that a header line names, of lines of `count` fields; None unless it names a whole timed pose.

    The time may be called time, stamp or timestamp, with its unit in brackets or after an underscore; the position
    x, tx, p_x, position.x and the like; the quaternion qx, q_x, q_RS_x, orientation.x and the like.
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
    """The unit of the times of a file, and a sentence when it is not what stands there; that may be empty.

    Args:
        times: as they stand in the file.
        assumed: the unit where nothing names one.
    """
    numbers = [number for text in times if (number := _decimal(text)) is not None]
    whole = len(numbers) == len(times) and all(number == number.to_integral_value() for number in numbers)
    unit = columns.unit or assumed
    if unit == "ns" and columns.named and not whole:  # a nanosecond has no parts
        said = "its header says nanoseconds, but its times have fractions, so they are read as seconds"
        return "s", said if columns.unit else ""
    if (
        unit == "s"
        and not (columns.named and columns.unit)
        and whole
        and all(abs(n) >= SMALLEST_EPOCH_NS for n in numbers)
    ):
        return "ns", "its times are too large for seconds and are read as nanoseconds"
    return unit, ""


def _split(header: str) -> list[str]:
    """Names of a header line; a unit in brackets stays with its name, longer remarks in brackets go."""
    text = re.sub(r"\([^()]*[\s,;][^()]*\)", " ", header).strip().lstrip("#% ")
    for separator in (",", ";"):
        if separator in text:
            return [name.strip() for name in text.split(separator)]
    return re.sub(r"\s+(?=[\[(])", "", text).split()


def _bare(name: str) -> str:
    """A name in small letters, without quotes and what stands in brackets."""
    return re.sub(r"[\[(].*?[\])]", "", name).strip(" \t\"'#%").lower()


def _axes(names: Sequence[str], pattern: re.Pattern[str]) -> dict[str, int]:
    """First column of each axis whose name the pattern fits."""
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

"""Times in the names of image files, as cameras, data sets and bag converters write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slam.evaluation.trajectory import nanoseconds_from_seconds

# A whole number is a time rather than a frame number if it lies in these years in one of the units below.
EARLIEST_S, LATEST_S = 631_152_000, 4_102_444_800  # 1990 and 2100, seconds since 1970
SHORTEST_PERIOD_NS = 1_000_000  # median period of images below which decimal names are no times, nanoseconds
_UNITS = {"nanoseconds": 1, "microseconds": 1_000, "milliseconds": 1_000_000, "seconds": 1_000_000_000}
_WHOLE, _DECIMAL = re.compile(r"[1-9][0-9]*"), re.compile(r"[0-9]+\.[0-9]+")
_TWO_PARTS = re.compile(r"([1-9][0-9]{8,9})[-_]([0-9]{9})")  # seconds and nanoseconds of a ROS stamp
_NAME = re.compile(r"([^0-9]*)([0-9](?:[0-9._-]*[0-9])?)([^0-9]*)")


@dataclass(frozen=True, slots=True, eq=False)
class NamedTimes:
    """Images in order of the times in their names.

    Attributes:
        paths: the images.
        timestamps_ns: (N,) int64, strictly increasing.
        unit: unit of the times in the names, in words.
    """

    paths: tuple[Path, ...]
    timestamps_ns: NDArray[np.int64]
    unit: str

    @property
    def note(self) -> str:
        return f"times from the names of the images ({self.unit})"


def times_in_names(paths: Sequence[Path]) -> NamedTimes | None:
    """The images in order of the times in their names; None unless all names are times, each different.

    A time is a number with a decimal point (seconds), two numbers (seconds and nanoseconds), or a whole number of
    seconds to nanoseconds since 1970. Names of times since 1970 may all begin, and all end, with the same text.
    """
    stems = [path.stem for path in paths]
    texts = _numbers_in(stems)
    if len(paths) < 2 or texts is None:
        return None
    parsed = _in_two_parts(texts) or _in_seconds(texts) or _in_whole_numbers(texts)
    if parsed is None:
        return None
    times, unit = parsed
    order = sorted(range(len(times)), key=times.__getitem__)
    sorted_ns = np.array([times[k] for k in order], dtype=np.int64)
    if (np.diff(sorted_ns) <= 0).any():
        return None
    # "scene1.0001" and "1.0001" are numbered, too: relative times stand alone, and are of a possible frame rate.
    is_relative = sorted_ns[0] < EARLIEST_S * _UNITS["seconds"]
    if is_relative and (texts != stems or np.median(np.diff(sorted_ns)) < SHORTEST_PERIOD_NS):
        return None
    return NamedTimes(tuple(paths[k] for k in order), sorted_ns, unit)


def _numbers_in(stems: Sequence[str]) -> list[str] | None:
    """The digits and separators of each name; None unless the text before and after them is that of all names."""
    parts = [match for stem in stems if (match := _NAME.fullmatch(stem))]
    if len(parts) < len(stems) or len({(match[1], match[3]) for match in parts}) != 1:
        return None
    return [match[2] for match in parts]


def _in_two_parts(texts: Sequence[str]) -> tuple[list[int], str] | None:
    parts = [_TWO_PARTS.fullmatch(text) for text in texts]
    if not all(parts):
        return None
    return [int(part[1]) * _UNITS["seconds"] + int(part[2]) for part in parts if part], "seconds and nanoseconds"


def _in_seconds(texts: Sequence[str]) -> tuple[list[int], str] | None:
    if not all(_DECIMAL.fullmatch(text) for text in texts):
        return None
    try:
        return [nanoseconds_from_seconds(text) for text in texts], "seconds"
    except ValueError:  # beyond what a time can be
        return None


def _in_whole_numbers(texts: Sequence[str]) -> tuple[list[int], str] | None:
    if not all(_WHOLE.fullmatch(text) and len(text) == len(texts[0]) for text in texts):
        return None
    numbers = [int(text) for text in texts]
    for unit, size in _UNITS.items():
        since_1970_s = [number * size // _UNITS["seconds"] for number in numbers]
        if min(since_1970_s) >= EARLIEST_S and max(since_1970_s) <= LATEST_S:
            return [number * size for number in numbers], unit
    return None

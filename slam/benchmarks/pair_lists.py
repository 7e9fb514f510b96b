"""Lists of image pairs as text, one pair a line; the number of columns tells the format.

| columns | format |
|---|---|
| 14, 18 | `name0 name1 T`, T of 12 or 16 numbers, row by row: the pose of camera 0 in camera 1 (x1 = T x0) |
| 32, 36 | glue-factory: `name0 name1 K0 K1 T`, K of 9 numbers |
| 38 | SuperGlue: `name0 name1 turns0 turns1 K0 K1 T`, T of 16 numbers |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relocalizer.geometry import FloatArray
from slam.benchmarks.benchmark_error import BenchmarkError
from slam.benchmarks.pair_data import rigid_inverse, rigid_matrix
from slam.input.text_rows import rows_of

_FORMATS = {14: (0, False), 18: (0, False), 32: (0, True), 36: (0, True), 38: (2, True)}  # (turns, has intrinsics)


@dataclass(frozen=True, slots=True, eq=False)
class PairLine:
    """One line of a list.

    Attributes:
        place: file and line number, for messages.
        intrinsics: (3, 3) of each image, as the list gives them; None in a list without.
        first_from_second: (4, 4), true pose of the second camera in the first.
    """

    place: str
    names: tuple[str, str]
    intrinsics: tuple[FloatArray | None, FloatArray | None]
    first_from_second: FloatArray


def read_pair_list(path: Path) -> Iterator[PairLine | BenchmarkError]:
    """The pairs of a text list in any of the three formats, and the error of each line that is in none of them.

    Raises:
        SequenceError: the file cannot be read.
    """
    for place, fields in rows_of(path):
        try:
            yield _pair_line(place, fields)
        except BenchmarkError as error:
            yield error


def _pair_line(place: str, fields: list[str]) -> PairLine:
    if len(fields) not in _FORMATS:
        raise BenchmarkError(
            f"{place}: {len(fields)} columns; expected 'name0 name1' and a pose of 12 or 16 numbers (14, 18), "
            "with two intrinsics between them (32, 36), or SuperGlue's 38"
        )
    turns, has_intrinsics = _FORMATS[len(fields)]
    numbers = _numbers(place, fields[2:])
    if np.any(numbers[:turns]):
        raise BenchmarkError(f"{place}: turned images are not supported; turn the files and set the columns to 0")
    numbers = numbers[turns:]
    intrinsics: tuple[FloatArray | None, FloatArray | None] = (None, None)
    if has_intrinsics:
        intrinsics = numbers[:9].reshape(3, 3), numbers[9:18].reshape(3, 3)
        numbers = numbers[18:]
    return PairLine(place, (fields[0], fields[1]), intrinsics, rigid_inverse(rigid_matrix(numbers, place)))


def _numbers(place: str, fields: list[str]) -> FloatArray:
    try:
        return np.array([float(field) for field in fields])
    except ValueError as error:
        raise BenchmarkError(f"{place}: expected numbers after the two names ({error})") from None

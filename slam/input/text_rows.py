"""Text files with a line an entry: read with the place of every line, so that an error can name it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import SequenceError
from relocalizer.geometry import FloatArray
from relocalizer.unfetched import pointer_words, why_unfetched
from slam.evaluation.trajectory import nanoseconds_from_seconds


def rows_of(path: Path, separator: str | None = None, most_fields: int = 0) -> Iterator[tuple[str, list[str]]]:
    """(file and line, fields) of each line that is not empty and not a comment; at least one.

    `most_fields` leaves the rest of a line together, as file names may hold spaces.
    """
    found = False
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        content = line.strip()
        if content and not content.startswith("#"):
            found = True
            fields = content.split(separator, most_fields - 1) if most_fields else content.split(separator)
            yield f"{path}, line {number}", [field.strip() for field in fields]
    if not found:
        raise SequenceError(f"{path}: holds no lines but comments")


def text_of(path: Path) -> str:
    """A text file, with the bytes of names that are no UTF-8 as Python keeps them (surrogateescape).

    Raises:
        SequenceError: it cannot be read, or is no text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SequenceError(f"{path}: {why_unfetched(path) or f'cannot be read ({error.strerror})'}") from None
    if reason := pointer_words(data):
        raise SequenceError(f"{path}: {reason}")
    if b"\0" in data:
        raise SequenceError(f"{path}: not a text file")
    return data.decode("utf-8-sig", errors="surrogateescape")


def path_inside(folder: Path, name: str, place: str) -> Path:
    """The path of a listed image, which must not lead out of the folder (links inside it may)."""
    listed = PurePosixPath(os.fsdecode(name.encode(errors="surrogateescape")))  # the bytes count, not the locale
    if listed.is_absolute() or ".." in listed.parts:
        raise SequenceError(f"{place}: {name} leads out of the sequence's folder; expected a path inside it")
    return folder / listed


def integer_nanoseconds(place: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}|[0-8][0-9]{18}", text):
        raise SequenceError(f"{place}: expected a time in integer nanoseconds, got {text!r}")
    return int(text)


def nanoseconds_of(place: str, text: str) -> int:
    try:
        return nanoseconds_from_seconds(text)
    except ValueError as error:
        raise SequenceError(f"{place}: {error}") from None


def increasing(rows: Sequence[tuple[str, str, int]]) -> NDArray[np.int64]:
    """Timestamps (N,) of (place, text, nanoseconds) rows, which must increase."""
    for (_, before, before_ns), (place, text, time_ns) in pairwise(rows):
        if time_ns <= before_ns:
            problem = "is there twice" if time_ns == before_ns else f"comes after {before}"
            raise SequenceError(
                f"{place}: timestamps must increase, but {text} {problem}; sort the lines and keep each once"
            )
    return np.array([time_ns for _, _, time_ns in rows], dtype=np.int64)


def read_matrix(path: Path) -> FloatArray:
    rows = list(rows_of(path))
    try:
        values = [[float(field) for field in fields] for _, fields in rows]
    except ValueError as error:
        raise SequenceError(f"{path}: expected a matrix of numbers ({error})") from None
    if len({len(row) for row in values}) != 1:
        raise SequenceError(f"{path}: expected a matrix, but its lines differ in length")
    return np.array(values, dtype=np.float64)

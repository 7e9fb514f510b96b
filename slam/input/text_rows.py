"""Text files with one entry per line; each line is read with its file and number, for errors."""

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


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """(file and line number, stripped text) of each line that is not a comment, empty lines included.

    Raises:
        SequenceError: as `text_of`.
    """
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        content = line.strip()
        if not content.startswith("#"):
            yield f"{path}, line {number}", content


def rows_of(path: Path, separator: str | None = None, most_fields: int = 0) -> Iterator[tuple[str, list[str]]]:
    """(file and line number, fields) of each line that is neither empty nor a comment.

    Args:
        separator: between fields; None separates at blanks.
        most_fields: maximum number of fields, the last of which may contain separators, such as a file name with
            spaces; 0 splits at all separators.

    Raises:
        SequenceError: there is no such line, or as `text_of`.
    """
    found = False
    for place, content in lines_of(path):
        if content:
            found = True
            fields = content.split(separator, most_fields - 1) if most_fields else content.split(separator)
            yield place, [field.strip() for field in fields]
    if not found:
        raise SequenceError(f"{path}: holds no lines but comments")


def text_of(path: Path) -> str:
    """Content of a text file; bytes that are not UTF-8, as in file names, are kept by surrogateescape.

    Raises:
        SequenceError: it cannot be read, or is not a text file.
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
    """The path of a listed image. Raises SequenceError if the name leads out of the folder (links in it may)."""
    listed = PurePosixPath(os.fsdecode(name.encode(errors="surrogateescape")))  # Independent of the locale.
    if listed.is_absolute() or ".." in listed.parts:
        raise SequenceError(f"{place}: {name} leads out of the sequence's folder; expected a path inside it")
    return folder / listed


def integer_nanoseconds(place: str, text: str) -> int:
    """A timestamp written in nanoseconds. Raises SequenceError naming `place`."""
    if not re.fullmatch(r"[0-9]{1,18}|[0-8][0-9]{18}", text):
        raise SequenceError(f"{place}: expected a time in integer nanoseconds, got {text!r}")
    return int(text)


def nanoseconds_of(place: str, text: str) -> int:
    """A timestamp written in decimal seconds, as nanoseconds. Raises SequenceError naming `place`."""
    try:
        return nanoseconds_from_seconds(text)
    except ValueError as error:
        raise SequenceError(f"{place}: {error}") from None


def increasing(rows: Sequence[tuple[str, str, int]]) -> NDArray[np.int64]:
    """Timestamps (N,) of (place, text, nanoseconds) rows. Raises SequenceError unless they increase."""
    for (_, before, before_ns), (place, text, time_ns) in pairwise(rows):
        if time_ns <= before_ns:
            problem = "is there twice" if time_ns == before_ns else f"comes after {before}"
            raise SequenceError(
                f"{place}: timestamps must increase, but {text} {problem}; sort the lines and keep each once"
            )
    return np.array([time_ns for _, _, time_ns in rows], dtype=np.int64)


def read_matrix(path: Path) -> FloatArray:
    """A matrix with one row per line. Raises SequenceError if the file is not a matrix of numbers."""
    rows = list(rows_of(path))
    try:
        values = [[float(field) for field in fields] for _, fields in rows]
    except ValueError as error:
        raise SequenceError(f"{path}: expected a matrix of numbers ({error})") from None
    if len({len(row) for row in values}) != 1:
        raise SequenceError(f"{path}: expected a matrix, but its lines differ in length")
    return np.array(values, dtype=np.float64)

"""Reads a trajectory file as a table of text fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from relocalizer.errors import TrajectoryError
from slam.evaluation.pose_columns import Columns, named_columns
from slam.evaluation.trajectory import NO_TIMES

NAME_COLUMNS = "a header line may name them: # timestamp tx ty tz qx qy qz qw"
_GZIP = b"\x1f\x8b"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # Byte order marks, as written by Windows programs.


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A text file of numbers.

    Attributes:
        comments: comment lines before the first row.
        rows: (file and line number, fields) of each line that is not empty; at least one.
        commas: whether the columns of the first row are separated by commas or semicolons instead of blanks.
    """

    comments: list[str]
    rows: list[tuple[str, list[str]]]
    commas: bool

    @property
    def columns(self) -> int:
        return len(self.rows[0][1])

    @property
    def named(self) -> Columns | None:
        """The columns named by the last comment line that names any; None without one."""
        found = (named_columns(comment, self.columns) for comment in reversed(self.comments))
        return next((columns for columns in found if columns is not None), None)

    @property
    def has_times(self) -> bool:
        return not any(comment.strip() == NO_TIMES for comment in self.comments)


def read_table(path: Path) -> Table:
    """Read a file. Raises TrajectoryError if there is no such file, it is not text, or it has no row."""
    comments: list[str] = []
    rows: list[tuple[str, list[str]]] = []
    contents: list[str] = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        content, _, comment = line.partition("#")
        if content.strip():
            contents.append(content.strip())
            rows.append((f"{path}, line {number}", _fields(content.strip())))
        elif comment and not rows:
            comments.append(comment)
    if len(rows) > 1 and not _is_number(rows[0][1][0]) and named_columns(contents[0], len(rows[1][1])):
        comments.append(contents[0])
        contents, rows = contents[1:], rows[1:]
    if not rows:
        raise TrajectoryError(f"{path}: holds no poses")
    return Table(comments, rows, _separator(contents[0]) is not None)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            raise TrajectoryError(f"{path}: compressed; unpack it first (gunzip)")
        return data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    except FileNotFoundError:
        raise TrajectoryError(f"{path}: no such trajectory file") from None
    except IsADirectoryError:
        raise TrajectoryError(f"{path}: a folder; expected a trajectory file, such as one in it") from None
    except UnicodeDecodeError:
        raise TrajectoryError(f"{path}: not a text file, so not a trajectory") from None
    except OSError as error:
        raise TrajectoryError(f"{path}: cannot be read ({error.strerror})") from None


def _fields(content: str) -> list[str]:
    """Fields separated by commas, semicolons or blanks; a separator at the end of the line is ignored."""
    separator = _separator(content)
    fields = [field.strip() for field in content.split(separator)]
    return fields[:-1] if separator and not fields[-1] else fields


def _separator(content: str) -> str | None:
    return next((mark for mark in ",;" if mark in content), None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

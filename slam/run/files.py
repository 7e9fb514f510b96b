"""Atomic writing of files; errors of the file system become OutputError."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from relocalizer.errors import OutputError


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that after a crash either the old or the new version is complete.

    Bytes of a file name that cannot be decoded are written as `\\udcXX`, from which JSON restores them.

    Raises:
        OutputError: the file cannot be written, for example for lack of space or permission.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary file beside `path` to write; it replaces `path` on success and is deleted on failure."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, OutputError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise error if isinstance(error, OutputError) else refused(path, error) from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises an OSError of the block as an OutputError with one line of text."""
    try:
        yield
    except OSError as error:
        raise refused(path, error) from None


def refused(path: Path, error: OSError) -> OutputError:
    """The OutputError for a file that cannot be written."""
    reason = error.strerror or str(error)
    return OutputError(f"{path}: cannot be written ({reason}); make room or choose another place with --out")


class LineFile:
    """A text file that grows by one line at a time; each line is on the disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        """Create the file. Raises OutputError when it cannot be created."""
        self._path = path
        with writing(path):
            self._file: TextIO = path.open("w", encoding="utf-8", errors="backslashreplace", newline="", buffering=1)

    def write(self, line: str) -> None:
        """Append a line, with its line end. Raises OutputError when it cannot be written; the file is closed then."""
        try:
            self._file.write(line)
        except OSError as error:
            with suppress(OSError):  # closing tries to write the rest again
                self._file.close()
            raise refused(self._path, error) from None

    def close(self) -> None:
        """Close the file; later calls do nothing. Raises OutputError when it cannot be written."""
        with writing(self._path):
            self._file.close()

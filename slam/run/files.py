"""A run folder: what a run leaves on disk, written so that a crash or Ctrl-C leaves something readable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from relocalizer.errors import OutputError


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that after a crash either the old or the new one is there, whole.

    Bytes of a file's name that are no text are written as `\\udcXX`, which JSON reads back as what they were.

    Raises:
        OutputError: no space, no permission, or the like.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write: it takes its place when it is whole, and goes when it is not."""
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
    """Whatever the disk says becomes one line."""
    try:
        yield
    except OSError as error:
        raise refused(path, error) from None


def refused(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(f"{path}: cannot be written ({reason}); make room or choose another place with --out")

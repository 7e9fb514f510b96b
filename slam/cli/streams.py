"""Standard output and error that ignore a closed pipe or terminal, so that the run continues."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class LastingStream:
    """A text stream that discards its output, without an error, after its reader was closed.

    A closed pipe (`slam run ... | head -1`) raises BrokenPipeError, a closed terminal OSError (EIO).
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: OSError | ValueError) -> None:
        """Redirect the descriptor to the null device, so that Python's flush at exit does not fail.

        Raises:
            ValueError: the stream is not closed; the error has another cause.
        """
        if isinstance(error, ValueError) and not self._stream.closed:
            raise error
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """In this block, `sys.stdout` and `sys.stderr` are lasting streams."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = LastingStream(sys.stdout), LastingStream(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before

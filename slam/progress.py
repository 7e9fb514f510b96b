"""Progress of a long task: one updated line on a terminal, or a line every few seconds in a log."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from typing import TextIO

Progress = Callable[[str, int, int], None]  # (name of the task, steps done, maximum number of steps)

BAR_WIDTH = 24
LINE_EVERY_S = 2.0
_REDRAW_EVERY_S = 0.1
_CLEAR = "\r\x1b[K"


def no_progress(what: str, done: int, total: int) -> None:
    """Ignores the progress."""


class TaskProgress:
    """Called with (what, done, total) and an optional text; a new `what` starts a new task.

    `total` is None if it is unknown.
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._terminal = stream.isatty()
        self._what, self._started, self._last = "", 0.0, 0.0

    def __call__(self, what: str, done: int, total: int | None, state: str = "") -> None:
        now = self._clock()
        if what != self._what:  # shown at once on a terminal, because the first step may take long
            self._what, self._started, self._last = what, now, -math.inf if self._terminal else now
        if now - self._last < (_REDRAW_EVERY_S if self._terminal else LINE_EVERY_S):
            return
        self._last = now
        parts = [f"{done} {what}" if total is None else f"{done}/{total} {what}"]
        if total is not None and done and now > self._started:
            parts.append(f"{(now - self._started) / done * (total - done):.0f} s left")
        line = ", ".join([*parts, state] if state else parts)
        if self._terminal:
            shown = line if total is None else f"{_bar(done, total)} {line}"
            # A longer line would wrap, and could not be cleared.
            self._stream.write(f"{_CLEAR}{shown[: shutil.get_terminal_size().columns - 1]}")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.close()
        self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Clear the progress line of the terminal."""
        if self._terminal:
            self._stream.write(_CLEAR)
            self._stream.flush()


def _bar(done: int, total: int) -> str:
    full = BAR_WIDTH * done // max(total, 1)
    return f"[{'#' * full}{'.' * (BAR_WIDTH - full)}]"

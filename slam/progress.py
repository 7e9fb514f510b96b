"""How far a long task is, on one line of a terminal, or as a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

BAR_WIDTH = 24
LINE_EVERY_S = 2.0
_REDRAW_EVERY_S = 0.1
_CLEAR = "\r\x1b[K"


class TaskProgress:
    """Called with (what, done, total); a new `what` begins a new count."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._terminal = stream.isatty()
        self._what, self._started, self._last = "", 0.0, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        if what != self._what:
            self._what, self._started, self._last = what, now, now
        if now - self._last < (_REDRAW_EVERY_S if self._terminal else LINE_EVERY_S):
            return
        self._last = now
        left = (now - self._started) / done * (total - done) if done else 0.0
        line = f"{done}/{total} {what}, {left:.0f} s left"
        if self._terminal:
            full = BAR_WIDTH * done // max(total, 1)
            self._stream.write(f"{_CLEAR}[{'#' * full}{'.' * (BAR_WIDTH - full)}] {line}")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leave the terminal's line empty."""
        if self._terminal:
            self._stream.write(_CLEAR)
            self._stream.flush()

"""Wall time per stage. For reports only: no estimate depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class Stopwatch:
    """Accumulates milliseconds per stage name."""

    def __init__(self) -> None:
        self.stage_ms: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self.stage_ms[stage] = self.stage_ms.get(stage, 0.0) + 1e3 * (perf_counter() - start)

    def add(self, other: Stopwatch) -> None:
        """Add the times of another stopwatch."""
        for stage, milliseconds in other.stage_ms.items():
            self.stage_ms[stage] = self.stage_ms.get(stage, 0.0) + milliseconds

"""What workers are given, and what they return."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

ATTEMPTS = 3  # Number of times an item is begun, if its worker dies.


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """The result of an item, and one sentence for each worker that died at it; None if all of them died."""

    item: str
    result: Any
    deaths: tuple[str, ...] = ()

    @property
    def fault(self) -> str:
        """Why there is no result."""
        return f"its worker died {len(self.deaths)} times"


# An importable function from (request, item) to a result that can be sent between processes. A request is the same for
# all items, such as a configuration as JSON, so that a worker can keep what it made of it.
Work = Callable[[str, str], Any]
Workers = Callable[[Work, str, Sequence[str]], Generator[Finished]]  # (work, request, items) to results, in any order.


def in_this_process(work: Work, request: str, items: Sequence[str]) -> Generator[Finished]:
    """Does the work one item after another."""
    for item in items:
        yield Finished(item, work(request, item))

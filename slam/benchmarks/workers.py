"""Where items are evaluated: in this process, or in several processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any

from slam.benchmarks.item_evaluation import evaluate_item, failed

ATTEMPTS = 3  # Number of times an item is begun, if its worker dies.
WORKER_MEMORY_MB = 6000.0  # Peak memory above which a worker is replaced by a new one, megabytes.


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """An item's result, and one sentence for each worker that died while evaluating it."""

    item: str
    result: dict[str, Any]
    deaths: tuple[str, ...] = ()


Evaluate = Callable[[str, str], dict[str, Any]]  # (request, item) to its result.
Workers = Callable[[str, Sequence[str]], Generator[Evaluated]]  # (request, items) to results, in any order.


def in_this_process(request: str, items: Sequence[str]) -> Generator[Evaluated]:
    """Evaluates the items one after another."""
    for item in items:
        yield Evaluated(item, evaluate_item(request, item))


def in_processes(jobs: int, evaluate: Evaluate = evaluate_item) -> Workers:
    """Workers that evaluate items in `jobs` processes.

    A process that dies, for example because memory ran out, is replaced, and its item begun again.

    Args:
        evaluate: importable function; for tests.
    """

    def work(request: str, items: Sequence[str]) -> Generator[Evaluated]:
        with _Processes(request, min(jobs, len(items)), evaluate) as processes:
            yield from processes.evaluate(items)

    return work


@dataclass(slots=True, eq=False)
class _Worker:
    process: SpawnProcess
    pipe: connection.Connection
    item: str = ""


@dataclass(slots=True, eq=False)
class _Processes:
    """A fixed number of processes, each with a pipe for items and results."""

    request: str
    count: int
    evaluate_item: Evaluate
    workers: list[_Worker] = field(default_factory=list)
    deaths: dict[str, list[str]] = field(default_factory=dict)

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()

    def evaluate(self, items: Sequence[str]) -> Iterator[Evaluated]:
        waiting = list(reversed(items))
        while waiting or any(worker.item for worker in self.workers):
            while waiting and (worker := self._idle()) is not None:
                worker.item = waiting.pop()
                with suppress(OSError):  # its death is noticed below
                    worker.pipe.send(worker.item)
            busy = [worker for worker in self.workers if worker.item]
            ready = connection.wait([worker.pipe for worker in busy])
            for worker in busy:
                if worker.pipe in ready:
                    yield from self._received(worker, waiting)

    def _idle(self) -> _Worker | None:
        """A worker without an item, started if there are fewer than there may be."""
        found = next((worker for worker in self.workers if not worker.item), None)
        if found is None and len(self.workers) < self.count:
            found = self._started()
            self.workers.append(found)
        return found

    def _received(self, worker: _Worker, waiting: list[str]) -> Iterator[Evaluated]:
        item, worker.item = worker.item, ""
        try:
            result = worker.pipe.recv()
        except (EOFError, OSError):
            self._replace(worker)
            deaths = self.deaths.setdefault(item, [])
            deaths.append(f"{item}: its worker died ({_cause(worker.process)})")
            if len(deaths) < ATTEMPTS:
                waiting.append(item)
            else:
                yield Evaluated(item, failed(item, f"its worker died {len(deaths)} times"), tuple(deaths))
            return
        if result["peak_memory_mb"] > WORKER_MEMORY_MB:
            self._replace(worker)
        yield Evaluated(item, result, tuple(self.deaths.get(item, ())))

    def _started(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, (os.cpu_count() or 1) // self.count)
        process = context.Process(target=_serve, args=(self.request, theirs, threads, self.evaluate_item), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _replace(self, worker: _Worker) -> None:
        """Ends a worker; another one is started when an item waits."""
        self.workers.remove(worker)
        worker.pipe.close()
        worker.process.join(timeout=5.0)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _serve(request: str, pipe: connection.Connection, threads: int, evaluate: Evaluate) -> None:
    """Evaluates the items that come through the pipe, until it is closed or the process is told to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            pipe.send(evaluate(request, pipe.recv()))


def _end_with_parent() -> None:
    """Ends this process when its parent is gone, so that it does not write to a folder that a new run uses."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)


def _cause(process: SpawnProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"

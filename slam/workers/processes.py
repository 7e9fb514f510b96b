"""Workers in several processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import SpawnProcess

from slam.process_memory import peak_memory_mb
from slam.workers.work import ATTEMPTS, Finished, Work, Workers

WORKER_MEMORY_MB = 6000.0  # Peak memory above which a worker is replaced by a new one, megabytes.


def in_processes(jobs: int, *, memory_mb: float = WORKER_MEMORY_MB) -> Workers:
    """Workers in `jobs` processes.

    A process that dies, for example because memory ran out, is replaced, and its item begun again.

    Args:
        memory_mb: peak memory above which a process is replaced after its item, megabytes.
    """

    def do(work: Work, request: str, items: Sequence[str]) -> Generator[Finished]:
        with _Processes(work, request, min(jobs, len(items)), memory_mb) as processes:
            yield from processes.results(items)

    return do


@dataclass(slots=True, eq=False)
class _Worker:
    process: SpawnProcess
    pipe: connection.Connection
    item: str = ""


@dataclass(slots=True, eq=False)
class _Processes:
    """A fixed number of processes, each with a pipe for items and results."""

    work: Work
    request: str
    count: int
    memory_mb: float
    workers: list[_Worker] = field(default_factory=list)
    deaths: dict[str, list[str]] = field(default_factory=dict)

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()

    def results(self, items: Sequence[str]) -> Iterator[Finished]:
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

    def _received(self, worker: _Worker, waiting: list[str]) -> Iterator[Finished]:
        item, worker.item = worker.item, ""
        try:
            result, memory_mb = worker.pipe.recv()
        except (EOFError, OSError):
            self._replace(worker)
            deaths = self.deaths.setdefault(item, [])
            deaths.append(f"{item}: its worker died ({_cause(worker.process)})")
            if len(deaths) < ATTEMPTS:
                waiting.append(item)
            else:
                yield Finished(item, None, tuple(deaths))
            return
        if memory_mb > self.memory_mb:
            self._replace(worker)
        yield Finished(item, result, tuple(self.deaths.get(item, ())))

    def _started(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, (os.cpu_count() or 1) // self.count)
        process = context.Process(target=_serve, args=(self.work, self.request, theirs, threads), daemon=True)
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


def _serve(work: Work, request: str, pipe: connection.Connection, threads: int) -> None:
    """Does the items that come through the pipe, until it is closed or the process is asked to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            result = work(request, pipe.recv())
            pipe.send((result, peak_memory_mb()))


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

"""Workers of a Ray cluster: each item is a task, and a task whose worker dies is restarted.

Results come back to this machine. The package must be installed on all machines, and folders that the work reads or
writes must have the same path on them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from relocalizer.errors import ConfigError
from slam.workers.work import ATTEMPTS, Finished, Work, Workers

LOCAL = "local"
TASK_MEMORY_BYTES = 2 * 2**30  # Memory that a task reserves, so that not more tasks run on a machine than it can hold.
ANSWER_S = 10.0  # Time within which a cluster must answer, seconds.
TASKS_PER_WORKER = 32  # Number of tasks after which a worker is replaced, so that its memory cannot grow for ever.


def on_ray(address: str, jobs: int | None = None) -> Workers:
    """Workers of a Ray cluster.

    Args:
        address: of a running cluster ("ray://host:10001", "host:6379", "auto"), or "local" for one of this machine.
        jobs: number of processors of a local cluster; None is all of them.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("--ray needs Ray, which is not installed: pip install 'reloc3r-slam[ray]'") from None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        options |= {"num_cpus": jobs or os.cpu_count(), "include_dashboard": False}
    else:
        options |= {"address": address}

    def do(work: Work, request: str, items: Sequence[str]) -> Generator[Finished]:
        _expect_answer(address)
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConfigError(f"--ray {address}: no cluster there ({first})") from None
        try:
            yield from _results(ray, work, request, items)
        finally:
            ray.shutdown()

    return do


def _expect_answer(address: str) -> None:
    """Raises ConfigError if nobody answers at host:port, which Ray would find out only after minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--ray {address}: no cluster there ({error})") from None


def _results(ray: Any, work: Work, request: str, items: Sequence[str]) -> Iterator[Finished]:
    remote = ray.remote(
        num_cpus=1,
        memory=TASK_MEMORY_BYTES,
        max_calls=TASKS_PER_WORKER,
        max_retries=0,  # begun again here, to say so
    )(work)
    shared = ray.put(request)
    pending = {remote.remote(shared, item): item for item in items}
    deaths: dict[str, list[str]] = {}
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1)
        for task in ready:
            item = pending.pop(task)
            own = deaths.setdefault(item, [])
            try:
                yield Finished(item, ray.get(task), tuple(own))
            except ray.exceptions.RayTaskError as error:  # raised by the work itself
                raise error.as_instanceof_cause() from None
            except ray.exceptions.RayError as error:
                own.append(f"{item}: its worker died ({type(error).__name__})")
                if len(own) < ATTEMPTS:
                    pending[remote.remote(shared, item)] = item
                else:
                    yield Finished(item, None, tuple(own))

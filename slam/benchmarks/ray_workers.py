"""Evaluation of items on a Ray cluster: each item is a task, and a task whose worker dies is begun again.

Results come back to this machine and land in the same files as without Ray. Suites that write folders of their own
(runs, maps) need `--out` under the same path on every machine, and the data set under `--data`.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from relocalizer.errors import ConfigError
from slam.benchmarks.item_evaluation import evaluate_item, failed
from slam.benchmarks.workers import ATTEMPTS, Evaluate, Evaluated, Workers

LOCAL = "local"
TASK_MEMORY_BYTES = 2 * 2**30  # Memory that a task reserves, so that not more tasks run on a machine than it can hold.
TASKS_PER_WORKER = 32  # Number of tasks after which a worker is replaced, so that its memory cannot grow for ever.


def on_ray(address: str, jobs: int | None = None, evaluate: Evaluate = evaluate_item) -> Workers:
    """Workers of a Ray cluster.

    Args:
        address: of a running cluster ("ray://host:10001", "host:6379", "auto"), or "local" for one of this machine.
        jobs: number of processors of a local cluster; None is all of them.
        evaluate: importable function; for tests.

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

    def work(request: str, items: Sequence[str]) -> Generator[Evaluated]:
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConfigError(f"--ray {address}: no cluster there ({first})") from None
        try:
            yield from _evaluate(ray, evaluate, request, items)
        finally:
            ray.shutdown()

    return work


def _evaluate(ray: Any, evaluate: Evaluate, request: str, items: Sequence[str]) -> Iterator[Evaluated]:
    remote = ray.remote(
        num_cpus=1,
        memory=TASK_MEMORY_BYTES,
        max_calls=TASKS_PER_WORKER,
        max_retries=0,  # retried here, to say so
    )(evaluate)
    shared = ray.put(request)
    pending = {remote.remote(shared, item): item for item in items}
    deaths: dict[str, list[str]] = {}
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1)
        for task in ready:
            item = pending.pop(task)
            own = deaths.setdefault(item, [])
            try:
                result = ray.get(task)
            except ray.exceptions.RayError as error:
                own.append(f"{item}: its worker died ({type(error).__name__})")
                if len(own) < ATTEMPTS:
                    pending[remote.remote(shared, item)] = item
                    continue
                result = failed(item, f"its worker died {len(own)} times")
            yield Evaluated(item, result, tuple(own))

"""Evaluation of one item, in this process or in a worker: plain values in, plain values out."""

from __future__ import annotations

import json
import platform
import time
import traceback
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from relocalizer.errors import UserError
from slam.benchmarks.results_folder import DONE, FAILED
from slam.benchmarks.suite import BenchmarkRequest, Suite
from slam.benchmarks.suites import open_suite
from slam.plain_text import plain
from slam.process_memory import peak_memory_mb


def to_text(request: BenchmarkRequest) -> str:
    """A request as text, which any worker can read."""
    return json.dumps(asdict(request))


def evaluate_item(request: str, item: str) -> dict[str, Any]:
    """The contents of an item's result file.

    An error of one item, also a bug, does not affect the others: it is in `faults`, a bug's traceback in `internal`.

    Args:
        request: of `to_text`.
    """
    started = time.perf_counter()
    values: dict[str, Any] = {}
    faults: list[str] = []
    internal = ""
    try:
        values = _suite(request).evaluate(item)
        faults = [_line(fault) for fault in values.pop("faults", [])]
    except UserError as error:
        faults = [_line(str(error))]
    except Exception as error:  # reported in the item's result and at the end of the suite
        faults, internal = [_line(f"internal error: {type(error).__name__}: {error}")], traceback.format_exc()
    return {
        "item": item,
        "status": DONE if values else FAILED,
        "faults": faults,
        "internal": internal,
        "seconds": time.perf_counter() - started,
        "peak_memory_mb": peak_memory_mb(),
        "machine": platform.node(),
        "values": values,
    }


def failed(item: str, fault: str) -> dict[str, Any]:
    """The contents of the result file of an item that could not be evaluated."""
    return {
        "item": item,
        "status": FAILED,
        "faults": [_line(fault)],
        "internal": "",
        "seconds": 0.0,
        "peak_memory_mb": 0.0,
        "machine": platform.node(),
        "values": {},
    }


@lru_cache(maxsize=1)  # The predictor of a suite is loaded once per worker.
def _suite(request: str) -> Suite:
    return open_suite(BenchmarkRequest(**json.loads(request)))


def _line(sentence: str) -> str:
    return plain(" ".join(sentence.split()))

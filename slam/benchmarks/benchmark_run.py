"""A run of a suite: all items that are not done yet, then the summary and the report."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from slam.benchmarks.html_report import html_report
from slam.benchmarks.item_evaluation import evaluate_item, failed, to_text
from slam.benchmarks.result_files import csv_text, markdown_tables, results_values
from slam.benchmarks.results_folder import MARKDOWN, REPORT, RESULTS, TABLE, ResultsFolder
from slam.benchmarks.suite import BenchmarkRequest, Suite, Summary
from slam.benchmarks.suites import open_suite
from slam.workers.work import Workers


class ItemProgress(Protocol):
    """Called before the first and after each item of this run; `fault` is one sentence, empty without one."""

    def __call__(self, done: int, total: int, item: str, fault: str) -> None: ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class BenchmarkOutcome:
    """What a run of a suite left.

    Attributes:
        faults: one sentence for each part of the data that could not be evaluated.
        retried: one sentence for each worker that died.
        resumed: number of items that were done before.
        internal: whether a fault is a bug of the program.
        interrupted: whether Ctrl-C ended it before the last item.
    """

    summary: Summary
    folder: Path
    items: int
    done: int
    resumed: int
    faults: tuple[str, ...]
    retried: tuple[str, ...]
    internal: bool
    interrupted: bool


def run_benchmark(
    request: BenchmarkRequest, workers: Workers, session: Mapping[str, Any], on_item: ItemProgress
) -> BenchmarkOutcome:
    """Evaluate the items of a suite that have no result yet, and write the summary of all.

    After Ctrl-C the summary is that of the items so far.

    Args:
        session: command, machine and versions, for the report; `weights_sha256` is part of the identity.

    Raises:
        UserError: the data cannot be read, or the folder holds other results.
    """
    suite = open_suite(request)
    folder = ResultsFolder(Path(request.out))
    folder.open({**request.identity, "weights_sha256": session.get("weights_sha256", "")}, session)
    stages = [list(stage) for stage in suite.stages()]
    items = [item for stage in stages for item in stage]
    resumed = folder.done(items)
    interrupted = _evaluate(request, workers, folder, stages, on_item)
    return _written(suite, folder, items, len(resumed), interrupted=interrupted)


def _evaluate(
    request: BenchmarkRequest,
    workers: Workers,
    folder: ResultsFolder,
    stages: list[list[str]],
    on_item: ItemProgress,
) -> bool:
    """Evaluate what is not done; whether Ctrl-C ended it."""
    ready = folder.done([item for stage in stages for item in stage])
    count, total = 0, sum(len(stage) for stage in stages) - len(ready)
    on_item(0, total, "", "")
    try:
        for stage in stages:
            waiting = [item for item in stage if item not in ready]
            if not waiting:
                continue
            with closing(workers(evaluate_item, to_text(request), waiting)) as finished:
                for one in finished:
                    result = failed(one.item, one.fault) if one.result is None else one.result
                    folder.write_item(one.item, {**result, "retried": list(one.deaths)})
                    count += 1
                    on_item(count, total, one.item, "; ".join([*one.deaths, *result["faults"][:1]]))
    except KeyboardInterrupt:
        return True
    return False


def _written(
    suite: Suite, folder: ResultsFolder, items: list[str], resumed: int, *, interrupted: bool
) -> BenchmarkOutcome:
    """Write results.json, results.csv, results.md and report.html."""
    entries = folder.results(items)
    done = {item: entry["values"] for item, entry in entries.items() if entry["values"]}
    summary = suite.summarize(done)
    outcome = BenchmarkOutcome(
        summary=summary,
        folder=folder.path,
        items=len(items),
        done=len(done),
        resumed=resumed,
        faults=(*suite.faults, *(f"{item}: {fault}" for item, e in entries.items() for fault in e["faults"])),
        retried=tuple(death for entry in entries.values() for death in entry.get("retried", [])),
        internal=any(entry["internal"] for entry in entries.values()),
        interrupted=interrupted,
    )
    seconds = sum(entry["seconds"] for entry in entries.values())
    values = results_values(
        summary,
        {
            "items": outcome.items,
            "done": outcome.done,
            "faults": list(outcome.faults),
            "retried": list(outcome.retried),
            "seconds": seconds,
            "sessions": folder.sessions,
        },
    )
    folder.write_json(RESULTS, values)
    folder.write(TABLE, csv_text(suite.rows(done)))
    protocol = "".join(f"- {name}: {value}\n" for name, value in summary.protocol.items())
    folder.write(MARKDOWN, f"# {summary.title}\n\n{markdown_tables(values)}{protocol}")
    folder.write(REPORT, html_report(summary, values))
    return outcome

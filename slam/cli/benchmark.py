"""`slam benchmark`: accuracy on public benchmarks."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relocalizer.errors import ConfigError
from slam.cli.options import (
    INTERNAL_ERROR,
    INTERRUPTED,
    UNUSABLE,
    USER_ERROR,
    AsJson,
    ConfigFiles,
    Jobs,
    Overrides,
    PredictorName,
    RandomWeights,
    RayAddress,
    Seed,
    Weights,
    complain,
    flags_of,
    load_settings,
    say,
    workers_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slam.benchmarks.benchmark_run import BenchmarkOutcome

# Listed here because the help must not load the suites; a test compares them.
PAIRS = ("scannet1500", "megadepth1500", "re10k", "acid", "co3d", "re10k10", "pairs")
LOCALIZATION = ("7scenes-localization", "cambridge")
SLAM = ("tum", "euroc", "kitti", "7scenes", "icl", "folder")
MOST_FAULTS = 20  # Faults that are printed at the end; report.html has more.
Limits = Annotated[
    list[str],
    typer.Option(
        "--fail-above",
        metavar="FIGURE=VALUE",
        help="Exit with code 1 if a figure of results.json is larger, such as ate_sim3=0.05; repeatable.",
    ),
]
Floors = Annotated[
    list[str],
    typer.Option(
        "--fail-below",
        metavar="FIGURE=VALUE",
        help="Exit with code 1 if a figure is smaller, such as auc20_plain=75; repeatable.",
    ),
]


def benchmark(
    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE",
            help=f"Pairs: {', '.join(PAIRS)}. Localization: {', '.join(LOCALIZATION)}. SLAM: {', '.join(SLAM)}.",
        ),
    ],
    data: Annotated[Path, typer.Option("--data", metavar="ROOT", help="Root folder of the data set.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="DIR",
            help="Folder of the results. Default: runs/benchmark-SUITE.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFiles = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006
    predictor: PredictorName = None,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    seed: Seed = None,
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=100, help="SLAM: number of runs of each sequence, with its own seed each."
        ),
    ] = 1,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Maximum number of items; of queries per scene for localization."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="List of pairs instead of the suite's; for localization the retrieval: a file, or a folder of them.",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[
        int, typer.Option(metavar="K", min=2, max=100, help="Localization: retrieved images per query.")
    ] = 10,
    step: Annotated[
        int, typer.Option(metavar="N", min=1, help="Localization: use every N-th database and query image.")
    ] = 1,
    jobs: Jobs = 1,
    ray: RayAddress = None,
    fail_above: Limits = [],  # noqa: B006
    fail_below: Floors = [],  # noqa: B006
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors and results.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy on a public benchmark; `slam bench` measures speed.

    Examples:

      slam benchmark scannet1500 --data scannet1500 --predictor reloc3r-512

      slam benchmark 7scenes-localization --data 7scenes --step 20 --jobs 4

      slam benchmark tum --data tum -o results/tum --fail-above ate_sim3=0.06

      slam benchmark folder --data my_sequences --jobs 2

    There is a file per item, and a killed run resumes when the same command is given again. The folder of the
    results has the tables as report.html, results.json and results.csv. `slam data describe` says where data are from.
    """
    limits, floors = _figures(fail_above, "--fail-above"), _figures(fail_below, "--fail-below")
    flags = flags_of(predictor=predictor, weights=weights, random_weights=random_weights, seed=seed)

    from slam.benchmarks.benchmark_run import run_benchmark
    from slam.benchmarks.session import session_values
    from slam.benchmarks.suite import BenchmarkRequest
    from slam.components.predictor_choice import RANDOM_WEIGHTS, decide

    settings = load_settings(config, overrides, flags, verb="slam benchmark", quiet=quiet)
    settings, choice = decide(settings)
    if not quiet:
        say(f"predictor: {choice.kind} ({choice.reason})")
    if settings.predictor.random_weights:
        say(f"WARNING: {RANDOM_WEIGHTS}")
    request = BenchmarkRequest(
        suite=suite,
        data=os.path.abspath(data),
        out=os.path.abspath(out or Path("runs") / f"benchmark-{suite}"),
        config=settings.model_dump(mode="json"),
        limit=limit,
        pairs=os.path.abspath(pairs) if pairs else "",
        seeds=seeds,
        top_k=top_k,
        step=step,
    )
    session = session_values(sys.argv[1:], settings)
    outcome = run_benchmark(request, workers_of(jobs, ray), session, _Progress(quiet))
    raise typer.Exit(_ended(outcome, limits, floors, as_json=as_json))


class _Progress:
    """Prints the number of items done with the time left, and each fault in one line."""

    def __init__(self, quiet: bool) -> None:
        from slam.progress import TaskProgress

        self._progress = TaskProgress(sys.stderr)
        self._quiet = quiet

    def __call__(self, done: int, total: int, item: str, fault: str) -> None:
        if fault:  # on its own line
            self._progress.close()
            complain(fault if fault.startswith(item) else f"{item}: {fault}")
        if not self._quiet:
            self._progress("items", done, total, item)


def _print_tables(outcome: BenchmarkOutcome) -> None:
    from slam.benchmarks.html_report import cell_text
    from slam.cli.text_tables import render

    for table in outcome.summary.tables:
        rows: list[Any] = [table.columns, *(tuple(cell_text(cell) for cell in row) for row in table.rows)]
        print(render(rows, title=table.title, width=150))
        if table.note:
            print(table.note)
        print()


def _ended(
    outcome: BenchmarkOutcome, limits: Mapping[str, float], floors: Mapping[str, float], *, as_json: bool
) -> int:
    """Print the tables or results.json, and return the exit code."""
    from slam.run.summary import counted

    if as_json:
        from slam.benchmarks.results_folder import RESULTS

        print((outcome.folder / RESULTS).read_text(encoding="utf-8"), end="")
    else:
        _print_tables(outcome)
    say(f"{outcome.done} of {outcome.items} items ({outcome.resumed} from before); {outcome.folder / 'report.html'}")
    for line in outcome.retried:
        say(f"restarted: {line}")
    if outcome.interrupted:
        complain("interrupted; the same command resumes it")
        return INTERRUPTED
    if outcome.faults:
        for fault in outcome.faults[:MOST_FAULTS]:
            say(f"fault: {fault}")
        complain(f"{counted(len(outcome.faults), 'fault')}; the first: {outcome.faults[0]}")
        return INTERNAL_ERROR if outcome.internal else USER_ERROR
    return UNUSABLE if _fails(outcome.summary.figures, limits, floors) else 0


def _figures(given: list[str], option: str) -> dict[str, float]:
    """FIGURE=VALUE texts as numbers. Raises ConfigError."""
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise ConfigError(f"{option} {text}: expected FIGURE=VALUE, such as ate_sim3=0.05") from None
    return found


def _fails(figures: Mapping[str, float], limits: Mapping[str, float], floors: Mapping[str, float]) -> bool:
    """Whether a figure is beyond its limit; each one is reported.

    Raises:
        ConfigError: the suite has no such figure.
    """
    for name in [*limits, *floors]:
        if name not in figures:
            raise ConfigError(f"--fail-above, --fail-below: no figure {name}; there are {', '.join(figures) or 'none'}")
    beyond = [f"{name} is {figures[name]:.4g}, above {most:g}" for name, most in limits.items() if figures[name] > most]
    beyond += [
        f"{name} is {figures[name]:.4g}, below {least:g}" for name, least in floors.items() if figures[name] < least
    ]
    beyond += [f"{name} is not a number" for name in [*limits, *floors] if math.isnan(figures[name])]
    for sentence in beyond:
        complain(sentence)
    return bool(beyond)

"""`slam bench`: time and memory of a run, or of the network alone."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relocalizer.errors import ConfigError
from slam.cli.options import (
    INTERRUPTED,
    UNUSABLE,
    AsJson,
    CameraFile,
    ConfigFiles,
    MaskImage,
    Overrides,
    PredictorName,
    Preset,
    RandomWeights,
    Seed,
    Start,
    Stride,
    Weights,
    complain,
    flags_of,
    introduce,
    load_settings,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from slam.bench.ablation import Variant
    from slam.components.predictor_choice import PredictorChoice
    from slam.config.schema import SlamConfig
    from slam.input.frame_source import FrameSource
    from slam.progress import TaskProgress

FRAMES = 200  # default number of measured frames


def bench(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE", help="Source as for `slam run`. Without it, the Reloc3r network is measured alone."
        ),
    ] = None,
    preset: Preset = None,
    config: ConfigFiles = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006
    predictor: PredictorName = None,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    camera: CameraFile = None,
    mask: MaskImage = None,
    max_frames: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            help="Maximum number of frames to measure. Default: 200; with --ablation, --perturb or --live: all.",
            show_default=False,
        ),
    ] = None,
    stride: Stride = 1,
    start: Start = 0,
    seed: Seed = None,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of repeats for the network alone; results are medians.")
    ] = 3,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Repeat the run without each component and compare the accuracy.")
    ] = False,
    perturb: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=100,
            help="Repeat the run N times on images that differ by noise of one gray level, by JPEG, or by a later "
            "begin, and compare the results.",
            show_default=False,
        ),
    ] = None,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Feed the images of SOURCE at their own rate, as a camera would, and measure how old the poses are.",
        ),
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="FPS",
            min=0.1,
            max=1000.0,
            help="With --live: images per second, instead of the times of SOURCE.",
            show_default=False,
        ),
    ] = None,
    training: Annotated[
        bool,
        typer.Option(
            "--training", help="Measure the training of Reloc3r, on a map or run given as SOURCE or on random images."
        ),
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a Rerun recording (.rrd) of the run, and measure what it costs."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure speed, memory and the time per stage (median, 95th percentile) of a run, without a run folder.

    `slam benchmark` measures the accuracy on public benchmarks.

    Examples:

      slam bench sequences/room_loop

      slam bench room.mp4 -c configs/fast.yaml --max-frames 500 --json

      slam bench sequences/room_loop --ablation

      slam bench sequences/room_loop --perturb 6

      slam bench sequences/room_loop --record room.rrd

      slam bench sequences/room_loop --live --rate 30

      slam bench --training --predictor reloc3r-224 --random-weights

      slam bench --predictor reloc3r-224 --random-weights

    The last example measures the network alone with every available backend and precision, compared with a naive
    implementation. Random weights take the same time as trained weights. --set predictor.backend=... or
    predictor.precision=... limits the measurement to one of them.
    """
    flags = flags_of(predictor=predictor, weights=weights, random_weights=random_weights, seed=seed, mask=mask)

    from slam.components.predictor_choice import choose_predictor, with_predictor, with_runtime
    from slam.input.open_source import open_source

    settings = load_settings(config, overrides, flags, verb="slam bench", preset=preset)
    choice = choose_predictor(settings)
    settings, choice = with_runtime(with_predictor(settings, choice.kind), choice)
    if training:
        _bench_training(settings, choice, source, repeats, as_json)
        return
    has_several_runs = ablation or perturb is not None
    _check_request(source, ablation, perturb, record)
    if live or rate is not None:
        _expect_live_alone(source, live=live, others=has_several_runs or record is not None)
    if source is None:
        _bench_network(settings, choice, repeats, as_json)
        return
    count = max_frames or (None if has_several_runs or live else FRAMES)

    def opened(delay: int = 0) -> FrameSource:
        return open_source(
            source, config=settings.input, camera=camera, start=start + delay, stride=stride, max_frames=count
        )

    frames = opened()
    with ExitStack() as closing:
        closing.callback(frames.close)
        introduce(say, settings, frames, choice)
        if has_several_runs:
            frames.close()  # each run opens it again
        if perturb is not None:
            raise typer.Exit(_bench_perturbed(settings, opened, perturb, as_json))
        if ablation:
            raise typer.Exit(_bench_ablation(settings, opened, as_json))
        if live:
            raise typer.Exit(_bench_live(settings, frames, rate, as_json))
        raise typer.Exit(_bench_run(settings, frames, count or FRAMES, as_json, record))


def _check_request(source: str | None, ablation: bool, perturb: int | None, record: Path | None) -> None:
    """Raises ConfigError if the options do not go together."""
    has_several_runs = ablation or perturb is not None
    if record is not None:
        from slam.bench.recording_cost import expect_recording_name
        from slam.viz.installation import expect_installed

        expect_installed("--record")

        if source is None or has_several_runs:
            raise ConfigError("bench: --record measures one run over a SOURCE")
        expect_recording_name(record)
    if ablation and perturb is not None:
        raise ConfigError("bench: --ablation and --perturb are two measurements; give one of them")
    if source is None and has_several_runs:
        raise ConfigError(f"bench: --{'ablation' if ablation else 'perturb'} runs SLAM over a source; give a SOURCE")


def _bench_run(config: SlamConfig, frames: FrameSource, max_frames: int, as_json: bool, record: Path | None) -> int:
    from slam.bench.cost import measure_recorded_run, measure_run
    from slam.progress import TaskProgress

    count = min(max_frames, frames.length or max_frames)
    say(f"measuring {count} frames")
    progress = TaskProgress(sys.stderr)
    try:
        on_progress = partial(_show_frames, progress, count)
        if record is None:
            cost = measure_run(config, frames, on_progress=on_progress)
        else:
            cost = measure_recorded_run(config, frames, record, on_progress=on_progress)
    finally:
        progress.close()
    if as_json:
        print(json.dumps(cost.to_dict(), indent=2))
    else:
        from slam.cli.text_tables import bench_rows, render, stage_rows

        print(render(bench_rows(cost)), render(stage_rows(cost.stages)), sep="\n\n")
    if cost.interrupted:
        return INTERRUPTED
    if cost.reason:
        complain(f"these are times of a run that is not usable: {cost.reason}")
        return UNUSABLE
    return 0


def _expect_live_alone(source: str | None, *, live: bool, others: bool) -> None:
    if not live:
        raise ConfigError("bench: --rate is the rate of --live; give both")
    if source is None or others:
        raise ConfigError("bench: --live measures one run over a SOURCE, without --ablation, --perturb and --record")


def _bench_live(config: SlamConfig, frames: FrameSource, rate: float | None, as_json: bool) -> int:
    from slam.bench.live_latency import measure_live
    from slam.progress import TaskProgress

    say(f"feeding {frames.length or 'all'} images {f'at {rate:g} per second' if rate else 'at their own rate'}")
    progress = TaskProgress(sys.stderr)
    try:
        found = measure_live(config, frames, rate, on_progress=partial(_show_frames, progress, frames.length))
    finally:
        progress.close()
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        from slam.cli.text_tables import live_rows, render

        print(render(live_rows(found)))
    if found.interrupted:
        return INTERRUPTED
    if found.reason:
        complain(f"these are times of a run that is not usable: {found.reason}")
        return UNUSABLE
    return 0


def _show_frames(progress: TaskProgress, count: int | None, done: int) -> None:
    progress("frames", done, count)


def _bench_ablation(config: SlamConfig, opened: Callable[[], FrameSource], as_json: bool) -> int:
    from slam.bench.ablation import PARTS, measure_parts

    def announce(part: Variant, number: int, of: int) -> None:
        changed = " ".join(f"--set {setting}" for setting in part.settings)
        say(f"run {number} of {of}: {part.name}" + (f" ({changed})" if changed else ""))

    rows = measure_parts(config, opened, on_run=announce)
    if as_json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
    elif rows:
        from slam.cli.text_tables import part_rows, render

        print(render(part_rows(rows)))
    if len([row for row in rows if row.wall_s is not None]) < 1 + len(PARTS):
        return INTERRUPTED
    if rows[0].reason:
        complain(f"the whole system's own result is not usable: {rows[0].reason}")
        return UNUSABLE
    return 0


def _bench_perturbed(config: SlamConfig, opened: Callable[[int], FrameSource], count: int, as_json: bool) -> int:
    from slam.bench.perturbation import measure_perturbed, spreads

    def announce(name: str, number: int, of: int) -> None:
        say(f"run {number} of {of}: {name}")

    rows = measure_perturbed(config, opened, count, on_run=announce)
    found = spreads(rows)
    if as_json:
        spread_values = {figure: asdict(spread) for figure, spread in found.items()}
        print(json.dumps({"runs": [row.to_dict() for row in rows], "spread": spread_values}, indent=2))
    elif rows:
        from slam.cli.text_tables import perturbed_rows, render, spread_rows

        print(render(perturbed_rows(rows)), render(spread_rows(found)), sep="\n\n")
    if len(rows) < 1 + count:
        return INTERRUPTED
    if rows[0].reason:
        complain(f"the result of the unchanged images is not usable: {rows[0].reason}")
        return UNUSABLE
    return 0


def _bench_network(config: SlamConfig, choice: PredictorChoice, repeats: int, as_json: bool) -> None:
    if choice.kind == "geometric":
        raise ConfigError(
            "bench: nothing to measure; give a SOURCE, or --predictor reloc3r-224 or reloc3r-512 for the network alone"
        )
    from slam.bench.cost import measure_predictor

    say(f"predictor: {choice.kind} ({choice.reason})")
    say(f"measuring {repeats} times (all ways on two CPU cores: 20 s each for 224, 90 s for 512)")
    times = measure_predictor(config, repeats=repeats)
    if as_json:
        print(json.dumps(times, indent=2))
        return
    from slam.cli.text_tables import network_facts, network_rows, render

    print(render(network_facts(times)), render(network_rows(times)), sep="\n\n")


def _bench_training(config: SlamConfig, choice: PredictorChoice, source: str | None, steps: int, as_json: bool) -> None:
    if choice.kind == "geometric":
        raise ConfigError("bench: --training needs --predictor reloc3r-224 or reloc3r-512")
    from slam.bench.cost import measure_training_speed

    say(f"predictor: {choice.kind} ({choice.reason})")
    say(f"measuring {steps} steps of each way of training (about four minutes for 224 on two CPU cores)")
    found = measure_training_speed(config, source, steps=steps)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from slam.cli.text_tables import render, training_rows

    print(render(training_rows(found)))

"""The `slam` command: arguments to calls, nothing else. The only file that prints and exits.

Heavy libraries are imported inside the verbs, so that `slam --help` answers at once.

Exit codes: 0 good; 1 the run went through but its result is not usable; 2 something the user can fix, said in
one line; 130 interrupted by Ctrl-C, with a readable run folder. A traceback means a bug.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from relocalizer.errors import ConfigError, OutputError, TrajectoryError, UserError, WeightsError

if TYPE_CHECKING:
    from slam.config import SlamConfig
    from slam.events import Observer
    from slam.pipeline import PredictorChoice, RunOutcome, RunStatistics
    from slam.rerun_viewer import RerunViewer
    from slam.results import RunFolder
    from slam.sequence import FrameSource

UNUSABLE, USER_ERROR, INTERRUPTED = 1, 2, 130

Predictor = Literal["auto", "reloc3r-512", "reloc3r-224", "geometric"]
View = Literal["none", "spawn", "web"]
Format = Literal["tum", "kitti", "euroc"]

app = typer.Typer(
    name="slam",
    help="Monocular visual SLAM: a video in; a trajectory, a map and a recording of what happened out.\n\n"
    "Start with: slam run VIDEO_OR_FOLDER",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFiles = Annotated[
    list[Path],
    typer.Option("-c", "--config", help="YAML file with settings; may be repeated, later files win."),
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="One setting; may be repeated, wins over files."),
]
PredictorName = Annotated[
    Predictor | None,
    typer.Option("--predictor", help="Who estimates the pose of a pair. Default: auto.", show_default=False),
]
Weights = Annotated[
    str | None, typer.Option("--weights", help="Reloc3r checkpoint: a folder, a file or a Hugging Face id.")
]
RandomWeights = Annotated[
    bool,
    typer.Option("--random-weights", help="Reloc3r without trained weights: real cost, poses that mean nothing."),
]
CameraFile = Annotated[Path | None, typer.Option("--camera", help="camera.yaml with the intrinsics of these pictures.")]
Stride = Annotated[int, typer.Option("--stride", min=1, help="Use every N-th frame.")]
Start = Annotated[int, typer.Option("--start", min=0, help="Skip this many frames at the beginning.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random choice.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. `arguments` default to those of the process."""
    try:
        code = app(args=arguments, prog_name="slam", standalone_mode=False)
        sys.stdout.flush()
    except UserError as error:
        _complain(str(error))
        code = USER_ERROR
    except typer.TyperException as error:
        code = _usage_error(error)
    except KeyboardInterrupt:
        _complain("interrupted")
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as in `slam config | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = UNUSABLE
    sys.exit(code or 0)


def _usage_error(error: typer.TyperException) -> int:
    message = error.format_message()
    if "\n" in message:  # the help text, shown because there were no arguments
        print(message)
    else:
        _complain(f"{message} (slam --help shows what there is)")
    return USER_ERROR


def _complain(message: str) -> None:
    _say("slam: " + " ".join(message.split()))


def _say(line: str) -> None:
    """To the person at the terminal; results alone go to standard output."""
    print(line, file=sys.stderr, flush=True)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from slam import __version__

        print(f"reloc3r-slam {__version__}")
        raise typer.Exit


@dataclass(frozen=True, slots=True, kw_only=True)
class _RunRequest:
    """What `slam run` was asked for."""

    source: str
    out: Path | None
    camera: Path | None
    view: View
    wait: bool
    record: Path | None
    start: int
    stride: int
    max_frames: int | None
    quiet: bool
    as_json: bool

    def say(self, line: str) -> None:
        if not self.quiet:
            _say(line)


@app.command()
def run(
    source: Annotated[
        str,
        typer.Argument(help="Folder of pictures, data set, video file, webcam:0, rtsp://... or http://..."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Run folder to make. Default: runs/NAME-N, the first free N."),
    ] = None,
    config: ConfigFiles = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006
    predictor: PredictorName = None,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    camera: CameraFile = None,
    view: Annotated[
        View,
        typer.Option(help="Watch live: spawn opens the Rerun viewer; web serves a page, after the run until Ctrl-C."),
    ] = "none",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="With --view web: end with the run, and the page with it.")
    ] = False,
    record: Annotated[Path | None, typer.Option(help="Write a Rerun recording (.rrd) to look at later.")] = None,
    max_frames: Annotated[int | None, typer.Option(min=2, help="Stop after this many frames.")] = None,
    stride: Stride = 1,
    start: Start = 0,
    seed: Seed = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run SLAM on a video or a folder of pictures; write a run folder.

    Examples:

      slam run room.mp4

      slam run pictures/ --camera camera.yaml --record room.rrd

      slam run rgbd_dataset_freiburg2_desk --view spawn -o runs/desk

      slam run webcam:0 --view web --set features.max_features=800

    Ctrl-C ends a run after the frame at hand, and what was made until then is kept (exit code 130).
    """
    request = _RunRequest(
        source=source, out=out, camera=camera, view=view, wait=not no_wait, record=record,
        start=start, stride=stride, max_frames=max_frames, quiet=quiet, as_json=as_json,
    )  # fmt: skip
    flags = _flags(predictor=predictor, weights=weights, random_weights=random_weights, seed=seed)

    from slam.settings import load_config

    raise typer.Exit(_run(request, load_config(config, [*overrides, *flags])))


def _flags(*, predictor: Predictor | None, weights: str | None, random_weights: bool, seed: int | None) -> list[str]:
    """Options that are settings, as overrides; they win over --set."""
    flags = [f"predictor.kind={predictor}"] if predictor else []
    flags += [f"predictor.weights={json.dumps(weights)}"] if weights else []
    flags += ["predictor.random_weights=true"] if random_weights else []
    return flags + ([f"seed={seed}"] if seed is not None else [])


def _run(request: _RunRequest, config: SlamConfig) -> int:
    """The run itself; gives the exit code."""
    from slam.pipeline import choose_predictor, with_predictor
    from slam.results import RunFolder, next_run_folder, opening_report
    from slam.sequence import open_source
    from slam.settings import dump_config

    _check_files(request)
    choice = choose_predictor(config)
    config = with_predictor(config, choice.kind)
    frames = open_source(
        request.source, config=config.input, camera=request.camera, start=request.start,
        stride=request.stride, max_frames=request.max_frames,
    )  # fmt: skip
    _introduce(request.say, config, frames, choice)
    with ExitStack() as on_the_way_out:
        on_the_way_out.callback(frames.close)
        folder = RunFolder.create(request.out or next_run_folder(Path("runs"), frames.name))
        folder.write_config(dump_config(config))
        report = opening_report(config, frames, choice)
        folder.write_report(report)
        request.say(f"writing {folder.path}")
        return _run_into(folder, report, request, config, frames)


def _check_files(request: _RunRequest) -> None:
    """What can be refused before anything is read or made."""
    if request.record is not None:
        if request.record.suffix != ".rrd":
            raise OutputError(f"--record {request.record}: a recording's name ends in .rrd")
        if request.record.exists():
            raise OutputError(f"--record {request.record}: is there already; choose another name or remove it")


def _introduce(say: Callable[[str], None], config: SlamConfig, frames: FrameSource, choice: PredictorChoice) -> None:
    from slam.pipeline import RANDOM_WEIGHTS

    say(frames.description)
    say(f"predictor: {choice.kind} ({choice.reason})")
    if config.predictor.random_weights:
        say(f"WARNING: {RANDOM_WEIGHTS}")


def _run_into(
    folder: RunFolder, report: dict[str, Any], request: _RunRequest, config: SlamConfig, frames: FrameSource
) -> int:
    from slam import pipeline, results

    statistics = pipeline.RunStatistics()
    with ExitStack() as viewing:
        with ExitStack() as on_the_way_out:
            log = results.EventLog(folder)
            on_the_way_out.callback(log.close)
            try:
                viewer = _viewer(request, frames, viewing)
                observers: list[Observer] = [statistics, log, results.Checkpoints(folder, report)]
                observers += [viewer] if viewer else []
                slam = pipeline.build(config, observers=observers)
                outcome = _run_with_progress(request, frames, slam, statistics, observers)
                folder.write_result(outcome.result)
            except BaseException as error:  # raised again: the folder alone must not claim that the run goes on
                _mark_failed(folder, report, error)
                raise
        closed = results.closing_report(report, outcome, statistics, evaluation=_evaluate_run(frames, outcome))
        folder.write_report(closed)
        page = viewer.url if viewer and request.wait and not (outcome.interrupted or viewer.problem) else ""
        if not page:
            viewing.close()  # so that a recording is whole before anything is said of it
        _summarise(request, folder, closed)
        code = _verdict(closed)
        if page:
            _say(f"the run is shown at {page} until Ctrl-C")
            pipeline.wait_until_told()
    return code


def _verdict(report: dict[str, Any]) -> int:
    """The exit code of a run that came to its end, and why when there is a why."""
    if report["status"] == "interrupted":
        return INTERRUPTED
    if report["reason"]:
        _complain(f"the result is not usable: {report['reason']}")
        return UNUSABLE
    return 0


def _viewer(request: _RunRequest, frames: FrameSource, viewing: ExitStack) -> RerunViewer | None:
    if request.view == "none" and request.record is None:
        return None
    from slam.rerun_viewer import RerunViewer

    viewer = RerunViewer(
        record=request.record, view=request.view, ground_truth=frames.ground_truth, title=frames.name,
        camera=frames.camera,
    )  # fmt: skip
    viewing.callback(viewer.close)
    if viewer.url:
        request.say(f"watch at {viewer.url}")
    return viewer


def _run_with_progress(
    request: _RunRequest,
    frames: FrameSource,
    slam: Any,
    statistics: RunStatistics,
    observers: Sequence[Observer],
) -> RunOutcome:
    from slam import console, pipeline

    progress: console.ProgressView | None = None
    if not request.quiet:
        if sys.stderr.isatty():
            progress = console.ProgressBar(sys.stderr, statistics, frames.length)
        else:
            progress = console.ProgressLines(_say, statistics, frames.length)
    try:
        return pipeline.run(frames, slam, observers=observers, on_progress=progress)
    finally:
        if progress is not None:
            progress.close()


def _mark_failed(folder: RunFolder, report: dict[str, Any], error: BaseException) -> None:
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    reason = " ".join(str(error).split()) or type(error).__name__
    try:
        folder.write_report({**report, "status": status, "reason": reason})
    except OutputError as refused:
        _complain(str(refused))  # the disk that failed the run may refuse this too; the error itself comes next


def _evaluate_run(frames: FrameSource, outcome: RunOutcome) -> dict[str, Any] | None:
    if frames.ground_truth is None or not len(outcome.result.trajectory):
        return None
    from slam.evaluate import evaluate

    try:
        return evaluate(outcome.result.trajectory, frames.ground_truth, expected=outcome.expected_ns).to_dict()
    except TrajectoryError as error:  # the run is good without it
        return {"error": str(error)}


def _summarise(request: _RunRequest, folder: RunFolder, report: dict[str, Any]) -> None:
    if request.as_json:
        print((folder.path / "report.json").read_text(encoding="utf-8"), end="", flush=True)
        return
    if request.quiet:
        return
    from slam.console import render, summary_rows

    print(render(summary_rows(report), title=str(folder.path)))
    if request.record is not None:
        viewer = "rerun" if shutil.which("rerun") else Path(sys.executable).with_name("rerun")
        print(f"\nnext: {viewer} {request.record}")
    elif report["usable"] and report["evaluation"] is None:
        print(f"\nnext: slam eval {folder.path} GROUNDTRUTH --plot {folder.path / 'errors.png'}")
    else:
        print(f"\nnext: slam run {request.source} --record {folder.path.name}.rrd")


@app.command()
def bench(
    source: Annotated[
        str | None,
        typer.Argument(help="What `slam run` takes. Left out: the Reloc3r network is measured alone."),
    ] = None,
    config: ConfigFiles = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006
    predictor: PredictorName = None,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    camera: CameraFile = None,
    max_frames: Annotated[int, typer.Option(min=2, help="Measure this many frames at most.")] = 200,
    stride: Stride = 1,
    start: Start = 0,
    seed: Seed = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Of the network alone: every figure is the median of so many.")
    ] = 3,
    as_json: AsJson = False,
) -> None:
    """Measure a run by stage (median, 95th percentile), its speed and memory; no run folder is made.

    Examples:

      slam bench sequences/room_loop

      slam bench room.mp4 -c configs/fast.yaml --max-frames 500 --json

      slam bench --predictor reloc3r-224 --random-weights

    The last one measures the network alone, beside a naive use of it; random weights cost what trained ones do.
    """
    flags = _flags(predictor=predictor, weights=weights, random_weights=random_weights, seed=seed)

    from slam.pipeline import choose_predictor, with_predictor
    from slam.sequence import open_source
    from slam.settings import load_config

    settings = load_config(config, [*overrides, *flags])
    choice = choose_predictor(settings)
    settings = with_predictor(settings, choice.kind)
    if source is None:
        _bench_network(settings, choice, repeats, as_json)
        return
    frames = open_source(
        source, config=settings.input, camera=camera, start=start, stride=stride, max_frames=max_frames
    )
    with ExitStack() as on_the_way_out:
        on_the_way_out.callback(frames.close)
        _introduce(_say, settings, frames, choice)
        raise typer.Exit(_bench_run(settings, frames, max_frames, as_json))


def _bench_run(config: SlamConfig, frames: FrameSource, max_frames: int, as_json: bool) -> int:
    from slam.bench import measure_run

    _say(f"measuring {min(max_frames, frames.length or max_frames)} frames")
    cost = measure_run(config, frames)
    if as_json:
        print(json.dumps(cost.to_dict(), indent=2))
    else:
        from slam.console import bench_rows, render, stage_rows

        print(render(bench_rows(cost)), render(stage_rows(cost.stages)), sep="\n\n")
    if cost.interrupted:
        return INTERRUPTED
    if cost.reason:
        _complain(f"these are times of a run that is not usable: {cost.reason}")
        return UNUSABLE
    return 0


def _bench_network(config: SlamConfig, choice: PredictorChoice, repeats: int, as_json: bool) -> None:
    if choice.kind == "geometric":
        raise ConfigError(
            "bench: nothing to measure; give a SOURCE, or --predictor reloc3r-224 or reloc3r-512 for the network alone"
        )
    from slam.bench import measure_predictor

    _say(f"measuring {choice.kind}, {repeats} times (on two CPU cores: 20 s each for 224, 60 s for 512)")
    times = measure_predictor(config, repeats=repeats)
    if as_json:
        print(json.dumps(times, indent=2))
        return
    from slam.console import network_facts, network_rows, render

    print(render(network_facts(times)), render(network_rows(times)), sep="\n\n")


@app.command("eval")
def evaluate_command(
    estimate: Annotated[Path, typer.Argument(help="Run folder, or a trajectory file (TUM, KITTI, EuRoC).")],
    ground_truth: Annotated[Path, typer.Argument(help="Trajectory file with the truth.")],
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option(help="Draw paths and errors into a .png, .pdf or .svg.")] = None,
    max_ate: Annotated[
        float | None, typer.Option(min=0, help="Exit with 1 when the ATE (Sim(3), RMSE) is larger.")
    ] = None,
    max_difference: Annotated[
        float, typer.Option(min=0, help="Stamps further apart than this do not belong together, seconds.")
    ] = 0.02,
) -> None:
    """Compare a trajectory with the truth: ATE under Sim(3) and SE(3), RPE, coverage.

    Examples:

      slam eval runs/desk-1 groundtruth.txt

      slam eval trajectory.txt groundtruth.txt --plot errors.png --max-ate 0.05
    """
    from slam.evaluate import evaluate, plot_evaluation
    from slam.trajectory import read_trajectory

    path = estimate / "trajectory.txt" if estimate.is_dir() else estimate
    result = evaluate(read_trajectory(path), read_trajectory(ground_truth), max_difference_s=max_difference)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        from slam.console import evaluation_rows, render

        print(result.title)
        print(render(evaluation_rows(result.to_dict())))
    if plot is not None:
        plot_evaluation(result, plot)
        _say(f"wrote {plot}")
    if max_ate is not None and result.ate_sim3.rmse > max_ate:
        _complain(f"the ATE of {result.ate_sim3.rmse:.4f} is above --max-ate {max_ate:g}")
        raise typer.Exit(UNUSABLE)


@app.command("config")
def config_command(
    config: ConfigFiles = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference page of all settings.")] = False,
) -> None:
    """Print the effective settings, commented; the output is itself a file for --config.

    Examples:

      slam config > mine.yaml

      slam config -c configs/fast.yaml --set seed=3
    """
    from slam.settings import configuration_page, dump_config, load_config

    settings = load_config(config, overrides)
    print(configuration_page() if markdown else dump_config(settings), end="")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Trajectory file, or a run folder.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to make: .txt or .tum, .kitti, .csv (EuRoC).")],
    from_format: Annotated[
        Format | None,
        typer.Option("--from", help="Format of IN. Default: by its first line.", show_default=False),
    ] = None,
    to_format: Annotated[
        Format | None, typer.Option("--to", help="Format of OUT. Default: by its suffix.", show_default=False)
    ] = None,
) -> None:
    """Convert a trajectory between TUM, KITTI and EuRoC.

    Examples:

      slam convert runs/desk-1 desk.kitti

      slam convert state_groundtruth.csv groundtruth.txt
    """
    from slam.trajectory import read_trajectory, write_trajectory

    if target.exists():
        raise OutputError(f"{target}: is there already; choose another name or remove it")
    path = source / "trajectory.txt" if source.is_dir() else source
    trajectory = read_trajectory(path, from_format)
    write_trajectory(target, trajectory, to_format)
    _say(f"wrote {target}: {trajectory}")


weights_app = typer.Typer(
    help="Reloc3r's published weights: find, verify, fetch, export. They are not part of this project.\n\n"
    "Examples:\n\n  slam weights where\n\n  slam weights fetch reloc3r-512",
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.add_typer(weights_app, name="weights")

WeightsSource = Annotated[
    str, typer.Argument(metavar="SOURCE", help="reloc3r-512, reloc3r-224, a Hugging Face id, a folder or a file.")
]


@weights_app.command("where")
def weights_where(
    source: Annotated[
        str | None, typer.Argument(metavar="[SOURCE]", help="As for verify. Default: both published ones.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say where weights are on this machine, their size and their licence. Nothing is fetched.

    Example:

      slam weights where
    """
    from relocalizer.checkpoints import RELEASED, cache_folder, locate

    found = {name: locate(name) for name in ([source] if source else RELEASED)}
    paths = {name: str(checkpoint.weights) if checkpoint else None for name, checkpoint in found.items()}
    if as_json:
        entries = {name: {"path": path, "terms": _terms(name)} for name, path in paths.items()}
        print(json.dumps({"cache": str(cache_folder()), "weights": entries}, indent=2))
        return
    print(f"cache: {cache_folder()}")  # whole lines: a table would fold long paths
    for name, path in paths.items():
        terms = f" ({_terms(name)})" if _terms(name) else ""
        print(f"{name}{terms}: {path or f'not here; slam weights fetch {name}'}")


def _terms(source: str) -> str:
    """Size and licence of published weights; empty for a file of somebody else's."""
    from relocalizer.checkpoints import RELEASED

    return next((r.terms for r in RELEASED.values() if source in (r.name, r.hub_id)), "")


@weights_app.command("verify")
def weights_verify(source: WeightsSource, as_json: AsJson = False) -> None:
    """Read weights that are here through: hash, every tensor's name and size, no infinities. Takes seconds.

    Examples:

      slam weights verify reloc3r-512

      slam weights verify ./my_checkpoint
    """
    from relocalizer.checkpoints import locate

    if locate(source) is None:
        raise WeightsError(f"weights: {source} is not on this machine; slam weights fetch {source}")
    _say(f"reading {source} through")
    from relocalizer.network.weights import verify

    report = verify(source)
    if as_json:
        print(json.dumps({"path": str(report.path), "size_bytes": report.size_bytes, "sha256": report.sha256,
                          "tensors": report.tensors, "parameters": report.parameters,
                          "img_size": report.architecture.img_size}, indent=2))  # fmt: skip
    else:
        print(f"good: {report}")


@weights_app.command("fetch")
def weights_fetch(source: WeightsSource) -> None:
    """Bring published weights into the Hugging Face cache; size and licence are said first.

    Example:

      slam weights fetch reloc3r-512
    """
    from relocalizer.checkpoints import fetch, locate

    was_here = locate(source) is not None
    checkpoint = fetch(source, announce=_say)
    _say("it was here already" if was_here else f"fetched; next: slam weights verify {source}")
    print(checkpoint.weights)


@weights_app.command("export")
def weights_export(
    source: WeightsSource,
    format: Annotated[str, typer.Option("--format", metavar="onnx|openvino", help="Format of the files.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder they go to.")],
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Pictures. Default: 224x224 or 512x384.")
    ] = None,
) -> None:
    """Write Reloc3r's encoder and decoder for machines without PyTorch, and check them against it. Takes a minute or
    two, and as much disk as the weights.

    Examples:

      slam weights export reloc3r-512 --format onnx --out exported

      slam weights export reloc3r-512 --format openvino --out exported --size 512x288
    """
    from relocalizer.network.export import export_checkpoint

    report = export_checkpoint(source, out, format=format, size=_size(size) if size else None, announce=_say)
    for check in report.checks:
        _say(f"against PyTorch, {check}")
    for path in report.files:
        print(path)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ConfigError(f"--size: expected width x height such as 512x384, got {text}")
    return int(width), int(height)


@app.command()
def doctor(
    hash_weights: Annotated[
        bool, typer.Option("--hash", help="Read cached weights through and compare their hash; takes seconds.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check what is installed and usable; each line is ok or says how to fix it.

    Example:

      slam doctor
    """
    from slam.doctor import examine

    checks = examine(hash_weights=hash_weights)
    if as_json:
        print(json.dumps([check.to_dict() for check in checks], indent=2))
    else:
        from slam.console import render

        print(render([(check.name, "ok" if check.ok else check.severity, check.finding) for check in checks]))
        for check in checks:
            if check.fix:
                print(f"{check.name}: {check.fix}")
    if any(not check.ok and check.needed for check in checks):
        raise typer.Exit(UNUSABLE)

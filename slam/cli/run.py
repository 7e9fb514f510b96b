"""`slam run`: frames in, run folder out."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relocalizer.errors import MapError, OutputError, TrajectoryError
from slam.cli.options import (
    INTERRUPTED,
    UNUSABLE,
    AsJson,
    CameraFile,
    ConfigFiles,
    MaskImage,
    Overrides,
    PredictorName,
    RandomWeights,
    Refine,
    ScaleFrom,
    Seed,
    Start,
    Stride,
    View,
    Weights,
    complain,
    expect_new,
    flags_of,
    introduce,
    say,
)

if TYPE_CHECKING:
    from relocalizer.reference_map import ReferenceMap
    from slam.config import SlamConfig
    from slam.events import Observer
    from slam.pipeline import RunOutcome, RunStatistics
    from slam.rerun_viewer import RerunViewer
    from slam.results import KeyframePictures, RunFolder
    from slam.sequence import FrameSource


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
    map: Path | None
    localize_only: bool

    def say(self, line: str) -> None:
        if not self.quiet:
            say(line)


def run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Folder of pictures, data set, video file, webcam:0, rtsp://... or http://..."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DIR", help="Run folder to make. Default: runs/NAME-N, the first free N."),
    ] = None,
    config: ConfigFiles = [],  # noqa: B006 - typer copies it
    overrides: Overrides = [],  # noqa: B006
    predictor: PredictorName = None,
    weights: Weights = None,
    random_weights: RandomWeights = False,
    camera: CameraFile = None,
    mask: MaskImage = None,
    view: Annotated[
        View,
        typer.Option(help="Watch live: spawn opens the Rerun viewer; web serves a page, after the run until Ctrl-C."),
    ] = "none",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="With --view web: end with the run, and the page with it.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a Rerun recording (.rrd) to look at later.")
    ] = None,
    max_frames: Annotated[int | None, typer.Option(metavar="N", min=2, help="Stop after this many frames.")] = None,
    stride: Stride = 1,
    start: Start = 0,
    seed: Seed = None,
    refine: Refine = None,
    scale_from: ScaleFrom = None,
    map: Annotated[
        Path | None,
        typer.Option(
            "--map",
            metavar="DIR",
            help="Go on in this map (a map or a run folder); poses are in its frame, it is not changed. "
            "Pictures that nobody names a camera of are taken to be of the map's.",
        ),
    ] = None,
    localize_only: Annotated[
        bool, typer.Option("--localize-only", help="With --map: find the frames in the map and map nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run SLAM on a video or a folder of pictures; write a run folder.

    Examples:

      slam run room.mp4

      slam run pictures/ --camera camera.yaml --record room.rrd

      slam run rgbd_dataset_freiburg2_desk --view spawn -o runs/desk

      slam run webcam:0 --view web --set features.max_features=800

      slam run room.mp4 --scale-from frames:120:480=2.35

      slam run second_visit.mp4 --map runs/first_visit

    Ctrl-C ends a run after the frame at hand, and what was made until then is kept (exit code 130).
    """
    request = _RunRequest(
        source=source, out=out, camera=camera, view=view, wait=not no_wait, record=record,
        start=start, stride=stride, max_frames=max_frames, quiet=quiet, as_json=as_json,
        map=map, localize_only=localize_only,
    )  # fmt: skip
    flags = flags_of(
        predictor=predictor, weights=weights, random_weights=random_weights, seed=seed, scale_from=scale_from,
        refine=refine, mask=mask,
    )  # fmt: skip

    from slam.settings import load_config

    raise typer.Exit(_run(request, load_config(config, [*overrides, *flags])))


def _run(request: _RunRequest, config: SlamConfig) -> int:
    """The run itself; gives the exit code."""
    from slam import pipeline
    from slam.anchor import parse_anchor
    from slam.mask import masked_share
    from slam.pipeline import choose_predictor, with_predictor, with_predictor_of
    from slam.results import RunFolder, next_run_folder, opening_report
    from slam.sequence import open_source
    from slam.settings import dump_config

    _check_files(request)
    start_map = _start_map(request)
    anchor = parse_anchor(config.anchor.scale_from)
    if start_map is not None:
        config = with_predictor_of(start_map.provenance, config)
    choice = choose_predictor(config)
    if start_map is not None:
        choice = replace(choice, reason="the map's")
    config, choice = pipeline.with_computation(with_predictor(config, choice.kind), choice)
    frames = open_source(
        request.source, config=config.input, camera=request.camera,
        map_cameras=start_map.cameras if start_map is not None else (),
        start=request.start, stride=request.stride, max_frames=request.max_frames,
    )  # fmt: skip
    introduce(request.say, config, frames, choice)
    if anchor is not None:
        anchor.expect(frames.ground_truth)
        request.say(f"scale: {anchor.source}")
    with ExitStack() as on_the_way_out:
        on_the_way_out.callback(frames.close)
        folder = RunFolder.create(request.out or next_run_folder(Path("runs"), frames.name))
        folder.write_config(dump_config(config))
        report = {**opening_report(config, frames, choice), "map": _map_report(request)}
        report["masked_share"] = masked_share(frames.mask)
        folder.write_report(report)
        request.say(f"writing {folder.path}")
        return _run_into(folder, report, request, config, frames, start_map)


def _start_map(request: _RunRequest) -> ReferenceMap | None:
    if request.map is None:
        if request.localize_only:
            raise MapError("--localize-only: in which map? add --map DIR, a map or a run folder")
        return None
    from relocalizer.map_folder import load_map

    start_map = load_map(request.map)
    request.say(f"map: {request.map}: {len(start_map.keyframes)} keyframes, {len(start_map.landmarks)} landmarks")
    return start_map


def _map_report(request: _RunRequest, *, found_at_frame: int = -1, poses_in_map: bool = False) -> dict[str, Any]:
    """What report.json says of the map the run began in."""
    return {
        "from": str(request.map or ""),
        "localize_only": request.localize_only,
        "found_at_frame": found_at_frame,
        "poses_in_map": poses_in_map,
    }


def _check_files(request: _RunRequest) -> None:
    """What can be refused before anything is read or made."""
    if request.record is not None:
        if request.record.suffix != ".rrd":
            raise OutputError(f"--record {request.record}: a recording's name ends in .rrd")
        expect_new(request.record, option="--record", makes_folders=request.record.parent == request.out)


def _run_into(
    folder: RunFolder,
    report: dict[str, Any],
    request: _RunRequest,
    config: SlamConfig,
    frames: FrameSource,
    start_map: ReferenceMap | None,
) -> int:
    from slam import pipeline, results
    from slam.saved_map import lies_in

    statistics = pipeline.RunStatistics(start_map=str(request.map or ""))
    with ExitStack() as viewing:
        with ExitStack() as on_the_way_out:
            log = results.EventLog(folder)
            on_the_way_out.callback(log.close)
            try:
                viewer = _viewer(request, frames, viewing)
                pictures = results.KeyframePictures(folder)
                on_the_way_out.callback(pictures.close)
                observers: list[Observer] = [statistics, log, results.Checkpoints(folder, report), pictures]
                observers += [viewer] if viewer else []
                slam = pipeline.build(
                    config, observers=observers, start_map=start_map, localize_only=request.localize_only,
                    mask=frames.mask,
                )  # fmt: skip
                outcome = _run_with_progress(request, frames, slam, statistics, observers)
                outcome = pipeline.anchored(outcome, config.anchor.scale_from, frames.ground_truth, observers=observers)
                folder.write_result(outcome.result, frames.calibration)
                if not request.localize_only:
                    _write_map(folder, slam, outcome, pictures)
            except BaseException as error:  # raised again: the folder alone must not claim that the run goes on
                _mark_failed(folder, report, error)
                raise
        closed = results.closing_report(report, outcome, statistics, evaluation=_evaluate_run(frames, outcome))
        joined = start_map is not None and lies_in(outcome.result, start_map.keyframes.ids.tolist())
        closed["map"] = _map_report(request, found_at_frame=statistics.found_in_map, poses_in_map=joined)
        folder.write_report(closed)
        page = viewer.url if viewer and request.wait and not (outcome.interrupted or viewer.problem) else ""
        if not page:
            viewing.close()  # so that a recording is whole before anything is said of it
        _summarise(request, folder, closed)
        code = _verdict(closed)
        if page:
            say(f"the run is shown at {page} until Ctrl-C")
            pipeline.wait_until_told()
    return code


def _write_map(folder: RunFolder, slam: Any, outcome: RunOutcome, pictures: KeyframePictures) -> None:
    from slam.saved_map import in_units_of

    saved = slam.saved_map(pictures.straightened(outcome.result.lens))
    if len(saved.keyframes):
        folder.write_map(in_units_of(outcome.result, saved))


def _verdict(report: dict[str, Any]) -> int:
    """The exit code of a run that came to its end, and why when there is a why."""
    if report["units"]["problem"]:
        complain(f"lengths are map units, not metres: {report['units']['problem']}")
    if report["status"] == "interrupted":
        return INTERRUPTED
    if report["reason"]:
        complain(f"the result is not usable: {report['reason']}")
        return UNUSABLE
    return UNUSABLE if report["units"]["problem"] else 0


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
    from slam import pipeline
    from slam.console import state_line
    from slam.progress import TaskProgress

    if request.quiet:
        return pipeline.run(frames, slam, observers=observers)
    progress, started = TaskProgress(sys.stderr), time.monotonic()

    def tell(count: int) -> None:
        progress("frames", count, frames.length, state_line(statistics, count, time.monotonic() - started))

    try:
        return pipeline.run(frames, slam, observers=observers, on_progress=tell, on_finishing=progress)
    finally:
        progress.close()


def _mark_failed(folder: RunFolder, report: dict[str, Any], error: BaseException) -> None:
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    reason = " ".join(str(error).split()) or type(error).__name__
    try:
        folder.write_report({**report, "status": status, "reason": reason})
    except OutputError as refused:
        complain(str(refused))  # the disk that failed the run may refuse this too; the error itself comes next


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
    elif report["usable"]:
        print(f"\nnext: slam view {folder.path}")
    else:  # a recording shows every picture, and where the map could not begin or went wrong
        in_map = f" --map {request.map}" if request.map else ""
        only = " --localize-only" if request.localize_only else ""
        print(f"\nnext: slam run {request.source}{in_map}{only} --record {folder.path.name}.rrd")

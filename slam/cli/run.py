"""`slam run`: SLAM on a source, recorded in a run folder."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from relocalizer.errors import MapError, OutputError
from slam.cli.garbage import collect_as_usual
from slam.cli.options import (
    INTERRUPTED,
    UNUSABLE,
    AsJson,
    CameraFile,
    ConfigFiles,
    MaskImage,
    Overrides,
    Photos,
    PredictorName,
    Preset,
    RandomWeights,
    Refine,
    ScaleFrom,
    Seed,
    Start,
    Stride,
    Topic,
    View,
    Weights,
    complain,
    expect_new,
    flags_of,
    introduce,
    load_settings,
    say,
)
from slam.cli.run_arguments import RunArguments
from slam.cli.run_summary import report_failures, summarize
from slam.evaluation.verdict import Grade

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from relocalizer.maps.reference_map import ReferenceMap
    from slam.config.schema import SlamConfig
    from slam.events import Observer
    from slam.input.frame_source import FrameSource
    from slam.run.calibration_pass import CalibrationPass
    from slam.run.recorded_run import RunReport
    from slam.run.two_pass_recorder import TwoPassRecorder
    from slam.viz.rerun_viewer import RerunViewer


def run(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Folder of images, dataset, video file, webcam:0, rtsp://..., http://..., or 'patterns*.jpg'.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="DIR", help="Run folder to create. Default: runs/NAME-N with the first free N."
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
    topic: Topic = None,
    photos: Photos = False,
    view: View = "none",
    one_pass: Annotated[
        bool,
        typer.Option("--one-pass", help="Track the frames once, also when the run finds another camera."),
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="With --view web: exit at the end of the run.")] = False,
    record: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Rerun recording (.rrd).")] = None,
    max_frames: Annotated[int | None, typer.Option(metavar="N", min=2, help="Maximum number of frames.")] = None,
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
            help="Continue in this map (a map or a run folder), which is not modified; poses are in its frame. "
            "Images without a known camera get the map's.",
        ),
    ] = None,
    localize_only: Annotated[
        bool, typer.Option("--localize-only", help="With --map: localize the frames in the map without mapping.")
    ] = False,
    fail_under: Annotated[
        Literal["good", "partial", "poor"],
        typer.Option("--fail-under", help="Exit with code 1 if the verdict of the run is worse than this."),
    ] = "partial",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run SLAM on a video or a folder of images, and write a run folder.

    Examples:

      slam run room.mp4

      slam run images/ --camera camera.yaml --record room.rrd

      slam run rgbd_dataset_freiburg2_desk --view spawn -o runs/desk

      slam run 'photos/*.jpg' --photos

      slam run recording.bag --topic /camera/image_raw

      slam run webcam:0 --view web --set features.max_features=800

      slam run room.mp4 --scale-from frames:120:480=2.35

      slam run second_visit.mp4 --map runs/first_visit

    Ctrl-C ends a run after the current frame, and the results so far are saved (exit code 130). The summary begins
    with a verdict (good, partial, poor or failed) and its reasons; the exit code is 1 if it is worse than --fail-under.
    """
    request = RunArguments(
        sources=tuple(source), out=out, camera=camera, view=view, wait=not no_wait, record=record,
        start=start, stride=stride, max_frames=max_frames, quiet=quiet, as_json=as_json,
        map=map, localize_only=localize_only, fail_under=fail_under,
    )  # fmt: skip
    flags = flags_of(
        predictor=predictor, weights=weights, random_weights=random_weights, seed=seed, scale_from=scale_from,
        refine=refine, mask=mask, one_pass=one_pass, topic=topic, photos=photos,
    )  # fmt: skip

    raise typer.Exit(
        _run(request, load_settings(config, overrides, flags, verb="slam run", quiet=quiet, preset=preset))
    )


def _run(request: RunArguments, config: SlamConfig) -> int:
    """Open the source, run, and return the exit code."""
    from slam.components import predictor_choice
    from slam.input.open_source import open_source
    from slam.run.readout_pass import correct_readout
    from slam.run.recorded_run import RunRequest
    from slam.run.run_folder import next_run_folder
    from slam.run.two_pass_recorder import TwoPassRecorder
    from slam.sessions.metric_scale import parse_scale_reference

    _check_files(request)
    start_map = _start_map(request)
    config = _with_depth_of_source(request, config)
    scale_reference = parse_scale_reference(config.metric_scale.scale_from)
    config, choice = predictor_choice.decide(config, start_map.provenance if start_map is not None else None)
    frames = open_source(
        request.sources, config=config.input, camera=request.camera,
        map_cameras=start_map.cameras if start_map is not None else (),
        start=request.start, stride=request.stride, max_frames=request.max_frames,
    )  # fmt: skip
    # A map is continued with the camera that it was built with.
    if start_map is not None:
        frames, calibration = correct_readout(frames, config), None
    else:
        frames, calibration = _calibrated(request, frames, config)
    introduce(request.say, config, frames, choice, calibration)
    if scale_reference is not None:
        scale_reference.expect(frames.ground_truth)
        request.say(f"scale: {scale_reference.source}")
    with ExitStack() as closing:
        closing.callback(frames.close)
        out = request.out or next_run_folder(Path("runs"), frames.name)
        request.say(f"writing {out}")
        run_request = RunRequest(
            frames=frames, config=config, choice=choice, out=out, start_map=start_map, map_name=str(request.map or ""),
            localize_only=request.localize_only, calibration=calibration,
        )  # fmt: skip
        recorder = TwoPassRecorder(run_request, on_second_pass=request.say_second_pass)
        return _record(request, recorder, frames)


def _calibrated(
    request: RunArguments, frames: FrameSource, config: SlamConfig
) -> tuple[FrameSource, CalibrationPass | None]:
    """The source with the camera that its images determine, with progress while those of a live stream are awaited."""
    from slam.progress import TaskProgress, no_progress
    from slam.run.camera_before_run import calibrate_first

    progress = TaskProgress(sys.stderr)
    try:
        return calibrate_first(frames, config, on_progress=no_progress if request.quiet else progress)
    finally:
        progress.close()


def _with_depth_of_source(request: RunArguments, config: SlamConfig) -> SlamConfig:
    """`--scale-from depth` names the data set of the source."""
    if config.metric_scale.scale_from != "depth":
        return config
    scale = config.metric_scale.model_copy(update={"scale_from": f"depth:{request.sources[0]}"})
    return config.model_copy(update={"metric_scale": scale})


def _start_map(request: RunArguments) -> ReferenceMap | None:
    if request.map is None:
        if request.localize_only:
            raise MapError("--localize-only: in which map? add --map DIR, a map or a run folder")
        return None
    from relocalizer.maps.map_reader import load_map

    start_map = load_map(request.map)
    request.say(f"map: {request.map}: {len(start_map.keyframes)} keyframes, {len(start_map.landmarks)} landmarks")
    return start_map


def _check_files(request: RunArguments) -> None:
    """Check the output files and the viewer before anything is read or created."""
    from slam.viz.installation import expect_installed
    from slam.viz.view_mode import ViewKind, ViewMode

    if ViewMode.parse(request.view).kind is not ViewKind.NONE:
        expect_installed("--view")
    if request.record is not None:
        expect_installed("--record")
        if request.record.suffix != ".rrd":
            raise OutputError(f"--record {request.record}: a recording's name ends in .rrd")
        expect_new(request.record, option="--record", makes_folders=request.record.parent == request.out)


def _record(request: RunArguments, recorder: TwoPassRecorder, frames: FrameSource) -> int:
    """Run with the viewer, print the summary, and return the exit code."""
    from slam.run import runner

    collect_as_usual()
    with ExitStack() as viewing:
        viewers: list[RerunViewer] = []

        def observers() -> list[RerunViewer]:
            if viewers:  # the second pass is shown by itself
                viewing.close()
                _keep_recording_of_first_pass(request)
            viewers[:] = _viewers(request, frames, viewing)
            return viewers

        recorded = _with_progress(request, recorder, frames, observers)
        viewer = viewers[0] if viewers else None
        report = recorded.values
        is_shown = viewer and request.wait and not (report["status"] == "interrupted" or viewer.problem)
        page = viewer.url if viewer and is_shown else ""
        if not page:
            viewing.close()  # so that a recording is complete before the summary
        if "frames" in report:
            summarize(request, recorded.folder, report)
        code = _exit_code(request, recorded, recorder.second)
        if page:
            say(f"the run is shown at {page} until Ctrl-C")
            runner.wait_for_stop_signal()
    return code


def _exit_code(request: RunArguments, recorded: RunReport, second: RunReport | None) -> int:
    """The exit code of a recorded run; prints the reason if it is not 0, and why a second pass was not kept."""
    report = recorded.values
    if recorded.failures:
        return report_failures(request, recorded)
    if second is not None and second.folder != recorded.folder:
        complain(f"the second pass was not kept, its files are in {second.folder} ({second.outcome})")
        if second.failures:
            return report_failures(request, second)
        if second.status == "interrupted":
            return INTERRUPTED
    if report["units"]["problem"]:
        complain(f"lengths are map units, not meters: {report['units']['problem']}")
    if report["status"] == "interrupted":
        return INTERRUPTED
    verdict = report["verdict"]
    if Grade(verdict["grade"]).is_below(Grade(request.fail_under)):
        complain(f"the run is {verdict['grade']}: {'; '.join(verdict['reasons'])}")
        return UNUSABLE
    return UNUSABLE if report["units"]["problem"] else 0


def _keep_recording_of_first_pass(request: RunArguments) -> None:
    """Rename the recording of the first pass, so that the second is written under the name that was asked for."""
    if request.record is not None and request.record.exists():
        request.record.replace(request.record.with_suffix(".first_pass.rrd"))


def _viewers(request: RunArguments, frames: FrameSource, viewing: ExitStack) -> list[RerunViewer]:
    """The viewer, if requested by --view or --record."""
    if request.view == "none" and request.record is None:
        return []
    from slam.viz.rerun_viewer import open_if_possible

    viewer = open_if_possible(
        complain, record=request.record, view=request.view, ground_truth=frames.ground_truth, title=frames.name,
        camera=frames.camera,
    )  # fmt: skip
    viewing.callback(viewer.close)
    if viewer.url:
        request.say(f"watch at {viewer.url}")
    return [viewer]


def _with_progress(
    request: RunArguments,
    recorder: TwoPassRecorder,
    frames: FrameSource,
    observers: Callable[[], Sequence[Observer]],
) -> RunReport:
    from slam.cli.text_tables import state_line
    from slam.progress import TaskProgress

    if request.quiet:
        return recorder.run(observers=observers)
    progress, started = TaskProgress(sys.stderr), time.monotonic()

    def show(count: int) -> None:
        progress("frames", count, frames.length, state_line(recorder.statistics, count, time.monotonic() - started))

    try:
        return recorder.run(observers=observers, on_progress=show, on_finishing=progress)
    finally:
        progress.close()

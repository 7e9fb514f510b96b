"""A run recorded in a run folder: all frames through the system, and all result files.

Failures are isolated. After an exception in a frame or in the final refinement the folder contains all results so far;
a file that cannot be written does not affect other files; an observer that fails is dropped. `RunReport.failures`
lists all failures, and report.json contains their tracebacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relocalizer.errors import TrajectoryError
from slam.components.predictor_choice import PredictorChoice
from slam.config.loading import dump_config
from slam.config.schema import SlamConfig
from slam.evaluation.verdict import Finding, Grade, Verdict
from slam.input.live_stream import with_mapping_thread
from slam.input.mask import masked_share
from slam.map.keyframe_images import FolderImages
from slam.photos.photo_limits import expect_photos
from slam.progress import Progress, no_progress
from slam.run import run_verdict, runner
from slam.run.calibration_pass import CalibrationPass, set_up
from slam.run.checkpoints import Checkpoints
from slam.run.estimated_camera import EstimatedCamera
from slam.run.event_log import EventLog
from slam.run.frame_thumbnails import FrameThumbnails
from slam.run.frames_table import FramesTable
from slam.run.report import RunFailures, closing_report, failed_report, opening_report
from slam.run.run_folder import KEYFRAMES_ON_THE_WAY, MAP, TRAJECTORY, RunFolder
from slam.run.run_page import PAGE, write_run_page
from slam.run.run_statistics import RunStatistics
from slam.run.runner import Failure, RunOutcome
from slam.run.trajectory_plot import PLOT, write_plot
from slam.sessions.stored_map import shares_world_with
from slam.system import Slam

if TYPE_CHECKING:
    from relocalizer.maps.reference_map import ReferenceMap
    from slam.events import Observer
    from slam.input.frame_source import FrameSource


@dataclass(frozen=True, slots=True)
class FirstPass:
    """What a second pass over the same frames follows.

    Attributes:
        reason: why the frames are tracked again, one line.
        coverage, verdict: of the first pass.
    """

    reason: str
    coverage: float
    verdict: Verdict


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RunRequest:
    """Input, configuration and run folder of a run.

    Attributes:
        config: configuration with the predictor of `choice`.
        out: run folder; it must not exist, or be empty.
        start_map: map to start in.
        map_name: path of that map as given by the user, for messages.
        localize_only: localize the frames in that map without changing it.
        calibration: estimate of the camera of `frames` before the run; None without one.
        first_pass: for a second pass over the frames; None for the first.
    """

    frames: FrameSource
    config: SlamConfig
    choice: PredictorChoice
    out: Path
    start_map: ReferenceMap | None = None
    map_name: str = ""
    localize_only: bool = False
    calibration: CalibrationPass | None = None
    first_pass: FirstPass | None = None

    @property
    def has_estimate(self) -> bool:
        """Whether the camera of `frames` was estimated before the run."""
        return self.calibration is not None and self.calibration.is_used

    def map_report(self, *, found_at_frame: int = -1, poses_in_map: bool = False) -> dict[str, Any]:
        """Entry of report.json about the map in which the run starts."""
        return {
            "from": self.map_name,
            "localize_only": self.localize_only,
            "found_at_frame": found_at_frame,
            "poses_in_map": poses_in_map,
        }


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RunReport:
    """Outcome of a recorded run.

    Attributes:
        folder: the run folder.
        values: contents of its report.json.
        failures: errors, each limited to one part of the run, in order.
        is_complete: whether all frames were processed and the map was finished, even if some files were not written.
        last_frame_index: index of the last processed frame.
        estimated_camera: the camera that the run estimated; None if it kept the one it tracked with.
    """

    folder: Path
    values: dict[str, Any]
    failures: tuple[Failure, ...]
    is_complete: bool
    last_frame_index: int
    estimated_camera: EstimatedCamera | None = None

    @property
    def status(self) -> str:
        """ "finished", "interrupted" or "failed"."""
        return str(self.values["status"])

    @property
    def outcome(self) -> str:
        """What became of the run, in a clause: "it was interrupted", or "it is" with its verdict."""
        return f"it is {self.verdict}" if self.status == "finished" else f"it was {self.status}"

    @property
    def verdict(self) -> Verdict:
        """Quality grade of the result with its reasons; FAILED for a run without statistics."""
        verdict = self.values.get("verdict")
        if verdict is None:
            return Verdict(Grade.FAILED, (str(self.values["reason"]),))
        return Verdict(Grade(verdict["grade"]), tuple(verdict["reasons"]))

    @property
    def frames(self) -> int:
        """Number of processed frames."""
        return int(self.values.get("frames", 0))

    @property
    def left_out(self) -> int:
        """Number of frames of the source that were not processed, because they have another focal length."""
        return int(self.values.get("left_out", 0))

    @property
    def tracked(self) -> int:
        """Number of frames with a pose in the largest map."""
        return int(self.values.get("tracked", 0))

    @property
    def coverage(self) -> float:
        """Fraction of the processed frames with a pose in the largest map."""
        return float(self.values.get("coverage", 0.0))

    @property
    def has_map(self) -> bool:
        return (self.folder / MAP).is_dir()


@dataclass(slots=True, eq=False)
class _Attempts:
    """Runs independent steps; an exception in one is stored, and the next step still runs."""

    failures: list[Failure] = field(default_factory=list)

    @contextmanager
    def __call__(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failures.append(Failure(doing, error))


class RunRecorder:
    """Creates the run folder, processes the frames, and writes all files."""

    def __init__(self, request: RunRequest) -> None:
        self._request = request = replace(request, config=with_mapping_thread(request.config, request.frames))
        self._statistics = RunStatistics(start_map=request.map_name)
        self._opening = {
            **opening_report(request.config, request.frames, request.choice),
            "map": request.map_report(),
            "masked_share": masked_share(request.frames.mask),
            "first_pass": request.first_pass,
            "lens": {"before_run": None if request.calibration is None else request.calibration.to_dict()},
        }

    @property
    def statistics(self) -> RunStatistics:
        """Statistics of the run so far."""
        return self._statistics

    def run(
        self,
        *,
        observers: Callable[[], Sequence[Observer]] = tuple,
        on_progress: Callable[[int], None] | None = None,
        on_finishing: Progress = no_progress,
    ) -> RunReport:
        """Process all frames, and write every file of the run folder.

        Args:
            observers: creates further observers, called when the run folder exists.
            on_progress, on_finishing: as for `runner.run`.

        Raises:
            UserError: the run could not be started (no run folder remains then), or the source gave too few frames.
        """
        request = self._request
        if request.config.input.unordered:
            expect_photos(request.frames, localize_only=request.localize_only)
        folder = RunFolder.create(request.out)
        stop = runner.StopRequest()
        with ExitStack() as closing, runner.listening(stop):
            try:
                folder.write_config(dump_config(request.config))
                folder.write_report(self._opening)
                log = EventLog(folder)
                closing.callback(log.close)
                closing.callback((table := FramesTable(folder)).close)
                images = FolderImages(folder.path / KEYFRAMES_ON_THE_WAY)
                closing.callback(images.close)
                checkpoints = Checkpoints(folder, self._opening)
                slam = Slam.create(
                    request.config,
                    observers=[self._statistics, log, table, FrameThumbnails(folder), checkpoints, *observers()],
                    images=images,
                    start_map=request.start_map,
                    localize_only=request.localize_only,
                    mask=request.frames.mask,
                )
                set_up(slam, request.calibration)
            except BaseException:
                closing.close()
                folder.discard()
                raise
            stop.busy = True  # from here on an interruption waits until the files are complete
            try:
                outcome = runner.run(request.frames, slam, on_progress=on_progress, on_finishing=on_finishing)
                return self._write(folder, slam, outcome, log)
            except BaseException as error:  # raised again; report.json must not say "running" any more
                folder.write_report(failed_report(self._opening, error))
                raise

    def _write(self, folder: RunFolder, slam: Slam, outcome: RunOutcome, log: EventLog) -> RunReport:
        """Write every file; a failure of one does not affect the next."""
        request, attempts = self._request, _Attempts([*outcome.failures])
        frames, config = request.frames, request.config
        with attempts("making lengths metric"):
            outcome = runner.with_metric_scale(outcome, slam, config.metric_scale.scale_from, frames.ground_truth)
        self._write_result(folder, slam, outcome, attempts)
        evaluation = None
        with attempts("comparing with the ground truth"):
            evaluation = _evaluation(frames, outcome)
        with attempts("writing events.jsonl"):
            log.close()
        dropped = tuple(
            Failure(f"{observer.name}, notified of {observer.event}", observer.error)
            for observer in slam.dropped_observers
        )
        found = None
        with attempts("reading off the camera"):
            found = EstimatedCamera.of(outcome.result, frames.calibration)
        report = self._write_reports(folder, outcome, attempts, dropped, evaluation)
        return RunReport(
            folder=folder.path,
            values=report,
            failures=(*attempts.failures, *dropped),
            is_complete=not outcome.failures,
            last_frame_index=outcome.last_frame_index,
            estimated_camera=found,
        )

    def _write_reports(
        self,
        folder: RunFolder,
        outcome: RunOutcome,
        attempts: _Attempts,
        dropped: tuple[Failure, ...],
        evaluation: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """Write report.html and report.json; returns the contents of the latter."""
        so_far = RunFailures(tuple(attempts.failures), dropped)
        report: dict[str, Any] = {}
        with attempts("making the report"):
            report = self._closing_report(outcome, so_far, evaluation)
        if not report:
            report = failed_report(self._opening, attempts.failures[0].error)
        already_failed = len(attempts.failures)
        with attempts(f"writing {PAGE}"):
            write_run_page(folder.path, report)
        if len(attempts.failures) > already_failed and "frames" in report:
            report = self._closing_report(outcome, RunFailures(tuple(attempts.failures), dropped), evaluation)
        with attempts("writing report.json"):
            folder.write_report(report)
        if attempts.failures and attempts.failures[-1].doing == "writing report.json":
            with attempts("writing a shorter report.json"):
                folder.write_report(failed_report(self._opening, attempts.failures[-1].error))
        return report

    def _write_result(self, folder: RunFolder, slam: Slam, outcome: RunOutcome, attempts: _Attempts) -> None:
        """Write the trajectories, the camera, the map and the plot of them."""
        request, frames = self._request, self._request.frames
        for name, write in folder.result_files(outcome.result, frames.calibration, is_estimate=request.has_estimate):
            with attempts(f"writing {name}"):
                write()
        saved = None
        if not request.localize_only:
            with attempts("writing the map"):
                saved = self._write_map(folder, slam)
        if len(outcome.result.trajectory) and (folder.path / TRAJECTORY).is_file():
            with attempts(f"writing {PLOT}"):
                write_plot(folder.path / PLOT, folder.path, saved, frames.name)

    def _write_map(self, folder: RunFolder, slam: Slam) -> ReferenceMap | None:
        """Write the map and return it; None when it has no keyframe."""
        saved = slam.saved_map()
        if not len(saved.keyframes):
            return None
        folder.write_map(saved)
        return saved

    def _closing_report(
        self, outcome: RunOutcome, failures: RunFailures, evaluation: dict[str, Any] | None
    ) -> dict[str, Any]:
        request = self._request
        start = request.start_map
        joined = start is not None and shares_world_with(outcome.result, start.keyframes.ids.tolist())
        notes = [] if evaluation is None else evaluation.get("notes", [])
        findings = [Finding(Grade.PARTIAL, f"compared with the ground truth, {note}") for note in notes]
        findings += () if request.calibration is None else request.calibration.findings
        verdict = run_verdict.verdict_of(outcome, self._statistics, request.config, findings)
        closed = closing_report(self._opening, outcome, self._statistics, verdict, failures, evaluation=evaluation)
        found = self._statistics.found_in_map
        left_out = 0 if request.calibration is None else request.calibration.left_out
        return {
            **closed,
            "left_out": left_out,
            "map": request.map_report(found_at_frame=found, poses_in_map=joined),
        }


def _evaluation(frames: FrameSource, outcome: RunOutcome) -> dict[str, Any] | None:
    """Evaluation of the result against the source's ground truth; None without ground truth or poses."""
    if frames.ground_truth is None or not len(outcome.result.trajectory):
        return None
    from slam.evaluation.metrics import evaluate

    try:
        return evaluate(outcome.result.trajectory, frames.ground_truth, expected=outcome.expected_ns).to_dict()
    except TrajectoryError as error:  # the run is valid without an evaluation
        return {"error": str(error)}

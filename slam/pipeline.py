"""From a configuration to a `Slam`, and from a source to a finished run: wiring, the loop, timing, Ctrl-C."""

from __future__ import annotations

import ctypes
import platform
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import TYPE_CHECKING, cast

import numpy as np

from relocalizer.errors import ConfigError, MapError, SequenceError, UserError
from slam.config import SlamConfig
from slam.events import (
    EdgeAccepted,
    EdgeRejected,
    Event,
    FrameProcessed,
    FramesSkipped,
    Initialised,
    KeyframeAdded,
    Observer,
    Relocalised,
    ScaleAnchored,
    ScaleUnobservable,
    TrackingLost,
    TrackingState,
)
from slam.graph import EdgeKind
from slam.progress import Progress, untold
from slam.verdict import WEAK_LANDMARKS, Evidence, Finding, Grade, Verdict, judge

if TYPE_CHECKING:
    from relocalizer.interfaces import PosePredictor
    from relocalizer.reference_map import Provenance, ReferenceMap
    from relocalizer.reloc3r_predictor import Kind
    from slam.frame_source import FrameSource
    from slam.frames import Frame
    from slam.keyframe_images import KeyframeImages
    from slam.mask import Mask
    from slam.slam_result import SlamResult
    from slam.system import Slam
    from slam.trajectory import Trajectory

# Below this much memory a card runs the smaller network more comfortably than the larger one.
_SMALL_CARD_BYTES = 6 * 2**30
# A closed terminal sends SIGHUP; Windows, where nothing of this runs, has none.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PREDICTORS = ("geometric", "reloc3r-512", "reloc3r-224")
RANDOM_WEIGHTS = "random weights: the poses mean nothing, only the cost is real"


@dataclass(frozen=True, slots=True)
class PredictorChoice:
    """Which pair predictor a run uses, and why, in words for one line of output."""

    kind: str
    reason: str


def choose_predictor(
    config: SlamConfig,
    accelerator: Callable[[], str] | None = None,
    has_weights: Callable[[str], bool] | None = None,
) -> PredictorChoice:
    """Turn `auto` into a predictor: a network whose weights are here where a graphics card makes it cheap, else local
    features. The reason says how to get the other one.

    Args:
        accelerator: says which accelerator there is: 'cuda', 'small-cuda', 'mps' or ''. For tests.
        has_weights: says whether weights (a released name, a hub id or a path) are on this machine. For tests.

    Raises:
        ConfigError: weights were asked for, of a predictor that takes none, or both of a file and random.
    """
    choice = _choose(config, accelerator or find_accelerator, has_weights or _has_weights)
    _check_weights(config, choice)
    return choice


def _has_weights(source: str) -> bool:
    """Whether a checkpoint is on this machine. Raises WeightsError when a path holds none."""
    from relocalizer.checkpoints import locate

    return locate(source) is not None


def _check_weights(config: SlamConfig, choice: PredictorChoice) -> None:
    asked = config.predictor
    if choice.kind == "geometric" and (asked.weights or asked.random_weights):
        key = "random_weights" if asked.random_weights else "weights"
        raise ConfigError(
            f"predictor.{key}: the geometric predictor takes none; add --predictor reloc3r-512 or reloc3r-224"
        )
    if asked.weights and asked.random_weights:
        raise ConfigError(
            f"predictor.random_weights: predictor.weights names {asked.weights} too; leave one of them out"
        )


_CARDS = {
    "cuda": ("reloc3r-512", "there is a CUDA card"),
    "small-cuda": ("reloc3r-224", "there is a CUDA card with little memory"),
    "mps": ("reloc3r-224", "this is an Apple chip"),
}


def _choose(config: SlamConfig, accelerator: Callable[[], str], has_weights: Callable[[str], bool]) -> PredictorChoice:
    asked = config.predictor
    if asked.kind != "auto":
        return PredictorChoice(asked.kind, "as asked")
    card = accelerator()
    if card not in _CARDS:
        return PredictorChoice("geometric", "auto: without a graphics card one Reloc3r pair costs seconds")
    kind, why = _CARDS[card]
    if asked.random_weights or has_weights(asked.weights or kind):
        return PredictorChoice(kind, f"auto: {why}; --predictor geometric takes local features instead")
    absent = f"{why}, but the weights of {kind} are not on this machine: slam weights fetch {kind} brings them"
    return PredictorChoice("geometric", f"auto: {absent}")


def with_predictor(config: SlamConfig, kind: str) -> SlamConfig:
    """The same configuration with the predictor decided, so that saving it repeats the run anywhere."""
    return config.model_copy(update={"predictor": config.predictor.model_copy(update={"kind": kind})})


def with_predictor_of(provenance: Provenance, config: SlamConfig) -> SlamConfig:
    """The configuration with `auto` decided by a map: no other predictor than the one that made it can read it.

    Raises:
        MapError: another one was asked for, or trained weights of a map of random ones. Said here, before weights are
            fetched and anything is made.
    """
    kind, _, random = provenance.predictor.partition(" ")  # random weights have words after it
    if kind not in PREDICTORS:
        return config
    asked = config.predictor
    if asked.kind not in ("auto", kind):
        raise MapError(f"map: made by predictor {kind}, this is {asked.kind}; add --predictor {kind}, or make it anew")
    if random and not asked.random_weights:
        raise MapError("map: made with random weights, which mean nothing; add --random-weights, or make it anew")
    return with_predictor(config, kind)


def with_computation(config: SlamConfig, choice: PredictorChoice) -> tuple[SlamConfig, PredictorChoice]:
    """The same with the network's backend and precision decided; what was measured for it is added to the reason.

    Nothing is measured unless the configuration asks for the quickest.

    Raises:
        ConfigError: the backend or the precision cannot be had here.
    """
    asked = config.predictor
    if choice.kind == "geometric" or (asked.backend != "auto" and asked.precision != "fastest"):
        return config, choice
    from relocalizer.network.computation import choose_computation
    from relocalizer.preprocessing import TRAINED_SIZES

    [size, *_] = TRAINED_SIZES[224 if choice.kind == "reloc3r-224" else 512]
    found = choose_computation(device=asked.device, backend=asked.backend, precision=asked.precision, size=size)
    decided = {"backend": found.way.backend, "precision": found.way.precision}
    config = config.model_copy(update={"predictor": asked.model_copy(update=decided)})
    return config, replace(choice, reason=f"{choice.reason}; {found}")


def find_accelerator() -> str:
    """'cuda', 'small-cuda', 'mps' or ''. Asks the driver: importing torch to ask it costs two seconds."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "mps"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    count, memory = ctypes.c_int(), ctypes.c_size_t()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return ""
    device = ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return "cuda" if memory.value >= _SMALL_CARD_BYTES else "small-cuda"


def build(
    config: SlamConfig,
    *,
    observers: Sequence[Observer] = (),
    images: KeyframeImages | None = None,
    start_map: ReferenceMap | None = None,
    localize_only: bool = False,
    mask: Mask | None = None,
) -> Slam:
    """Everything a run needs, wired together; `start_map` is the map to go on in, or only to be found in.

    `mask` is the one of the source: where it is zero no point is found or followed.

    Raises:
        MapError: the predictor cannot read the map.
        UserError: the predictor that was asked for cannot be had; the message says why.
    """
    from relocalizer.retrieval import FaissRetriever
    from slam.optimizer import GtsamOptimizer
    from slam.refinement import GtsamRefiner
    from slam.system import Slam
    from slam.tracks import KltTracker

    return Slam(
        config,
        predictor=build_predictor(config),
        tracker=KltTracker(config.tracks, config.features, mask),
        retriever=FaissRetriever(),
        optimizer=GtsamOptimizer(robust=config.linking.robust),
        refiner=GtsamRefiner(),
        observers=observers,
        images=images,
        start_map=start_map,
        localize_only=localize_only,
    )


def build_predictor(config: SlamConfig) -> PosePredictor:
    """The pair predictor that the configuration names; `auto` is decided here."""
    match choose_predictor(config).kind:
        case "geometric":
            from relocalizer.geometric_predictor import GeometricPredictor

            return GeometricPredictor(config.features, config.predictor.geometric)
        case kind:
            from relocalizer.reloc3r_predictor import Reloc3rPredictor

            asked = config.predictor
            if asked.random_weights:
                return Reloc3rPredictor.random(
                    cast("Kind", kind),
                    seed=config.seed,
                    device=asked.device,
                    precision=asked.precision,
                    backend=asked.backend,
                )
            return Reloc3rPredictor.load(
                kind,
                weights=asked.weights,
                device=asked.device,
                precision=asked.precision,
                backend=asked.backend,
            )


@dataclass(frozen=True, slots=True)
class LostEpisode:
    """One time the camera was lost: for how many frames, and whether it came back."""

    frame_index: int
    timestamp_ns: int
    reason: str
    frames: int = 0
    found: bool = False


@dataclass(slots=True, eq=False)
class RunStatistics:
    """An observer that counts: what the progress line, the summary and the report say about a run.

    Attributes:
        frames: frames that went through the system.
        tracked: those that had a pose at once.
        first_pose_frame: index of the first frame with a live pose, -1 while there is none.
        reason: why the newest frame has no pose; empty when it has one.
        lost_frames: frames that had no pose because tracking was lost.
        weak_frames: frames whose pose rests on few landmarks, or on none.
        start_map: name of the map the run began in, empty when it began with none.
        found_in_map: index of the first frame recognised in it, -1 while there is none.
        stage_ms: wall time by stage, one value for each frame that ran the stage.
        resting: frames in which the camera did not move.
        overlay: over all frames, the sum of the shares of points that stood still while the world moved.
    """

    frames: int = 0
    tracked: int = 0
    first_pose_frame: int = -1
    initialised: bool = False
    state: TrackingState = TrackingState.INITIALISING
    reason: str = ""
    keyframes: int = 0
    edges: int = 0
    loops_accepted: int = 0
    loops_rejected: int = 0
    scale_unobservable: int = 0
    lost_frames: int = 0
    weak_frames: int = 0
    start_map: str = ""
    found_in_map: int = -1
    lost: list[LostEpisode] = field(default_factory=list)
    stage_ms: dict[str, list[float]] = field(default_factory=dict)
    resting: int = 0
    overlay: float = 0.0

    @property
    def overlay_share(self) -> float:
        """Mean share, over all frames, of the points followed that stand still while the world moves, 0 to 1."""
        return self.overlay / self.frames if self.frames else 0.0

    def __call__(self, event: Event) -> None:
        match event:
            case FrameProcessed():
                self._count_frame(event)
            case Initialised():
                self.initialised = True
            case KeyframeAdded():
                self.keyframes += 1
            case EdgeAccepted():
                self.edges += 1
                self.loops_accepted += event.edge.kind is EdgeKind.LOOP
            case EdgeRejected():
                self.loops_rejected += event.kind is EdgeKind.LOOP
            case ScaleUnobservable():
                self.scale_unobservable += 1
            case TrackingLost():
                self.lost.append(LostEpisode(event.frame_index, event.timestamp_ns, event.reason))
            case Relocalised() if self.start_map and self.found_in_map < 0 and not self.initialised:
                self.found_in_map = event.frame_index
            case Relocalised() if self.lost:
                self.lost[-1] = replace(self.lost[-1], frames=event.frames_lost, found=True)
            case _:
                pass

    def _count_frame(self, event: FrameProcessed) -> None:
        self.frames += 1
        self.state, self.reason = event.state, event.reason
        self.lost_frames += event.state is TrackingState.LOST
        self.resting += event.camera_rests
        self.overlay += event.overlay_share
        if event.world_from_cam is not None:
            self.tracked += 1
            self.weak_frames += int(event.is_inlier.sum()) < WEAK_LANDMARKS
            if self.first_pose_frame < 0:
                self.first_pose_frame = event.frame.index
        elif event.state is TrackingState.LOST and self.lost and not self.lost[-1].found:
            self.lost[-1] = replace(self.lost[-1], frames=self.lost[-1].frames + 1)
        for stage, milliseconds in event.stage_ms.items():
            self.stage_ms.setdefault(stage, []).append(milliseconds)


def percentiles(stage_ms: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of every stage, milliseconds."""
    return {
        stage: {name: round(float(np.percentile(times, q)), 3) for name, q in (("p50", 50), ("p95", 95))}
        for stage, times in stage_ms.items()
        if times
    }


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """Something that went wrong in a run and took only itself along: what was being done, and the exception."""

    doing: str
    error: Exception

    @property
    def is_internal(self) -> bool:
        """Whether this is a bug, not something a person can fix."""
        return not isinstance(self.error, UserError)

    @property
    def sentence(self) -> str:
        text = " ".join(str(self.error).split())
        if not self.is_internal:
            return text
        kind = type(self.error).__name__
        return f"{self.doing}: {kind}: {text}" if text else f"{self.doing}: {kind}"

    @property
    def traceback(self) -> str:
        return "".join(traceback.format_exception(self.error))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RunOutcome:
    """What a run gave.

    Attributes:
        expected_ns: (N,) timestamps of all frames that went in, tracked or not.
        wall_s: from the first picture to the finished map, reading included.
        read_ms: time spent waiting for each picture.
        step_ms: time the system took for each frame.
        finish_s: the last refinement of the whole map.
        peak_memory_mb: of this process.
        failures: what went wrong on the way and only took itself along, the first one first.
        last_frame_index: of the last frame that went in, -1 when none did.
        skipped: pictures that could not be read, as (name, reason).
        dropped: live pictures that came faster than they could be used.
        anchor_problem: why lengths that were to be metres are map units all the same; empty when nothing is wrong.
    """

    result: SlamResult
    interrupted: bool
    frames: int
    expected_ns: np.ndarray[tuple[int], np.dtype[np.int64]]
    wall_s: float
    read_ms: list[float]
    step_ms: list[float]
    finish_s: float
    peak_memory_mb: float
    skipped: list[tuple[str, str]]
    dropped: int
    anchor_problem: str = ""
    failures: tuple[Failure, ...] = ()
    last_frame_index: int = -1

    def raise_failure(self) -> None:
        """Raise what ended the run before its time, for who has no use for half a run."""
        if self.failures:
            raise self.failures[0].error


class StopRequest:
    """Ctrl-C (or SIGTERM, SIGHUP) as a wish: granted between frames, so that the map is never caught half-written.

    Attributes:
        asked: whether it was asked for.
        busy: whether it has to wait; when it has not, or when it is asked for again, KeyboardInterrupt is raised.
    """

    def __init__(self) -> None:
        self.asked = False
        self.busy = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.asked or not self.busy:  # waiting for a picture, or asked twice: do not make anybody wait
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def listening(stop: StopRequest) -> Iterator[None]:
    """Signals that ask a process to end go to `stop`. Only in the main thread; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup wants it
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_until_told() -> None:
    """Until Ctrl-C, SIGTERM or SIGHUP."""
    with suppress(KeyboardInterrupt), listening(StopRequest()):
        threading.Event().wait()


def run(
    source: FrameSource,
    slam: Slam,
    *,
    on_progress: Callable[[int], None] | None = None,
    on_finishing: Progress = untold,
) -> RunOutcome:
    """Every frame of the source through the system, then the last optimisation.

    Ctrl-C (SIGTERM, SIGHUP) ends the run after the frame at hand; what was made until then is finished and given. So it
    is after an exception, in a frame, in the source or in the last refinement: `RunOutcome.failures` holds it.

    Args:
        on_progress: called after each frame with the number of frames so far.
        on_finishing: called with (what, how many are done, of how many at most) while the map is finished.

    Raises:
        SequenceError: the source gave fewer than two frames.
    """
    return _Run(source, slam, on_progress).outcome(on_finishing)


class _Run:
    """One pass over a source: its frames through the system, what they took, and what broke it off."""

    def __init__(self, source: FrameSource, slam: Slam, on_progress: Callable[[int], None] | None) -> None:
        self._source, self._slam, self._on_progress = source, slam, on_progress
        self._stop = StopRequest()
        self._stamps: list[int] = []
        self._read_ms: list[float] = []
        self._step_ms: list[float] = []
        self._last_index = -1
        self._failures: list[Failure] = []
        self._is_cut_off = False  # in the middle of a frame, which has left the map half made

    def outcome(self, on_finishing: Progress) -> RunOutcome:
        started = time.perf_counter()
        with listening(self._stop):
            self._feed()
            _tell_losses(self._source, self._slam)
            if len(self._stamps) < 2 and not self._stop.asked and not self._failures:
                raise SequenceError(_too_few(self._source, len(self._stamps)))
            before = time.perf_counter()
            result = self._finish(on_finishing)
            finish_s = time.perf_counter() - before
        return RunOutcome(
            result=result,
            interrupted=self._stop.asked,
            failures=tuple(self._failures),
            frames=len(self._stamps),
            last_frame_index=self._last_index,
            expected_ns=np.array(self._stamps, dtype=np.int64),
            wall_s=time.perf_counter() - started,
            read_ms=self._read_ms,
            step_ms=self._step_ms,
            finish_s=finish_s,
            peak_memory_mb=peak_memory_mb(),
            skipped=list(self._source.skipped),
            dropped=self._source.dropped,
        )

    def _feed(self) -> None:
        """Every frame through the system, until the end, a wish to stop or an exception."""
        doing = "opening the source"
        try:
            for frame, waited_ms in _timed(self._source):
                doing = f"frame {frame.index}"
                self._step(frame, waited_ms)
                if self._stop.asked:
                    break
                doing = f"reading the frame after {frame.index}"
        except KeyboardInterrupt:
            self._stop.asked, self._is_cut_off = True, self._stop.busy
        except Exception as error:
            self._failures.append(Failure(doing, error))
            self._is_cut_off = self._stop.busy
        finally:
            self._source.close()

    def _step(self, frame: Frame, waited_ms: float) -> None:
        self._stop.busy = True
        before = time.perf_counter()
        self._slam.step(frame)
        self._step_ms.append((time.perf_counter() - before) * 1e3)
        self._stop.busy = False
        self._read_ms.append(waited_ms)
        self._stamps.append(frame.timestamp_ns)
        self._last_index = frame.index
        if self._on_progress:
            self._on_progress(len(self._stamps))

    def _finish(self, on_finishing: Progress) -> SlamResult:
        """The finished map; as it stands when an exception or a second wish to stop leaves no other."""
        self._stop.busy = True  # one more Ctrl-C while finishing is a wish to stop at once
        try:
            if self._is_cut_off:
                self._slam.remove_incomplete()
            if not (self._is_cut_off and self._stop.asked):  # asked twice: nobody wants to wait
                interrupted = self._stop.asked or bool(self._failures)
                return self._slam.finish(interrupted=interrupted, on_progress=on_finishing)
        except KeyboardInterrupt:
            self._stop.asked = True
        except Exception as error:
            self._failures.append(Failure("the last refinement", error))
        return self._slam.abort()


def anchored(outcome: RunOutcome, slam: Slam, scale_from: str, ground_truth: Trajectory | None) -> RunOutcome:
    """The outcome in metres, when `scale_from` says how; in map units and with the reason when that cannot be done.

    The map of `slam`, whose outcome it is, is stretched with it.

    Raises:
        ConfigError: `scale_from` is none of the forms that `slam.anchor` knows.
    """
    from slam.anchor import AnchorError, in_metres, parse_anchor

    anchor = parse_anchor(scale_from)
    if anchor is None:
        return outcome
    try:
        result = in_metres(outcome.result, anchor, ground_truth)
    except AnchorError as error:  # an hour of video is not thrown away for it
        return replace(outcome, anchor_problem=str(error))
    assert result.units.metres_per_unit is not None
    slam.publish(ScaleAnchored(metres_per_unit=result.units.metres_per_unit, source=anchor.source))
    return replace(outcome, result=result)


def _timed(source: FrameSource) -> Iterator[tuple[Frame, float]]:
    frames = iter(source)
    while True:
        before = time.perf_counter()
        frame = next(frames, None)
        if frame is None:
            return
        yield frame, (time.perf_counter() - before) * 1e3


def _tell_losses(source: FrameSource, slam: Slam) -> None:
    if source.skipped:
        name, reason = source.skipped[0]
        slam.publish(FramesSkipped(count=len(source.skipped), reason=f"{name}: {reason}"))
    if source.dropped:
        slam.publish(FramesSkipped(count=source.dropped, reason="came faster than they could be used"))


def _too_few(source: FrameSource, count: int) -> str:
    unreadable = f" ({len(source.skipped)} could not be read)" if source.skipped else ""
    return (
        f"{source.name}: {count or 'no'} usable {'picture' if count == 1 else 'pictures'}{unreadable}; "
        "SLAM needs at least two, taken from different places"
    )


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far, megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, kilobytes elsewhere


def verdict_of(
    outcome: RunOutcome, statistics: RunStatistics, config: SlamConfig, findings: Sequence[Finding] = ()
) -> Verdict:
    """How far a run can be trusted; `findings` are those that its caller has made."""
    lens = outcome.result.lens_evidence
    random = config.predictor.random_weights
    early = [Finding(Grade.PARTIAL, f"the run ended early: {failure.sentence}") for failure in outcome.failures[:1]]
    evidence = Evidence(
        frames=outcome.frames,
        tracked=len(outcome.result.trajectory),
        other_segments=tuple(len(segment) for segment in outcome.result.segments),
        lost_times=len(statistics.lost),
        lost_frames=statistics.lost_frames,
        weak_frames=statistics.weak_frames,
        overlay_share=statistics.overlay_share,
        reprojection_px=outcome.result.reprojection_px,
        noise_px=config.tracks.noise_px,
        no_result=RANDOM_WEIGHTS if random else no_result(outcome, statistics),
        notes=(*early, *lens.findings, *findings),
    )
    return judge(evidence)


def no_result(outcome: RunOutcome, statistics: RunStatistics) -> str:
    """Why nobody could use this result; empty when it can be used."""
    if len(outcome.result.trajectory) >= 2:
        return ""
    if statistics.start_map and statistics.found_in_map < 0 and not statistics.initialised:
        return f"no frame was recognised in the map {statistics.start_map} (the last: {statistics.reason})"
    if statistics.initialised:
        return "the camera was lost right after the map was begun" + (
            f" ({statistics.lost[-1].reason})" if statistics.lost else ""
        )
    why = f": {statistics.reason}" if statistics.reason else ""
    return f"no map could be begun in {outcome.frames} frames{why}"

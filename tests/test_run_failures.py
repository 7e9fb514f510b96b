"""After an exception anywhere in a run, what was made until then stays, and the last line says how to continue.

The points at which something is made to fail are found by looking at the system: every public method of every part of
it that a run calls, every observer, every file that is written.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Ended
from oracle import CAMERA, OraclePredictor, OracleTracker, OracleWorld, room_path, room_points
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import load_camera
from relocalizer.intrinsics_correction import CorrectionStep
from relocalizer.maps.map_reader import load_map
from relocalizer.retrieval import FaissRetriever
from slam.components import predictor_choice
from slam.components.assembly import Components
from slam.config.schema import SlamConfig
from slam.evaluation.trajectory_files import read_tum
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
from slam.map.keyframe_images import FolderImages
from slam.map.lens_evidence import LensEvidence, LensState
from slam.mapping.bundle import AdjustedBundle, Bundle
from slam.mapping.lens_examination import LensFinding
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster
from slam.run import runner
from slam.run.checkpoints import Checkpoints
from slam.run.event_log import EventLog
from slam.run.frame_thumbnails import FrameThumbnails
from slam.run.frames_table import FramesTable
from slam.run.recorded_run import RunRecorder, RunRequest
from slam.run.run_folder import RunFolder
from slam.run.run_statistics import RunStatistics
from slam.system import Slam

FAILS_AFTER = 24  # frames; the map begins with the first few, so there is something to lose
BLIND = frozenset({29, 30, 31})  # a loss, so that relocalization and the last look for frames have their turn
FRAMES = 36
QUICK = ("--set", "bundle_adjustment.final_rounds=1", "--set", "tracks.max_tracks=200")
HELD = ("--set", "bundle_adjustment.calibrate=never")  # the camera is not examined, which takes a third of the time


class Boom(Exception):
    """What is made to go wrong."""


@cache
def path() -> list[RigidTransform]:
    return room_path(240)[:FRAMES]


def world() -> OracleWorld:
    points = room_points(np.random.default_rng(3), 1000)
    made = OracleWorld(path(), points, blind=BLIND)
    made.descriptors[:] = np.abs(made.descriptors)  # as a map can keep them
    return made


class OracleSource:
    """The oracle's frames as a source."""

    def __init__(self, world: OracleWorld) -> None:
        self._world = world
        self.name, self.description = "oracle", "an oracle's world"
        self.camera = self.calibration = CAMERA
        self.length: int | None = len(world.poses)
        self.mask = None
        self.ground_truth = world.ground_truth
        self.skipped: list[tuple[str, str]] = []
        self.dropped = 0
        self.fails_at = -1

    def __iter__(self) -> Iterator[Any]:
        for frame in self._world.frames():
            if frame.index == self.fails_at:
                raise Boom("reading")
            yield frame

    def close(self) -> None:
        """Nothing is open."""


def oracle_build(world: OracleWorld) -> Callable[..., Slam]:
    def build(config: SlamConfig, *, mask: None = None, **options: Any) -> Slam:
        return Slam(
            config,
            Components(
                predictor=OraclePredictor(world),
                tracker=OracleTracker(world, max_features=250),
                retriever=FaissRetriever(),
                optimizer=GtsamOptimizer(),
                adjuster=SchurBundleAdjuster(),
            ),
            **options,
        )

    return build


def system(folder: Path) -> Slam:
    """The system as a recorded run has it."""
    return oracle_build(world())(SlamConfig(), images=FolderImages(folder))


def parts_of(slam: Slam) -> list[Any]:
    """The system, everything it is made of, and what these are made of."""
    found: dict[type, Any] = {Slam: slam}
    waiting = [slam]
    while waiting:
        part = waiting.pop()
        for value in [*getattr(part, "__dict__", {}).values(), *(getattr(part, s, None) for s in slots_of(part))]:
            kind = type(value)
            ours = kind.__module__.split(".")[0] in ("slam", "relocalizer", "oracle")
            if ours and kind not in found and not kind.__module__.endswith(".config"):
                found[kind] = value
                waiting.append(value)
    return list(found.values())


def slots_of(part: Any) -> list[str]:
    return [name for kind in type(part).__mro__ for name in getattr(kind, "__slots__", ())]


def methods_of(part: Any) -> list[str]:
    names = [name for name, value in vars(type(part)).items() if callable(value) and not name.startswith("_")]
    return names + (["__call__"] if "__call__" in vars(type(part)) else [])


@dataclass
class Tripwire:
    """Counts calls of a method, and raises at the first one after `FAILS_AFTER` frames, or at the first of all.

    Attributes:
        always: raise at all later calls as well.
    """

    armed: bool = False
    always: bool = False
    calls: Counter[str] = field(default_factory=Counter)
    late_calls: Counter[str] = field(default_factory=Counter)
    target: str = ""
    from_the_start: bool = False
    tripped: int = 0
    frames: int = 0

    def wrap(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.frames += name == "Slam.step"
            late = self.frames > FAILS_AFTER
            self.calls[name] += 1
            self.late_calls[name] += late
            if name == self.target and (late or self.from_the_start) and (self.always or not self.tripped):
                self.tripped += 1
                raise Boom(name)
            return method(*arguments, **options)

        return wrapped


def install(patch: pytest.MonkeyPatch, wire: Tripwire, slam: Slam) -> None:
    for part in parts_of(slam):
        kind = type(part)
        for name in methods_of(part):
            label = f"{kind.__name__}.{name}"
            raw = vars(kind)[name]
            if isinstance(raw, staticmethod | classmethod | property):
                continue
            patch.setattr(kind, name, wire.wrap(label, raw))


def discover() -> Tripwire:
    """Which methods a clean run calls after the map has begun."""
    wire, patch, made = Tripwire(), pytest.MonkeyPatch(), world()
    try:
        slam = system(Path(tempfile.mkdtemp()))
        install(patch, wire, slam)
        runner.run(OracleSource(made), slam).raise_failure()
    finally:
        patch.undo()
    return wire


# Calls that only a caller makes when something has failed, or whose failure is another test's.
SPARED = {"Slam.finish", "Slam.abort", "Slam.remove_incomplete", "Slam.publish"}
# What writing down a result rests on: broken for good, nothing of the result can be had.
BASIC = (
    *("LandmarkMap.", "KeyframeGraph.", "FrameLog.", "Slam.", "Similarity.", "Tracks."),
    *("SlamMap.lens_of", "SlamMap.evidence_of"),  # look up the camera of a keyframe that is written down
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stage" in metafunc.fixturenames:
        late = discover().late_calls
        names = sorted(name for name, count in late.items() if count and name not in SPARED)
        if "for_good" in metafunc.function.__name__:
            names = [name for name in names if not name.startswith(BASIC)]
        metafunc.parametrize("stage", names)


@pytest.fixture
def oracle_run(monkeypatch, tmp_path, slam_command) -> Callable[..., Ended]:
    """`slam run` on the oracle's world; `prepare` gets the source before it begins."""

    def call(options: Sequence[str] = (), prepare: Callable[[OracleSource], None] = lambda source: None) -> Ended:
        made = world()
        source = OracleSource(made)
        prepare(source)
        monkeypatch.setattr("slam.system.Slam.create", oracle_build(made))
        monkeypatch.setattr("slam.input.open_source.open_source", lambda *a, **o: source)
        return slam_command("run", "oracle", "-o", tmp_path / "out", *QUICK, *options)

    return call


def expect_all_was_kept(ended: Ended, out: Path, *, poses: int) -> dict[str, Any]:
    """A bug's exit code and last line, and a folder that can be read; the report."""
    assert ended.code == 70, ended.err
    assert "Boom" in ended.err
    assert "Traceback" in ended.err
    assert ended.complaint.startswith("slam: internal error: ")
    assert f"{out}; to continue: slam run oracle --start " in ended.complaint
    report = json.loads((out / "report.json").read_text())
    assert report["status"] == "failed"
    assert "Boom" in report["reason"]
    assert "Boom" in report["errors"][0]["traceback"]
    assert len(read_tum(out / "trajectory.txt")) >= poses
    assert len(load_map(out).keyframes) >= 2
    for line in (out / "events.jsonl").read_text().splitlines():
        json.loads(line)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    return report


@pytest.mark.parametrize("always", [False, True], ids=["once", "for good"])
def test_a_frame_that_cannot_be_read_ends_the_run_with_all_before_it(oracle_run, tmp_path, always):
    def prepare(source: OracleSource) -> None:
        source.fails_at = FAILS_AFTER + 1

    report = expect_all_was_kept(oracle_run(HELD, prepare), tmp_path / "out", poses=FAILS_AFTER)
    assert report["frames"] == FAILS_AFTER + 1


def fail_in(monkeypatch: pytest.MonkeyPatch, stage: str, *, always: bool) -> Tripwire:
    wire = Tripwire(target=stage, always=always)
    install(monkeypatch, wire, system(Path("unused")))
    return wire


def test_an_exception_in_any_stage_keeps_all_before_it(oracle_run, tmp_path, monkeypatch, stage):
    wire = fail_in(monkeypatch, stage, always=False)
    ended = oracle_run(() if "lens" in stage else HELD)
    assert wire.tripped == 1
    expect_all_was_kept(ended, tmp_path / "out", poses=FAILS_AFTER - 3)


@pytest.mark.slow
def test_a_stage_that_is_broken_for_good_keeps_all_before_it(oracle_run, tmp_path, monkeypatch, stage):
    fail_in(monkeypatch, stage, always=True)
    ended = oracle_run()
    expect_all_was_kept(ended, tmp_path / "out", poses=FAILS_AFTER - 3)


def observers_of_a_run(tmp_path: Path) -> list[str]:
    """The classes that a recorded run gives the system as observers."""
    given: list[Any] = []

    def build(config: SlamConfig, *, observers: Any, **options: Any) -> Slam:
        given.extend(observers)
        return oracle_build(world())(config, observers=observers, **options)

    patch = pytest.MonkeyPatch()
    try:
        patch.setattr("slam.system.Slam.create", build)
        choice = predictor_choice.PredictorChoice("geometric", "")
        request = RunRequest(frames=OracleSource(world()), config=SlamConfig(), choice=choice, out=tmp_path / "seen")
        RunRecorder(request).run()
    finally:
        patch.undo()
    return [type(observer).__name__ for observer in given]


OBSERVERS = ["RunStatistics", "EventLog", "FramesTable", "FrameThumbnails", "Checkpoints"]


def test_the_observers_tested_here_are_those_of_a_run(tmp_path):
    assert observers_of_a_run(tmp_path) == OBSERVERS


@pytest.mark.parametrize("name", OBSERVERS)
def test_an_observer_that_fails_is_dropped_and_said_once(oracle_run, tmp_path, monkeypatch, caplog, name):
    kind = {kind.__name__: kind for kind in (RunStatistics, EventLog, FramesTable, FrameThumbnails, Checkpoints)}[name]
    wire = Tripwire(target=name, always=True, from_the_start=True)
    monkeypatch.setattr(kind, "__call__", wire.wrap(name, kind.__call__))
    ended = oracle_run(HELD)
    assert wire.tripped == 1
    assert [r.getMessage() for r in caplog.records if "receives no further events" in r.getMessage()] == [
        f"{name} raised an error and receives no further events: {name}"
    ]
    assert ended.code == 70
    assert ended.complaint.startswith(f"slam: internal error: {name}, notified of ")
    assert "the run itself is whole" in ended.complaint
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["status"], len(report["errors"])) == ("finished", 1)
    assert len(read_tum(tmp_path / "out" / "trajectory.txt")) > 30
    assert len(load_map(tmp_path / "out").keyframes) >= 2


FILES = [
    "trajectory.txt", "keyframes.txt", "trajectory_online.txt", "camera.yaml", "map", "trajectory.png", "report.html",
    "report.json",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_made_leaves_the_others(oracle_run, tmp_path, monkeypatch, name):
    out = tmp_path / "out"
    result_files, wire = RunFolder.result_files, Tripwire(target=name, from_the_start=True)

    def with_a_failure(self: RunFolder, *arguments: Any, **options: Any) -> list[tuple[str, Callable[[], None]]]:
        files = dict(result_files(self, *arguments, **options))
        files.setdefault("camera.yaml", lambda: None)
        return [(file, wire.wrap(file, write)) for file, write in files.items()]

    monkeypatch.setattr(RunFolder, "result_files", with_a_failure)
    if name == "map":
        monkeypatch.setattr(RunFolder, "write_map", wire.wrap("map", RunFolder.write_map))
    if name == "trajectory.png":
        monkeypatch.setattr("slam.run.recorded_run.write_plot", wire.wrap(name, lambda *a: None))
    if name == "report.html":
        monkeypatch.setattr("slam.run.recorded_run.write_run_page", wire.wrap(name, lambda *a: None))
    if name == "report.json":
        monkeypatch.setattr("slam.run.recorded_run.closing_report", wire.wrap("report.json", lambda *a, **o: {}))
    ended = oracle_run(HELD)
    assert wire.tripped == 1
    assert ended.code == 70
    assert ended.complaint.startswith("slam: internal error: ")
    assert "Boom" in ended.complaint
    assert f"kept in {out}" in ended.complaint
    assert "--start" not in ended.complaint
    assert json.loads((out / "report.json").read_text())["status"] == "failed"
    written = {"trajectory.txt", "keyframes.txt", "trajectory_online.txt", "map"} - {name}
    assert written <= {path.name for path in out.iterdir()}
    if name != "map":
        assert len(load_map(out).keyframes) >= 2


def test_the_files_tested_here_are_those_that_are_written(oracle_run, tmp_path):
    assert oracle_run().code == 0
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made - {"config.yaml", "events.jsonl", "frames.csv", "thumbnails"} == {*FILES} - {"camera.yaml"}


# A lens that is none


class Folding(SchurBundleAdjuster):
    """Asked for a lens, finds one that folds the image over itself."""

    def refine(self, bundle: Bundle, **options: Any) -> AdjustedBundle:
        refined = super().refine(bundle, **options)
        return refined if bundle.lens is None else replace(refined, lens=FOLDS)


FOLDS = CorrectionStep((0.9, 0.9), (-2.0, 0.0))
LENS = CorrectionStep((1.01, 1.01), (0.005, 0.0))


@pytest.mark.parametrize(
    ("finding", "state", "reason"),
    [
        (LensFinding(LensEvidence(), may_have_distortion=True), "given", "the lens found has no inverse"),
        (LensFinding(LensEvidence(LensState.KNOWN, 0.9, 0.01), FOLDS), "given", "the lens found has no inverse"),
        (LensFinding(LensEvidence(LensState.KNOWN, 1.01, 0.01), LENS), "known", ""),
    ],
)
def test_a_lens_that_folds_the_image_over_itself_costs_no_file(
    oracle_run, tmp_path, monkeypatch, finding, state, reason
):
    monkeypatch.setattr("slam.mapping.global_refinement._examine", lambda *_: finding)
    monkeypatch.setattr(f"{__name__}.SchurBundleAdjuster", Folding)
    ended, out = oracle_run(), tmp_path / "out"
    assert ended.code == 0, ended.err
    assert len(read_tum(out / "trajectory.txt")) > 30
    report = json.loads((out / "report.json").read_text())
    assert (report["lens"]["state"], report["lens"]["reason"]) == (state, reason)
    assert len(load_map(out).keyframes) >= 2
    assert (out / "camera.yaml").exists() == (state == "known")
    if state == "known":
        assert load_camera(out / "camera.yaml").mean_focal == pytest.approx(1.01 * CAMERA.mean_focal, rel=1e-3)


def test_one_wish_to_stop_while_finishing_and_another_leave_the_map_as_it_stands(oracle_run, tmp_path, monkeypatch):
    finish = Slam.finish

    def interrupted(self: Slam, **options: Any) -> Any:
        if not options["interrupted"]:
            raise KeyboardInterrupt
        return finish(self, **options)

    monkeypatch.setattr(Slam, "finish", interrupted)
    ended = oracle_run()
    assert ended.code == 130
    assert json.loads((tmp_path / "out" / "report.json").read_text())["status"] == "interrupted"
    assert len(load_map(tmp_path / "out").keyframes) >= 2


def test_finishing_twice_gives_the_same_and_no_frame_comes_after_it():
    made = world()
    events: list[Any] = []
    slam = oracle_build(made)(SlamConfig(), observers=[events.append])
    frames = list(made.frames())
    for frame in frames[:-1]:
        slam.step(frame)
    result = slam.finish()
    count = len(events)
    assert slam.finish() is result
    assert slam.abort() is result
    assert len(events) == count
    with pytest.raises(RuntimeError, match="the run is finished"):
        slam.step(frames[-1])

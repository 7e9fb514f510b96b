"""Keyframes inserted in a second thread: the same bytes however fast it is, and every promise of a run kept."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invariants import check_live, check_map
from oracle import OraclePredictor, OracleTracker, OracleWorld, room_path, room_points
from scipy.spatial.transform import RigidTransform
from test_run_failures import OracleSource

from relocalizer.retrieval import FaissRetriever
from slam.background_mapping import GAP_FRACTION, TAKEN_UP_AFTER, BackgroundMapping
from slam.components.assembly import Components
from slam.config.schema import SlamConfig
from slam.evaluation.metrics import evaluate
from slam.events import Event, FrameProcessed, KeyframeAdded, LandmarksUpdated, Relocalized, TrackingLost
from slam.keyframe_processor import KeyframeProcessor
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
from slam.mapping.bundle import AdjustedBundle, Bundle
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster
from slam.result import SlamResult
from slam.run import runner
from slam.system import Slam
from slam.tracking.frame_tracker import FrameTracker
from slam.tracking.tracked_map import MapSnapshot

FRAMES = 60


class Adjuster(SchurBundleAdjuster):
    """Calls `on_call` with the number of each call in the mapping thread, from 0, before it adjusts."""

    def __init__(self, on_call: Callable[[int], None] = lambda n: None) -> None:
        super().__init__()
        self._on_call, self._calls = on_call, 0

    def refine(self, bundle: Bundle, **options: Any) -> AdjustedBundle:
        if threading.current_thread() is not threading.main_thread():
            self._calls += 1
            self._on_call(self._calls - 1)
        return super().refine(bundle, **options)


def world_of(poses: list[RigidTransform], *, blind: frozenset[int] = frozenset()) -> OracleWorld:
    made = OracleWorld(poses, room_points(np.random.default_rng(3), 1000), blind=blind)
    made.descriptors[:] = np.abs(made.descriptors)  # as a map can keep them
    return made


@pytest.fixture(scope="module")
def world() -> OracleWorld:
    return world_of(room_path(400)[:FRAMES])


def config_of(mode: str) -> SlamConfig:
    return SlamConfig.model_validate(
        {"tracking": {"mapping_thread": mode}, "bundle_adjustment": {"final_rounds": 1, "calibrate": "never"}}
    )


def slam_of(world: OracleWorld, mode: str, adjuster: SchurBundleAdjuster | None = None, **options: Any) -> Slam:
    return Slam(
        config_of(mode),
        Components(
            predictor=OraclePredictor(world),
            tracker=OracleTracker(world, max_features=250),
            retriever=FaissRetriever(),
            optimizer=GtsamOptimizer(),
            adjuster=adjuster or Adjuster(),
        ),
        **options,
    )


def run(world: OracleWorld, mode: str, adjuster: SchurBundleAdjuster | None = None) -> tuple[SlamResult, list[Event]]:
    events: list[Event] = []
    slam = slam_of(world, mode, adjuster, observers=[events.append])
    for frame in world.frames():
        slam.step(frame)
    return slam.finish(), events


def bytes_of(result: SlamResult) -> tuple[bytes, bytes, bytes]:
    return (
        result.trajectory.world_from_cam.tobytes(),
        result.online.world_from_cam.tobytes(),
        result.landmark_points.tobytes(),
    )


def published_after(events: list[Event]) -> dict[int, int]:
    """After how many frames the event of each keyframe came, by its frame; those of the initial pair are left out."""
    newest, found = -1, {}
    for event in events:
        if isinstance(event, FrameProcessed):
            newest = event.frame.index
        if isinstance(event, KeyframeAdded) and "first pair" not in event.reason:
            found[event.keyframe.frame_index] = newest + 1 - event.keyframe.frame_index
    return found


@contextmanager
def busy_thread() -> Iterator[None]:
    """Another thread that holds Python's lock as much as it can."""
    over = threading.Event()

    def spin() -> None:
        while not over.is_set():
            sum(range(1000))

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def fixed(world: OracleWorld) -> tuple[SlamResult, list[Event]]:
    return run(world, "fixed")


# --- the same bytes ------------------------------------------------------------------------------------


def test_a_slow_mapping_thread_and_a_busy_machine_give_the_same_bytes(world, fixed) -> None:
    with busy_thread():
        slow, _ = run(world, "fixed", Adjuster(lambda n: time.sleep(0.05 * (n % 2))))
    assert bytes_of(slow) == bytes_of(fixed[0])


def test_a_keyframe_is_taken_up_a_fixed_number_of_frames_later_or_when_it_is_needed(fixed) -> None:
    found = published_after(fixed[1])
    indices = [event.keyframe.frame_index for event in fixed[1] if isinstance(event, KeyframeAdded)]
    gaps = dict(zip(indices[1:], np.diff(indices).tolist(), strict=True))
    due = {index: min(TAKEN_UP_AFTER, int(GAP_FRACTION * gaps[index])) for index in found}
    assert found == {index: frames if frames > 1 else 0 for index, frames in due.items()}
    assert len([frames for frames in found.values() if frames]) > 4


def test_a_program_that_calls_step_has_no_mapping_thread_and_poses_as_good_as_with_it(world, fixed) -> None:
    alone, events = run(world, "auto")
    assert set(published_after(events).values()) == {0}
    errors = [evaluate(result.trajectory, world.ground_truth).ate_sim3.rmse for result in (alone, fixed[0])]
    assert len(fixed[0].trajectory) == len(alone.trajectory) == FRAMES
    assert errors[1] < max(1.2 * errors[0], 0.001 * world.ground_truth.length)


def test_losing_the_camera_waits_for_the_map_and_gives_the_same_bytes() -> None:
    world = world_of(room_path(240)[:50], blind=frozenset(range(24, 28)))
    (first, events), (second, _) = run(world, "fixed"), run(world, "fixed", Adjuster(lambda n: time.sleep(0.02)))
    assert [event for event in events if isinstance(event, TrackingLost)]
    assert [event for event in events if isinstance(event, Relocalized)]
    assert bytes_of(first) == bytes_of(second)


def test_a_live_camera_that_was_lost_is_followed_on(monkeypatch) -> None:
    world = world_of(room_path(240)[:50], blind=frozenset(range(24, 28)))
    started: list[str] = []
    start = BackgroundMapping.start
    monkeypatch.setattr(
        BackgroundMapping, "start", lambda self, new, *rest: (started.append(new.reason), start(self, new, *rest))[1]
    )
    result, events = run(world, "live")
    back = next(event.frame_index for event in events if isinstance(event, Relocalized))
    assert sum(index >= back for index in result.frame_indices.tolist()) >= 48 - back
    assert any(reason.startswith("relocalized") for reason in started)


# --- events --------------------------------------------------------------------------------------------


def test_observers_are_called_in_the_callers_thread_and_in_order(world, fixed) -> None:
    threads: set[int] = set()
    slam = slam_of(world, "fixed", observers=[lambda event: threads.add(threading.get_ident())])
    for frame in world.frames():
        slam.step(frame)
    slam.abort()
    assert threads == {threading.get_ident()}
    events = fixed[1]
    frames = [event.frame.index for event in events if isinstance(event, FrameProcessed)]
    assert frames == list(range(FRAMES))
    added = [event.keyframe.frame_index for event in events if isinstance(event, KeyframeAdded)]
    assert added == sorted(added)
    known: set[int] = set()
    for event in events:
        if isinstance(event, KeyframeAdded):
            known.add(event.keyframe.id)
        if isinstance(event, FrameProcessed) and event.world_from_cam is not None:
            assert event.keyframe_id in known
        if isinstance(event, LandmarksUpdated):
            assert event.frame_index <= FRAMES


# --- the end of a run ----------------------------------------------------------------------------------


def stepped_to_a_keyframe(slam: Slam, world: OracleWorld, after: int = 20) -> int:
    """Step until a keyframe has just been started in the thread; the index of its frame."""
    was_busy = True
    for frame in world.frames():
        slam.step(frame)
        if frame.index > after and slam._frame_processor.background.is_busy and not was_busy:
            return frame.index
        was_busy = slam._frame_processor.background.is_busy
    raise AssertionError("no keyframe was started")


@pytest.mark.parametrize("end", [Slam.finish, Slam.abort])
def test_the_end_waits_for_the_keyframe_and_records_every_frame(world, end) -> None:
    slam = slam_of(world, "fixed", Adjuster(lambda n: time.sleep(0.05)))
    last = stepped_to_a_keyframe(slam, world)
    result = end(slam)
    assert last in {keyframe.frame_index for keyframe in result.graph.keyframes.values()}
    assert result.frame_indices.tolist() == list(range(last + 1))
    check_live(slam)
    check_map(slam)


def test_saving_the_map_on_the_way_waits_for_the_keyframe_and_changes_nothing(world, fixed, tmp_path: Path) -> None:
    slam = slam_of(world, "fixed")
    for frame in world.frames():
        slam.step(frame)
        if slam._frame_processor.background.is_busy and frame.index > 40:
            saved = slam.saved_map()
            assert len(saved.keyframes) == len(slam._map.graph.keyframes)
    slam.save_map(tmp_path / "map")
    assert bytes_of(slam.finish()) == bytes_of(fixed[0])


class Boom(Exception):
    """What is made to go wrong."""


def fail_from(n: int) -> Callable[[int], None]:
    def on_call(call: int) -> None:
        if call == n:
            raise Boom("mapping")

    return on_call


def last_frame_without_exception(slam: Slam, world: OracleWorld) -> int:
    for frame in world.frames():
        try:
            slam.step(frame)
        except Boom:
            return frame.index - 1
    raise AssertionError("nothing went wrong")


@pytest.mark.parametrize("mode", ["fixed", "live"])
def test_an_exception_in_the_thread_comes_out_of_a_step_and_takes_only_its_keyframe_along(world, mode) -> None:
    slam = slam_of(world, mode, Adjuster(fail_from(2)))
    stepped = last_frame_without_exception(slam, world)
    slam.remove_incomplete()
    check_map(slam)
    result = slam.finish()
    assert 10 < stepped < FRAMES - 1
    assert result.frame_indices.tolist() == list(range(stepped + 1))


def test_a_run_keeps_everything_before_an_exception_in_the_thread(world) -> None:
    outcome = runner.run(OracleSource(world), slam_of(world, "fixed", Adjuster(fail_from(2))))
    [failure] = outcome.failures
    assert isinstance(failure.error, Boom)
    assert len(outcome.result.trajectory) == outcome.frames


@pytest.mark.parametrize(
    ("part", "method"),
    [
        (threading.Thread, "start"),
        (BackgroundMapping, "start"),
        (BackgroundMapping, "record"),
        (BackgroundMapping, "take_up"),
        (FrameTracker, "detach"),
        (FrameTracker, "attach"),
        (MapSnapshot, "points_world"),
        (KeyframeProcessor, "insert"),
        (KeyframeProcessor, "link"),
    ],
)
def test_a_run_keeps_everything_before_an_exception_around_the_thread(world, monkeypatch, part, method) -> None:
    calls, real = [0], getattr(part, method)

    def failing(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise Boom(method)
        return real(*arguments, **options)

    monkeypatch.setattr(part, method, failing)
    slam = slam_of(world, "fixed")
    outcome = runner.run(OracleSource(world), slam)
    [failure] = outcome.failures
    assert isinstance(failure.error, Boom)
    assert outcome.frames > 5
    assert len(outcome.result.trajectory) >= outcome.frames - TAKEN_UP_AFTER
    check_map(slam)


def interrupt(times: int, at_call: int) -> Callable[[int], None]:
    """Ctrl-C while a keyframe is being inserted."""

    def on_call(call: int) -> None:
        for _ in range(times if call == at_call else 0):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    return on_call


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_run_has_the_keyframe_that_was_being_inserted(world, times) -> None:
    slam = slam_of(world, "fixed", Adjuster(interrupt(times, at_call=2)))
    outcome = runner.run(OracleSource(world), slam)
    assert outcome.interrupted
    assert not outcome.failures
    assert 10 < len(outcome.result.trajectory) < FRAMES
    assert set(outcome.result.frame_indices.tolist()) >= set(range(outcome.frames - 1))
    check_map(slam)


# --- a live camera -------------------------------------------------------------------------------------


def test_live_frames_get_poses_while_a_keyframe_is_inserted_and_it_is_taken_up_when_it_is_there(world) -> None:
    release, events = threading.Event(), list[Event]()
    slam = slam_of(world, "live", Adjuster(lambda n: release.wait(30) and None), observers=[events.append])
    frames = world.frames()
    for frame in frames:
        slam.step(frame)
        if slam._frame_processor.background.is_busy:
            break
    before = sum(isinstance(event, KeyframeAdded) for event in events)
    results = [slam.step(next(frames)) for _ in range(3)]
    assert all(result.world_from_cam is not None for result in results)
    assert sum(isinstance(event, KeyframeAdded) for event in events) == before
    release.set()
    slam._frame_processor.background.wait()
    slam.step(next(frames))
    assert sum(isinstance(event, KeyframeAdded) for event in events) == before + 1
    slam.abort()


def test_live_and_fixed_find_the_same_path(world) -> None:
    result, _ = run(world, "live")
    assert len(result.trajectory) >= FRAMES - 2
    assert evaluate(result.trajectory, world.ground_truth).ate_sim3.rmse < 0.002 * world.ground_truth.length


def test_frames_that_only_get_poses_in_a_map_start_no_thread(world, monkeypatch) -> None:
    world = world_of(world.poses[:25])
    mapped = slam_of(world, "off")
    for frame in world.frames():
        mapped.step(frame)
    mapped.abort()
    slam = slam_of(world, "live", start_map=mapped.saved_map(), localize_only=True)
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail(f"a thread is started: {thread.name}"))
    results = [slam.step(frame) for frame in world.frames()]
    assert sum(result.is_tracked for result in results) > 20

"""The panels of the Rerun view that explain decisions: read back from recordings of made-up events."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import rerun as rr
from test_rerun_viewer import (
    CAMERA,
    FRAME_NS,
    LINUX,
    START_NS,
    a_run,
    column,
    edge_event,
    finished_event,
    frame_event,
    keyframe_event,
    landmarks_event,
    pose_at,
    recorded,
    rerun_command,
    sentences,
    strips,
    viewer_of,
)

from relocalizer.errors import ConfigError
from relocalizer.geometry import Similarity
from relocalizer.interfaces import NoEstimate, PairEstimate
from slam.cli.view import _replay_events
from slam.evaluation.trajectory import Trajectory
from slam.events import (
    FrameProcessed,
    GraphOptimized,
    LandmarksUpdated,
    LoopExamined,
    PairRelated,
    PlaceAttempt,
    RelocalizationTried,
    RunFinished,
)
from slam.map.edge_residuals import EdgeResiduals, residuals_at
from slam.map.frame_measurement import FrameMeasurement, Gate
from slam.map.image_points import MatchedPoints, TrackedPoints
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.map.tracking_status import TrackingState
from slam.viz import canvas, map_view, recording_output, viewer_process
from slam.viz.layout import TABS, blueprint
from slam.viz.rerun_viewer import RerunViewer, open_if_possible
from slam.viz.view_mode import ViewKind, ViewMode
from slam.viz.viewer_process import ViewerNotStarted


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """Rerun only warns of wrong shapes unless asked otherwise."""
    rr.set_strict_mode(True)
    yield
    rr.set_strict_mode(False)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "run.rrd"


def image_of(level: int) -> np.ndarray:
    return np.full((CAMERA.height, CAMERA.width, 3), level, np.uint8)


def keyframe(n: int, k: int, level: int = 0, similarity: float = 0.5) -> Any:
    event = keyframe_event(n, k)
    angle = np.arccos(similarity) * n
    descriptor = np.array([np.cos(angle), np.sin(angle)], np.float32)
    return replace(event, image=image_of(level), keyframe=replace(event.keyframe, descriptor=descriptor))


def examined(i: int, j: int, k: int, *, accepted: bool) -> LoopExamined:
    gates = (
        Gate(name="similarity", value=0.31, limit=0.2, passed=True),
        Gate(name="landmarks that agree", value=41 if accepted else 12, limit=30, passed=accepted),
    )
    pixels = np.array([[10, 12], [30, 20], [50, 40]], np.float32)
    matches = MatchedPoints(pixels, pixels + 2, np.array([True, True, False]))
    reason = "" if accepted else "12 landmarks agree, 30 needed"
    return LoopExamined(frame_index=k, i=i, j=j, is_accepted=accepted, reason=reason, gates=gates, matches=matches)


def test_a_loop_candidate_shows_both_images_their_matches_and_its_tests(record: Path) -> None:
    events = [
        keyframe(0, 0, 40), keyframe(1, 5, 200), keyframe(2, 9, 120),
        examined(0, 1, 5, accepted=False), examined(0, 2, 9, accepted=True),
    ]  # fmt: skip
    recorded(record, events)
    blobs = column(record, "/loops/pair", "EncodedImage:blob")
    assert [time for time, _ in blobs] == [5, 9]
    both = cv2.imdecode(np.array(blobs[0][1][0], np.uint8), cv2.IMREAD_GRAYSCALE)
    assert both is not None
    assert both.shape == (CAMERA.height, 2 * CAMERA.width)
    assert both[:, : CAMERA.width].mean() == pytest.approx(40, abs=4)
    assert both[:, CAMERA.width :].mean() == pytest.approx(200, abs=4)
    _, inliers = column(record, "/loops/pair/inliers", "LineStrips2D:strips")[0]
    _, outliers = column(record, "/loops/pair/outliers", "LineStrips2D:strips")[0]
    np.testing.assert_allclose(inliers[0], [[10.5, 12.5], [CAMERA.width + 12.5, 14.5]])
    assert (len(inliers), len(outliers)) == (2, 1)
    refused, accepted = (value[0] for _, value in column(record, "/loops/table", "TextDocument:text"))
    assert "**refused**: 12 landmarks agree, 30 needed" in refused
    assert "| landmarks that agree | 12 | 30 | FAILED |" in refused
    assert "Keyframe 2 at the place of keyframe 0: **accepted**" in accepted
    assert "| similarity | 0.31 | 0.2 | passed |" in accepted


def test_each_candidate_of_one_frame_can_be_shown(record: Path) -> None:
    candidates = [examined(n, 3, 9, accepted=False) for n in range(3)]
    recorded(record, [*(keyframe(n, n) for n in range(4)), *candidates, frame_event(10)])
    assert [t for t, _ in column(record, "/loops/table", "TextDocument:text", timeline="loop")] == [0, 1, 2]
    assert column(record, "/world/camera", "Transform3D:translation", timeline="loop")[0][0] is None


def test_without_images_a_candidate_is_a_table(record: Path) -> None:
    recorded(record, [keyframe_event(0, 0), keyframe_event(1, 5), examined(0, 1, 5, accepted=False)])
    assert column(record, "/loops/pair", "EncodedImage:blob") == []
    assert len(column(record, "/loops/table", "TextDocument:text")) == 1


def residuals(squared: list[float], weights: list[float]) -> EdgeResiduals:
    ends = np.array([[0, 1], [1, 2], [0, 2]], np.int64)
    return EdgeResiduals(ends, np.array([False, False, True]), np.array(squared), np.array(weights))


def test_edges_show_their_residuals_before_and_after_an_optimization(record: Path) -> None:
    poses = {n: Similarity.from_rigid(pose_at(n)) for n in range(3)}
    solved = GraphOptimized(
        frame_index=2, world_from_keyframe=poses, error_before=30.0, error_after=2.0, cause="loop 0-2",
        before=residuals([1.0, 2.0, 60.0], [1, 1, 1]), after=residuals([3.0, 4.0, 5.0], [1, 1, 0]),
    )  # fmt: skip
    edges = [edge_event(0, 1, EdgeKind.ODOMETRY, 1), edge_event(0, 2, EdgeKind.LOOP, 2)]
    recorded(record, [*(keyframe(n, n) for n in range(3)), *edges, solved])
    [(_, squared)] = column(record, "/world/graph/after/loop", "chi_square")
    assert squared == pytest.approx([5.0])
    [(_, before)] = column(record, "/world/graph/before/loop", "chi_square")
    assert before == pytest.approx([60.0])
    [(_, landmarks)] = column(record, "/world/graph/after/odometry", "landmarks")
    assert sorted(landmarks) == [-1, 42]
    [(_, labels)] = column(record, "/world/graph/after/loop", "LineStrips3D:labels")
    assert labels == ["0-2: chi-square 5.00, weight 0.00"]
    [(_, colors)] = column(record, "/world/graph/after/loop", "LineStrips3D:colors")
    [(_, distorted)] = column(record, "/world/graph/before/loop", "LineStrips3D:colors")
    assert max((colors[0] >> shift) & 255 for shift in (8, 16, 24)) < 60  # an edge of no weight is dark
    assert (distorted[0] >> 24) & 255 > 200  # one that does not fit is red
    [(_, table)] = column(record, "/graph/table", "TextDocument:text")
    assert "| 0-2 | loop | 60.00 | 5.00 | 0.00 |" in table[0]
    assert len(column(record, "/world/graph/covariance", "Ellipsoids3D:half_sizes")) == 1


def test_the_residual_of_an_edge_is_that_of_the_optimizer() -> None:
    """One component at a time, small enough to check by hand."""
    edge = Edge(
        i=0, j=1, i_from_j=Similarity(np.eye(3), np.array([1.0, 0, 0]), 1.0), sigmas=np.full(7, 0.1),
        kind=EdgeKind.LOOP, evidence_fraction=0.5,
    )  # fmt: skip
    poses = {0: Similarity.identity(), 1: Similarity(np.eye(3), np.array([1.2, 0, 0]), 1.0)}
    found = residuals_at([edge], np.ones(1), poses)
    assert found.squared == pytest.approx([0.5 * (0.2 / 0.1) ** 2])
    poses = {0: Similarity.identity(), 1: Similarity(np.eye(3), np.array([1.0, 0, 0]), np.exp(0.3))}
    assert residuals_at([edge], np.ones(1), poses).squared == pytest.approx([0.5 * 9.0])


def estimate(turn: float, direction: tuple[float, float, float] = (1.0, 0.0, 0.0)) -> PairEstimate:
    rotation = np.asarray(cv2.Rodrigues(np.array([0.0, np.radians(turn), 0.0]))[0])
    return PairEstimate(
        i_from_j_rotation=rotation, i_from_j_direction=np.array(direction), confidence=0.8, inliers=77,
        rotation_sigma_rad=np.radians(0.5), direction_sigma_rad=np.radians(4.0),
    )  # fmt: skip


def test_the_sigma_of_the_scale_is_plotted_from_keyframe_to_keyframe(record: Path) -> None:
    edges = [edge_event(i, j, EdgeKind.ODOMETRY, j) for i, j in ((0, 1), (0, 2), (1, 2))]
    recorded(record, [*(keyframe(n, n) for n in range(3)), *edges, edge_event(0, 2, EdgeKind.LOOP, 2)])
    assert len(column(record, "/plots/depth/scale_sigma", "Scalars:scalars")) == 2


def test_the_predictor_is_compared_with_the_final_map_and_with_the_truth(record: Path) -> None:
    still = Similarity.identity()
    beside = Similarity(np.eye(3), np.array([2.0, 0, 0]), 1.0)
    asked = PairRelated(frame_index=3, i=0, j=1, purpose="odometry", estimate=estimate(2.0))
    refused = PairRelated(frame_index=4, i=0, j=1, purpose="loop", estimate=NoEstimate("9 matches (needs 20)"))
    moved = GraphOptimized(
        frame_index=5, world_from_keyframe={0: still, 1: beside}, error_before=1.0, error_after=0.5, cause="loop"
    )
    poses = np.array([np.eye(4), np.eye(4)])
    poses[1, :3, 3] = [0, 0, 1]
    truth = Trajectory(START_NS + np.array([0, 3]) * FRAME_NS, poses)
    end = RunFinished(timestamps_ns=truth.timestamps_ns, frame_indices=np.array([0, 3]), world_from_cam=poses)
    recorded(record, [keyframe(0, 0), keyframe(1, 3), asked, refused, moved, end], truth)
    assert column(record, "/predictor/rotation/map", "Scalars:scalars") == [(3, [pytest.approx(2.0)])]
    assert column(record, "/predictor/direction/map", "Scalars:scalars") == [(3, [pytest.approx(0.0, abs=1e-4)])]
    assert column(record, "/predictor/direction/truth", "Scalars:scalars") == [(3, [pytest.approx(90.0)])]
    assert column(record, "/predictor/rotation/sigma", "Scalars:scalars")[0][1] == [pytest.approx(0.5)]
    tables = [value[0] for _, value in column(record, "/predictor/table", "TextDocument:text")]
    assert "no estimate: 9 matches (needs 20)" in tables[1]
    assert "| 0-1 | odometry | 2.00 | 0.50 | 0.00 | 4.00 | 0.80 | 2.00 | 90.00 |" in tables[2]


def test_a_frame_shows_the_ages_and_the_residuals_of_its_points(record: Path) -> None:
    pixels = np.array([[10, 10], [20, 20], [30, 30]], np.float32)
    reprojected = np.array([[11, 10], [np.nan, np.nan], [30, 28]], np.float32)
    points = TrackedPoints(pixels, reprojected, np.array([0, 12, 90]), np.array([True, False, True]))
    measurement = FrameMeasurement(brightness=88.0, sharpness=500.0, moved_px=4.5, residual_px=0.3)
    gates = (Gate(name="landmarks left", value=0.7, limit=0.4, passed=False),)
    recorded(record, [frame_event(3, points=points, measurement=measurement, keyframe_criteria=gates)])
    [(_, vectors)] = column(record, "/world/camera/image/residuals", "Arrows2D:vectors")
    np.testing.assert_allclose(vectors, [[10, 0], [0, -20]])  # magnified ten times
    [(_, ages)] = column(record, "/world/camera/image/ages", "age_frames")
    assert ages == [0, 12, 90]
    [(_, counts)] = column(record, "/tracking/residual_histogram", "BarChart:values")
    assert np.sum(counts[0]["buffer"][1] if isinstance(counts[0]["buffer"], tuple) else counts[0]["buffer"]) == 2
    assert column(record, "/plots/motion/moved", "Scalars:scalars") == [(3, [4.5])]
    assert column(record, "/keyframes/criteria/landmarks_left", "Scalars:scalars") == [(3, [pytest.approx(0.5)])]


def test_the_similarity_of_the_keyframes_is_a_heat_map_with_the_loops_in_it(record: Path) -> None:
    events = [keyframe(n, n) for n in range(6)]
    loops = [examined(0, 5, 5, accepted=True), examined(1, 5, 5, accepted=False)]
    recorded(record, [*events, *loops, a_run(frames=6)[-1]])
    _, png = column(record, "/keyframes/similarity", "EncodedImage:blob")[-1]
    image = cv2.imdecode(np.array(png[0], np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape[:2] == (6, 6)
    assert image[0, 0].sum() > image[0, 1].sum() > image[0, 2].sum()  # brighter where keyframes are more alike
    _, accepted = column(record, "/keyframes/similarity/accepted", "Points2D:positions")[-1]
    np.testing.assert_allclose(accepted, [[0.5, 5.5]])


def test_a_relocalization_shows_the_places_tried_and_why_not(record: Path) -> None:
    tried = (
        PlaceAttempt(keyframe_id=0, similarity=np.nan, landmarks=7, reason="7 landmarks matched, 12 needed"),
        PlaceAttempt(
            keyframe_id=1, similarity=0.4, landmarks=30, reason="", direction_world=(0.0, 0.0, 1.0), confidence=0.8
        ),
    )
    matches = MatchedPoints(np.full((4, 2), 9, np.float32), np.full((4, 2), 11, np.float32), np.ones(4, bool))
    found = RelocalizationTried(
        frame_index=6, timestamp_ns=START_NS + 6 * FRAME_NS, keyframe_id=1, attempts=tried, matches=matches,
        world_from_cam=pose_at(6),
    )  # fmt: skip
    recorded(record, [frame_event(0), keyframe(0, 0), keyframe(1, 2, 90), found, frame_event(6)])
    [(_, table)] = column(record, "/relocalization/table", "TextDocument:text")
    assert "### Frame 6: found at keyframe 1" in table[0]
    assert "| 0 |  |  | 7 | 7 landmarks matched, 12 needed |" in table[0]
    assert "| 1 | 0.400 | 0.800 | 30 | found |" in table[0]
    [(_, found_at)] = column(record, "/world/relocalization/found", "Points3D:positions")
    np.testing.assert_allclose(found_at, [pose_at(6).translation], atol=1e-6)
    [(_, rays)] = column(record, "/world/relocalization/directions", "LineStrips3D:strips")
    step = np.array(rays[0][1]) - rays[0][0]
    np.testing.assert_allclose(step / np.linalg.norm(step), [0, 0, 1], atol=1e-6)
    assert len(column(record, "/relocalization/pair", "EncodedImage:blob")) == 1


def test_attempts_in_vain_send_few_images(record: Path) -> None:
    in_vain = (PlaceAttempt(keyframe_id=0, similarity=0.1, landmarks=0, reason="no"),)
    events: list[Any] = [keyframe(0, 0)]
    for k in range(1, 26):
        time_ns = START_NS + k * FRAME_NS
        none = MatchedPoints.none()
        events.append(
            RelocalizationTried(frame_index=k, timestamp_ns=time_ns, keyframe_id=-1, attempts=in_vain, matches=none)
        )
        events.append(frame_event(k, state=TrackingState.LOST, reason="dark"))
    recorded(record, events)
    assert len(column(record, "/relocalization/table", "TextDocument:text")) == 25
    assert len(column(record, "/relocalization/pair", "EncodedImage:blob")) == 3


def test_images_are_sent_ten_times_a_second_and_poses_always(record: Path) -> None:
    recorded(record, [frame_event(k) for k in range(40)])  # two seconds
    assert len(column(record, "/world/camera/image", "EncodedImage:blob")) == 20
    assert len(column(record, "/world/camera", "Transform3D:translation")) == 40


def test_a_refused_loop_is_a_debug_line_and_a_loss_an_error(record: Path) -> None:
    recorded(record, a_run())
    levels = [value[0] for _, value in column(record, "/log", "TextLog:level")]
    assert dict(zip(sentences(record), levels, strict=True))["loop 1 - 5 rejected: 9 inliers, 20 needed"] == "DEBUG"


def test_the_layout_has_a_tab_for_every_question() -> None:
    tabs = [view.name for view in blueprint().root_container.contents]
    assert tuple(tabs) == TABS
    assert TABS == ("Live", "Tracking", "Keyframes", "Loops", "Graph", "Predictor", "Relocalization", "Plots", "Log")


def landmarks_with_sigmas(k: int, count: int) -> LandmarksUpdated:
    """Landmarks on the z axis, each with a standard deviation of a tenth of its depth, the last far larger."""
    points = np.zeros((count, 3))
    points[:, 2] = 1.0 + np.arange(count) / count
    sigmas = 0.1 * points
    sigmas[-1] = [0.0, 0.0, 1e6]
    colors = np.zeros((count, 3), np.uint8)
    return LandmarksUpdated(
        frame_index=k, ids=np.arange(count), points_world=points, colors=colors, depth_sigmas=sigmas
    )  # fmt: skip


def test_the_uncertainty_of_a_landmark_is_a_line_of_one_sigma_to_both_sides(record: Path) -> None:
    recorded(record, [keyframe(0, 0), landmarks_with_sigmas(0, 10), finished_event(range(1))])
    lines = strips(record, "/world/uncertainty")
    assert len(lines) == 10
    assert np.allclose(lines[5], [[0, 0, 1.35], [0, 0, 1.65]])
    assert np.ptp(lines[9]) < 10.0  # a depth that is hardly known draws no line to the end of the world


def test_the_uncertainty_is_sent_when_the_map_grew_and_at_the_end_and_is_bounded(record: Path) -> None:
    grown = [landmarks_with_sigmas(0, 5_000 + 100 * n) for n in range(20)]
    events = [keyframe(0, 0)]
    for n, event in enumerate(grown, start=1):
        events += [keyframe(n, n), event]
    recorded(record, [*events, finished_event(range(21))])
    sent = [value for _, value in column(record, "/world/uncertainty", "LineStrips3D:strips")]
    assert len(sent) == 3  # the first, 30 % more, and the last
    assert max(len(lines) for lines in sent) <= map_view.MOST_UNCERTAIN


def test_landmarks_without_sigmas_draw_none(record: Path) -> None:
    recorded(record, [keyframe(0, 0), landmarks_event(0, 10), finished_event(range(1))])
    assert column(record, "/world/uncertainty", "LineStrips3D:strips") == []


def test_the_memory_of_a_run_is_plotted_from_what_was_measured_in_it(record: Path) -> None:
    """Of a finished run that is replayed too, where this process has another memory and frames have no image."""
    events = [
        replace(
            frame_event(k),
            measurement=FrameMeasurement(memory_mb=100.0 + k),
            frame=frame_event(k).frame.without_image(),
        )
        for k in range(61)
    ]
    recorded(record, events)
    assert column(record, "/plots/memory_mb", "Scalars:scalars") == [(0, [100.0]), (30, [130.0]), (60, [160.0])]


# --- where a run is shown -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("none", ViewMode(ViewKind.NONE)),
        ("spawn", ViewMode(ViewKind.SPAWN)),
        ("web", ViewMode(ViewKind.WEB, "127.0.0.1")),
        ("web:0.0.0.0", ViewMode(ViewKind.WEB, "0.0.0.0")),
        ("connect:robot", ViewMode(ViewKind.CONNECT, "robot", 9876)),
        ("connect:10.0.0.7:9999", ViewMode(ViewKind.CONNECT, "10.0.0.7", 9999)),
        ("connect:rerun+http://robot:9877/proxy", ViewMode(ViewKind.CONNECT, "robot", 9877)),
    ],
)
def test_a_view_is_named_in_one_word(text: str, mode: ViewMode) -> None:
    assert ViewMode.parse(text) == mode


@pytest.mark.parametrize("text", ["", "window", "spawn:1", "none:x", "connect", "connect:", "connect:robot:port"])
def test_another_view_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--view {text}: expected "):
        ViewMode.parse(text)


def test_a_viewer_that_does_not_answer_is_said_at_once() -> None:
    port = viewer_process.free_port(0)
    with pytest.raises(ViewerNotStarted, match=f"--view connect:127.0.0.1:{port}: no viewer answers there"):
        viewer_of(None, view=f"connect:127.0.0.1:{port}")


@pytest.mark.skipif(not LINUX, reason="other systems always have a screen")
def test_a_run_without_a_screen_continues_and_says_so(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    said: list[str] = []
    viewer = open_if_possible(
        said.append, record=record, view="spawn", ground_truth=None, title="a test", camera=CAMERA
    )
    for event in a_run(frames=6):
        viewer(event)
    viewer.close()
    assert len(said) == 1
    assert said[0].startswith("--view spawn: there is no screen")
    assert said[0].endswith("the run continues without a viewer")
    assert len(column(record, "/world/camera", "Transform3D:translation")) == 6


@pytest.fixture
def running_viewer() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The server half of a viewer that runs already."""
    port = viewer_process.free_port(0)
    command = [viewer_process.executable(), "--serve-grpc", "--port", str(port), "--bind", "127.0.0.1"]
    process = viewer_process._started(command, port, "test")
    yield process, port
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()


def test_a_run_is_sent_to_a_viewer_that_runs_already(running_viewer: tuple[Any, int]) -> None:
    process, port = running_viewer
    viewer = viewer_of(None, view=f"connect:127.0.0.1:{port}")
    for event in a_run(frames=10):
        viewer(event)
    viewer.close()
    assert viewer.problem == ""
    assert process.poll() is None


def test_a_viewer_that_hangs_holds_up_neither_the_run_nor_the_recording(
    running_viewer: tuple[Any, int], record: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process, port = running_viewer
    monkeypatch.setattr(recording_output, "START_S", 0.3)
    monkeypatch.setattr(recording_output, "FULL", 4)
    monkeypatch.setattr(recording_output, "MOST_WAITING", 40)
    monkeypatch.setattr(rr, "unregister_shutdown", lambda: None)
    viewer = viewer_of(record, view=f"connect:127.0.0.1:{port}")
    live = viewer._outputs[1]
    process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(live._drawing, "show", lambda event: time.sleep(0.2))  # as a full sink makes it
    started = time.monotonic()
    for k in range(60):
        viewer(frame_event(k))
    assert time.monotonic() - started < 3.0
    viewer.close()
    assert live.problem == viewer.problem == "the viewer is too slow, 41 events wait for it"
    said = [entry.message for entry in caplog.records if "Rerun shows no more" in entry.message]
    assert said == [f"Rerun shows no more of this run: {viewer.problem}"]
    assert len(column(record, "/world/camera", "Transform3D:translation")) == 60
    assert rerun_command("rrd", "verify", str(record)).returncode == 0


def replay_to_slow_viewer(port: int, monkeypatch: pytest.MonkeyPatch, show: Callable[[Any], object]) -> RerunViewer:
    """A viewer with little room for waiting events that drew a replay of 60 frames by `show`."""
    monkeypatch.setattr(recording_output, "FULL", 4)
    viewer = viewer_of(None, view=f"connect:127.0.0.1:{port}")
    monkeypatch.setattr(viewer._outputs[0]._drawing, "show", show)
    _replay_events(SimpleNamespace(events=lambda: map(frame_event, range(60)), frames=60), viewer)
    viewer.close()
    return viewer


def test_a_replay_waits_for_a_slow_viewer_and_nothing_is_dropped(
    running_viewer: tuple[Any, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_output, "MOST_WAITING", 10)
    drawn: list[FrameProcessed] = []
    viewer = replay_to_slow_viewer(
        running_viewer[1], monkeypatch, lambda event: (time.sleep(0.002), drawn.append(event))
    )
    assert viewer.problem == ""
    assert [event.frame.index for event in drawn] == list(range(60))
    assert all(event.frame.image.size for event in drawn)


def test_a_replay_does_not_wait_for_a_viewer_that_hangs(
    running_viewer: tuple[Any, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_output, "START_S", 0.2)
    monkeypatch.setattr(rr, "unregister_shutdown", lambda: None)
    released = threading.Event()
    viewer = replay_to_slow_viewer(running_viewer[1], monkeypatch, lambda event: released.wait(30.0))
    released.set()
    assert viewer.problem == "the viewer takes no more data"


def test_colors_go_from_what_fits_to_what_does_not() -> None:
    from slam.viz.colors import ramp

    first, middle, last = ramp(np.array([-1.0, 0.5, 7.0]))
    assert first[2] == max(first)
    assert middle[1] == max(middle)
    assert last[0] == max(last)
    assert canvas.INLIER != canvas.OUTLIER


def test_the_example_logs_a_sensor_of_ones_own_beside_the_run(record: Path, root: Path) -> None:
    spec = importlib.util.spec_from_file_location("own_sensor", root / "examples" / "own_sensor.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(str(root / "sequences" / "room_loop"), record, 6)
    rows = column(record, "/sensors/gyroscope", "Scalars:scalars")
    assert [frame for frame, _ in rows] == list(range(6))
    assert {len(values) for _, values in rows} == {3}
    assert [frame for frame, _ in column(record, "/plots/state", "Scalars:scalars")] == list(range(6))

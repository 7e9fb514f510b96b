import logging
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rerun as rr
import rerun.chunk as rc
from scipy.spatial.transform import RigidTransform, Rotation

from relocalizer.camera import Camera
from relocalizer.errors import OutputError, UserError
from relocalizer.features import LocalFeatures
from relocalizer.geometry import Similarity, exp_so3
from slam.evaluation.trajectory import Trajectory
from slam.events import (
    EdgeAccepted,
    EdgeRejected,
    EstimateRefused,
    Event,
    FrameLocalizedLater,
    FrameProcessed,
    FramesSkipped,
    GraphOptimized,
    Initialized,
    KeyframeAdded,
    LandmarksUpdated,
    Relocalized,
    RunFinished,
    ScaleSet,
    ScaleUnobservable,
    TrackingLost,
)
from slam.map.frames import Frame, Keyframe
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.map.tracking_status import TrackingState
from slam.viz import canvas, live_view, map_view, recording_output, rerun_viewer, viewer_process
from slam.viz.layout import blueprint
from slam.viz.rerun_viewer import RerunViewer

START_NS = 1_403_636_579_763_555_584
FRAME_NS = 50_000_000
CAMERA = Camera(width=64, height=48, fx=60.0, fy=60.0, cx=31.5, cy=23.5)
LINUX = sys.platform.startswith("linux")


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """Rerun only warns of wrong shapes unless asked otherwise."""
    rr.set_strict_mode(True)
    yield
    rr.set_strict_mode(False)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "run.rrd"


def viewer_of(record: Path | None, truth: Trajectory | None = None, view: Any = "none") -> RerunViewer:
    return RerunViewer(record=record, view=view, ground_truth=truth, title="a test", camera=CAMERA)


def recorded(record: Path, events: list[Event], truth: Trajectory | None = None) -> Path:
    viewer = viewer_of(record, truth)
    for event in events:
        viewer(event)
    viewer.close()
    assert viewer.problem == ""
    return record


def pose_at(k: int) -> RigidTransform:
    """A bend, so that positions alone fix an alignment."""
    position = [3 * np.sin(k / 8), 0.2 * np.cos(k / 3), 3 - 3 * np.cos(k / 8)]
    return RigidTransform.from_components(position, Rotation.from_rotvec([0.0, k / 8, 0.02 * k]))


def frame_event(
    k: int, *, state: TrackingState = TrackingState.TRACKING, reason: str = "", **changes: Any
) -> FrameProcessed:
    camera = changes.pop("camera", CAMERA)
    image = changes.pop("image", np.full((camera.height, camera.width, 3), k % 200, dtype=np.uint8))
    tracked = state is TrackingState.TRACKING
    values: dict[str, Any] = {
        "world_from_cam": pose_at(k) if tracked else None,
        "keyframe_id": 0,
        "pixels": np.array([[10, 20], [30, 40], [50, 12]], dtype=np.float32),
        "track_ids": np.array([1, 2, 3]),
        "is_inlier": np.array([tracked, False, tracked]),
        "depth": 4.0 if tracked else np.nan,
        "stage_ms": {"tracks": 3.0, "final refinement": 1.5},
    }
    frame = Frame(index=k, timestamp_ns=START_NS + k * FRAME_NS, image=image, camera=camera)
    return FrameProcessed(frame=frame, state=state, reason=reason, **{**values, **changes})


def keyframe_event(n: int, k: int, pose: Similarity | None = None) -> KeyframeAdded:
    features = LocalFeatures(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32), np.zeros(0, np.float32))
    keyframe = Keyframe(
        id=n,
        frame_index=k,
        timestamp_ns=START_NS + k * FRAME_NS,
        camera=CAMERA,
        encoded=object(),
        descriptor=np.array([1.0], np.float32),
        features=features,
    )
    return KeyframeAdded(
        keyframe=keyframe, world_from_keyframe=pose or Similarity.from_rigid(pose_at(k)), reason=f"reason {n}"
    )


def edge_event(i: int, j: int, kind: EdgeKind, k: int) -> EdgeAccepted:
    edge = Edge(i=i, j=j, i_from_j=Similarity.identity(), sigmas=np.full(7, 0.1), kind=kind, inliers=42)
    return EdgeAccepted(edge=edge, frame_index=k)


def landmarks_event(k: int, count: int) -> LandmarksUpdated:
    points = np.random.default_rng(k).normal(size=(count, 3))
    colors = np.tile(np.array([[200, 100, 50]], np.uint8), (count, 1))
    return LandmarksUpdated(frame_index=k, ids=np.arange(count), points_world=points, colors=colors)


def finished_event(frames: range) -> RunFinished:
    return RunFinished(
        timestamps_ns=START_NS + np.array(frames, dtype=np.int64) * FRAME_NS,
        frame_indices=np.array(frames, dtype=np.int64),
        world_from_cam=np.array([pose_at(k).as_matrix() for k in frames]).reshape(-1, 4, 4),
    )


def a_run(frames: int = 30, every: int = 5) -> list[Event]:
    """Frames, a keyframe at each fifth with an edge to the one before, a loop, a rejection, the end."""
    events: list[Event] = [Initialized(frame_indices=(0, 0), landmarks=9, parallax_deg=2.5)]
    for k in range(frames):
        if k % every == 0:
            n = k // every
            events.append(keyframe_event(n, k))
            if n:
                events.append(edge_event(n - 1, n, EdgeKind.ODOMETRY, k))
            events.append(landmarks_event(k, 10 * (n + 1)))
        events.append(frame_event(k))
    last = (frames - 1) // every
    events.append(edge_event(0, last, EdgeKind.LOOP, frames - 1))
    events.append(EdgeRejected(i=1, j=last, kind=EdgeKind.LOOP, reason="9 inliers, 20 needed", frame_index=frames - 1))
    return [*events, finished_event(range(frames))]


def column(record: Path, entity: str, component: str, timeline: str = "frame") -> list[tuple[Any, Any]]:
    """(time, value) of every row of a component, in the order they were logged."""
    rows: list[tuple[Any, Any, Any]] = []
    for chunk in rc.RrdReader(record).stream().filter(content=entity).to_chunks():
        batch = chunk.to_record_batch()
        if component in batch.schema.names:
            names = batch.schema.names
            times = batch.column(timeline).to_pylist() if timeline in names else [None] * batch.num_rows
            order = batch.column(next(name for name in names if "RowId" in name)).to_pylist()
            rows += zip(order, times, batch.column(component).to_pylist(), strict=True)
    return [(time, value) for _, time, value in sorted(rows, key=lambda row: row[0]) if value is not None]


def sentences(record: Path) -> list[str]:
    return [value[0] for _, value in column(record, "/log", "TextLog:text")]


def strips(record: Path, entity: str) -> list[np.ndarray]:
    """The strips of the last row."""
    _, value = column(record, entity, "LineStrips3D:strips")[-1]
    return [np.array(strip) for strip in value]


def rerun_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([viewer_process.executable(), *arguments], capture_output=True, text=True, check=False)


def test_a_recording_passes_reruns_own_check(record: Path) -> None:
    recorded(record, a_run())
    result = rerun_command("rrd", "verify", str(record))
    assert result.returncode == 0, result.stderr


def test_a_recording_holds_every_entity_of_a_run(record: Path) -> None:
    truth = Trajectory(START_NS + np.arange(30) * FRAME_NS, np.array([pose_at(k).as_matrix() for k in range(30)]))
    recorded(record, a_run(), truth)
    assert set(rc.RrdReader(record).store().schema().entity_paths()) >= {
        "/world",
        "/world/camera",
        "/world/camera/image",
        "/world/camera/image/tracks",
        "/world/trajectory/live",
        "/world/trajectory/optimized",
        "/world/trajectory/final",
        "/world/keyframes",
        "/world/edges/odometry",
        "/world/edges/loop",
        "/world/edges/rejected",
        "/world/landmarks",
        "/world/ground_truth",
        "/plots/tracks/tracked",
        "/plots/tracks/inliers",
        "/plots/depth/median",
        "/plots/depth/keyframe_scale",
        "/plots/error/ate",
        "/plots/time_ms/tracks",
        "/plots/time_ms/final_refinement",
        "/plots/time_ms/all",
        "/plots/state",
        "/log",
    }


def test_the_camera_is_where_the_event_put_it(record: Path) -> None:
    recorded(record, a_run())
    translations = dict(column(record, "/world/camera", "Transform3D:translation"))
    assert sorted(translations) == list(range(30))
    for k in (0, 7, 29):
        np.testing.assert_allclose(translations[k][0], pose_at(k).translation, atol=1e-6)


def test_the_camera_is_turned_as_the_event_turned_it(record: Path) -> None:
    recorded(record, a_run())
    matrices = dict(column(record, "/world/camera", "Transform3D:mat3x3"))
    by_columns = np.array(matrices[7][0]).reshape(3, 3)  # Rerun stores matrices column by column
    np.testing.assert_allclose(by_columns.T, pose_at(7).rotation.as_matrix(), atol=1e-6)


def test_time_is_in_seconds_from_the_first_frame(record: Path) -> None:
    recorded(record, [frame_event(k) for k in (4, 6)])
    times = [time for time, _ in column(record, "/world/camera", "Transform3D:translation", timeline="time")]
    assert [time.total_seconds() for time in times] == pytest.approx([0.0, 0.1])


def test_a_lost_frame_leaves_the_camera_where_it_was_last_seen(record: Path) -> None:
    lost = frame_event(2, state=TrackingState.LOST, reason="12 inliers, 20 needed")
    recorded(record, [frame_event(1), lost])
    assert [time for time, _ in column(record, "/world/camera", "Transform3D:translation")] == [1]
    assert [time for time, _ in column(record, "/world/camera/image", "EncodedImage:blob")] == [1, 2]
    assert [value for _, value in column(record, "/plots/state", "Scalars:scalars")] == [[2.0], [0.0]]
    assert sentences(record) == ["tracking", "lost: 12 inliers, 20 needed"]


def test_an_image_keeps_its_colors(record: Path) -> None:
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 250
    recorded(record, [frame_event(0, image=red)])
    _, blob = column(record, "/world/camera/image", "EncodedImage:blob")[0]
    image = cv2.imdecode(np.array(blob[0], np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    blue, green, red_back = image[20, 20]  # OpenCV's order
    assert red_back > 230
    assert max(blue, green) < 30


def test_a_large_image_is_shrunk_and_its_camera_and_points_with_it(record: Path) -> None:
    large = Camera(width=1280, height=960, fx=1000.0, fy=1000.0, cx=639.5, cy=479.5)
    recorded(record, [frame_event(0, camera=large, pixels=np.array([[639.5, 479.5]] * 3, np.float32))])
    _, blob = column(record, "/world/camera/image", "EncodedImage:blob")[0]
    image = cv2.imdecode(np.array(blob[0], np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape[:2] == (360, 480)
    _, matrix = column(record, "/world/camera/image", "Pinhole:image_from_camera")[-1]
    np.testing.assert_allclose(np.array(matrix[0]).reshape(3, 3).T, [[375, 0, 240], [0, 375, 180], [0, 0, 1]])
    _, points = column(record, "/world/camera/image/tracks", "Points2D:positions")[0]
    np.testing.assert_allclose(points[0], [240, 180])


def test_a_point_has_the_color_of_what_it_is(record: Path) -> None:
    recorded(record, [frame_event(0, state=TrackingState.INITIALIZING), frame_event(1)])
    (_, before), (_, tracked) = column(record, "/world/camera/image/tracks", "Points2D:colors")

    def packed(color: tuple[int, int, int]) -> int:
        return int.from_bytes([*color, 255], "big")

    assert before == [packed(canvas.WAITING)] * 3
    inlier, outlier = packed(canvas.INLIER), packed(canvas.OUTLIER)
    assert tracked == [inlier, outlier, inlier]


def test_every_edge_is_a_line_between_its_keyframes(record: Path) -> None:
    recorded(record, a_run())
    odometry, loops = strips(record, "/world/edges/odometry"), strips(record, "/world/edges/loop")
    assert (len(odometry), len(loops), len(strips(record, "/world/edges/rejected"))) == (5, 1, 1)
    np.testing.assert_allclose(loops[0], [pose_at(0).translation, pose_at(25).translation], atol=1e-6)


def test_newer_evidence_for_an_edge_replaces_it(record: Path) -> None:
    events = [keyframe_event(n, n) for n in range(3)]
    again = [edge_event(0, 1, EdgeKind.ODOMETRY, 2)] * 3
    recorded(record, [*events, *again, finished_event(range(3))])
    assert len(strips(record, "/world/edges/odometry")) == 1


def test_a_rejected_edge_to_an_unknown_keyframe_is_only_a_sentence(record: Path) -> None:
    refused = EdgeRejected(i=0, j=99, kind=EdgeKind.LOOP, reason="no", frame_index=0)
    recorded(record, [keyframe_event(0, 0), refused, finished_event(range(1))])
    assert strips(record, "/world/edges/rejected") == []
    assert "loop 0 - 99 rejected: no" in sentences(record)


def test_the_live_path_is_logged_piece_by_piece_and_not_again_and_again(record: Path) -> None:
    recorded(record, a_run(frames=100))
    pieces = [np.array(value[0]) for _, value in column(record, "/world/trajectory/live", "LineStrips3D:strips")]
    joined = np.concatenate([pieces[0], *(piece[1:] for piece in pieces[1:])])
    np.testing.assert_allclose(joined, [pose_at(k).translation for k in range(100)], atol=1e-5)
    assert sum(len(piece) for piece in pieces) <= 100 + len(pieces)


def test_the_live_path_breaks_where_tracking_was_lost(record: Path) -> None:
    lost = TrackingLost(frame_index=4, timestamp_ns=START_NS + 4 * FRAME_NS, reason="no tracks")
    frames = [frame_event(k) for k in range(4)]
    later = [frame_event(k) for k in range(8, 11)]
    recorded(record, [keyframe_event(0, 0), *frames, lost, *later, keyframe_event(1, 11)])
    pieces = [np.array(value[0]) for _, value in column(record, "/world/trajectory/live", "LineStrips3D:strips")]
    assert [len(piece) for piece in pieces] == [4, 3]


def test_the_line_through_the_keyframes_breaks_there_too(record: Path) -> None:
    lost = TrackingLost(frame_index=4, timestamp_ns=START_NS + 4 * FRAME_NS, reason="no tracks")
    back = Relocalized(frame_index=8, timestamp_ns=START_NS + 8 * FRAME_NS, keyframe_id=0, inliers=55, frames_lost=4)
    before, after = [keyframe_event(n, n) for n in range(3)], [keyframe_event(n, n + 6) for n in range(3, 5)]
    recorded(record, [*before, lost, back, *after, finished_event(range(4))])
    assert [len(strip) for strip in strips(record, "/world/trajectory/optimized")] == [3, 2]
    assert "relocalized at keyframe 0 with 55 inliers after 4 lost frames" in sentences(record)


def test_a_keyframe_found_afterwards_stands_in_its_place_in_time(record: Path) -> None:
    """Its id is the highest, for it became one when the run ended."""
    lost = TrackingLost(frame_index=2, timestamp_ns=START_NS + 2 * FRAME_NS, reason="no tracks")
    again = Initialized(frame_indices=(20, 21), landmarks=9, parallax_deg=2.5)
    found = FrameLocalizedLater(frame_index=1, timestamp_ns=START_NS + FRAME_NS, keyframe_id=0, inliers=31)
    early = [keyframe_event(n, k) for n, k in enumerate((0, 2, 3, 4))]
    truth = Trajectory(START_NS + np.arange(30) * FRAME_NS, np.array([pose_at(k).as_matrix() for k in range(30)]))
    events = [
        frame_event(0),
        *early,
        lost,
        again,
        keyframe_event(4, 20),
        keyframe_event(5, 21),
        found,
        keyframe_event(6, 1),
    ]
    recorded(record, [*events, finished_event(range(0))], truth)
    line = np.concatenate(strips(record, "/world/trajectory/optimized"))
    np.testing.assert_allclose(line, [pose_at(k).translation for k in (0, 1, 2, 3, 4, 20, 21)], atol=1e-6)
    drawn = strips(record, "/world/ground_truth")
    assert len(np.concatenate(drawn)) == 22
    colors = column(record, "/world/keyframes", "LineStrips3D:colors")[-1][1]
    assert [colors.index(c) for c in colors] == [0, 0, 0, 0, 0, 5, 5]


def test_optimized_keyframes_are_sent_again_where_they_moved_to(record: Path) -> None:
    events = [keyframe_event(n, n) for n in range(4)]
    moved = {n: Similarity.from_rigid(pose_at(n + 10)) for n in range(4)}
    solved = GraphOptimized(
        frame_index=3, world_from_keyframe=moved, error_before=9.0, error_after=1.25, cause="loop 0 - 3"
    )
    recorded(record, [*events, solved])
    np.testing.assert_allclose(
        strips(record, "/world/trajectory/optimized")[0], [pose_at(n + 10).translation for n in range(4)], atol=1e-6
    )
    assert sentences(record)[-1] == "graph optimized: loop 0 - 3, error 9 to 1.25"


def test_an_error_that_is_not_known_is_not_printed(record: Path) -> None:
    poses = {0: Similarity.identity()}
    solved = GraphOptimized(
        frame_index=0, world_from_keyframe=poses, error_before=np.nan, error_after=np.nan, cause="the end"
    )
    recorded(record, [keyframe_event(0, 0), solved])
    assert sentences(record)[-1] == "graph optimized: the end"


def test_keyframes_that_hardly_moved_are_not_sent_again(record: Path) -> None:
    events = [keyframe_event(n, n) for n in range(4)]
    same: Mapping[int, Similarity] = {n: Similarity.from_rigid(pose_at(n)) for n in range(4)}
    solved = GraphOptimized(frame_index=3, world_from_keyframe=same, error_before=1, error_after=1, cause="again")
    recorded(record, [*events, *[solved] * 20])
    assert len(column(record, "/world/trajectory/optimized", "LineStrips3D:strips")) == 4


def test_what_grows_with_the_map_is_sent_ever_more_rarely(record: Path) -> None:
    events: list[Event] = []
    for n in range(400):
        events += [keyframe_event(n, n), landmarks_event(n, 5)]
    recorded(record, events)
    for entity, component in (
        ("/world/trajectory/optimized", "LineStrips3D:strips"),
        ("/world/landmarks", "Points3D:positions"),
    ):
        # Every keyframe up to 20, then each 5 %: 20 + log(400 / 20) / log(1.05).
        assert 60 <= len(column(record, entity, component)) <= 90


def test_few_rows_wait_to_be_written_however_fast_the_frames_come(record: Path) -> None:
    """What waits takes memory, and how much comes until the next write must not depend on the clock."""
    recorded(record, [frame_event(k) for k in range(300)])
    chunks = rc.RrdReader(record).stream().filter(content="/plots/tracks/tracked").to_chunks()
    rows = [chunk.num_rows for chunk in chunks if not chunk.is_static]
    assert sum(rows) == 300
    assert max(rows) <= recording_output.FILE_ROWS + 1


def test_the_last_landmarks_are_there_at_the_end(record: Path) -> None:
    recorded(record, [keyframe_event(0, 0), landmarks_event(0, 5), landmarks_event(0, 77), finished_event(range(1))])
    assert len(column(record, "/world/landmarks", "Points3D:positions")[-1][1]) == 77


def test_a_huge_map_is_thinned(record: Path) -> None:
    recorded(record, [keyframe_event(0, 0), landmarks_event(0, 120_001)])
    shown = len(column(record, "/world/landmarks", "Points3D:positions")[-1][1])
    assert 25_000 < shown <= map_view.MAX_LANDMARKS


def test_a_keyframes_frustum_follows_its_size(record: Path) -> None:
    twice = Similarity(np.eye(3), np.array([0.0, 0.0, 7.0]), 2.0)
    recorded(record, [frame_event(0), keyframe_event(0, 0, Similarity.identity()), keyframe_event(1, 1, twice)])
    one, two = strips(record, "/world/keyframes")
    depth = live_view.FRUSTUM * 4.0  # of the median depth in the first frame
    assert one[:, 2].max() == pytest.approx(depth)
    assert two[:, 2].max() - 7.0 == pytest.approx(2 * depth)
    assert one[:, 0].max() == pytest.approx(depth * CAMERA.width / 2 / CAMERA.fx)


def test_ground_truth_is_drawn_in_the_maps_place_and_size(record: Path) -> None:
    poses = np.array([pose_at(k).as_matrix() for k in range(60)])
    elsewhere = Similarity(exp_so3([0.5, -2.0, 1.0]), np.array([10.0, 20.0, -5.0]), 7.0)
    truth = Trajectory(START_NS + np.arange(60) * FRAME_NS, poses).transformed(elsewhere)
    recorded(record, a_run(frames=30), truth)
    drawn = np.concatenate(strips(record, "/world/ground_truth"))
    np.testing.assert_allclose(drawn, poses[:30, :3, 3], atol=1e-5)  # not beyond the last frame
    assert sentences(record)[-1].startswith("ground truth, aligned by Sim(3) to 30 frames: ATE ")
    first = next(sentence for sentence in sentences(record) if "ground truth" in sentence)
    assert first.startswith("ground truth, aligned by Sim(3) to 3 keyframes")


def test_the_error_after_alignment_is_plotted_in_the_truths_unit(record: Path) -> None:
    square = np.tile(np.eye(4), (4, 1, 1))
    square[:, :3, 3] = [[1, 0, 1], [1, 0, -1], [-1, 0, -1], [-1, 0, 1]]
    stamps = START_NS + np.arange(4) * FRAME_NS
    distorted = square.copy()
    distorted[:, 1, 3] = [0.5, -0.5, 0.5, -0.5]  # up and down: no rotation, shift or size removes it
    distorted[:, :3, 3] *= 10
    truth = Trajectory(stamps, distorted)
    end = RunFinished(timestamps_ns=stamps, frame_indices=np.arange(4), world_from_cam=square)
    recorded(record, [frame_event(3), end], truth)
    # Umeyama: map = s * truth with s = sum(a.b) / sum(b.b) = 80 / 900; what is left over, in the truth's unit:
    s = 80 / 900
    rest = np.sqrt(2 * (1 - 10 * s) ** 2 + (5 * s) ** 2) / s
    assert column(record, "/plots/error/ate", "Scalars:scalars")[-1][1] == pytest.approx([rest])


@pytest.mark.parametrize("poses", [np.zeros((0, 4, 4)), np.tile(np.eye(4), (9, 1, 1))])
def test_without_motion_no_ground_truth_is_drawn(record: Path, poses: np.ndarray) -> None:
    stamps = START_NS + np.arange(len(poses)) * FRAME_NS
    recorded(record, a_run(frames=9), Trajectory(stamps, poses))
    assert column(record, "/world/ground_truth", "LineStrips3D:strips") == []


def test_the_reasons_are_in_the_log_with_their_level(record: Path) -> None:
    recorded(
        record,
        [
            Initialized(frame_indices=(0, 4), landmarks=312, parallax_deg=2.125),
            keyframe_event(0, 4),
            keyframe_event(1, 5),
            edge_event(0, 1, EdgeKind.LOOP, 5),
            EdgeRejected(i=0, j=1, kind=EdgeKind.LOOP, reason="9 inliers, 20 needed", frame_index=5),
            ScaleUnobservable(frame_index=5, reason="parallax 0.1 deg, 0.5 needed"),
            EstimateRefused(frame_index=5, reason="bundle adjustment: poses are not finite"),
            FramesSkipped(count=3, reason="a.jpg: cut off"),
            TrackingLost(frame_index=6, timestamp_ns=START_NS + 6 * FRAME_NS, reason="no tracks"),
            FrameLocalizedLater(frame_index=6, timestamp_ns=START_NS + 6 * FRAME_NS, keyframe_id=1, inliers=31),
            finished_event(range(5)),
            ScaleSet(meters_per_unit=0.25, source="2 m given between frames 0 and 5"),
        ],
    )
    levels = [value[0] for _, value in column(record, "/log", "TextLog:level")]
    assert list(zip(levels, sentences(record), strict=True)) == [
        ("INFO", "the map begins with frames 0 and 4: 312 landmarks, parallax 2.12 deg"),
        ("INFO", "keyframe 0: reason 0"),
        ("INFO", "keyframe 1: reason 1"),
        ("INFO", "loop 0 - 1 accepted with 42 inliers"),
        ("DEBUG", "loop 0 - 1 rejected: 9 inliers, 20 needed"),
        ("WARN", "scale unobservable: parallax 0.1 deg, 0.5 needed"),
        ("WARN", "an estimate was not used: bundle adjustment: poses are not finite"),
        ("WARN", "3 frames skipped: a.jpg: cut off"),
        ("ERROR", "lost: no tracks"),
        ("INFO", "frame 6, which had no pose, relocalized at keyframe 1 with 31 inliers"),
        ("INFO", "finished: 5 frames have a pose"),
        ("INFO", "one map unit is 0.25 m: 2 m given between frames 0 and 5"),
    ]


def test_a_run_without_a_map_still_ends(record: Path) -> None:
    waiting = [frame_event(k, state=TrackingState.INITIALIZING, reason="too little parallax") for k in range(3)]
    recorded(record, [*waiting, landmarks_event(2, 0), finished_event(range(0))])
    assert sentences(record)[-1] == "finished: 0 frames have a pose"


def test_segments_have_their_own_color_until_a_loop_joins_them(record: Path) -> None:
    begin = Initialized(frame_indices=(0, 1), landmarks=9, parallax_deg=2.5)
    first, second = [keyframe_event(n, n) for n in range(2)], [keyframe_event(n, n) for n in range(2, 4)]
    apart = [frame_event(0), begin, *first, begin, *second]
    recorded(record, [*apart, edge_event(1, 3, EdgeKind.LOOP, 3)])
    (*_, before, joined) = [value for _, value in column(record, "/world/keyframes", "LineStrips3D:colors")]
    assert [len(set(colors)) for colors in (before, joined)] == [2, 1]


def test_without_file_and_window_nothing_happens() -> None:
    viewer = viewer_of(None)
    for event in a_run():
        viewer(event)
    viewer.close()
    assert (viewer.problem, viewer.url) == ("", "")


def test_closing_twice_is_fine_and_later_events_are_ignored(record: Path) -> None:
    viewer = viewer_of(record)
    viewer(frame_event(0))
    viewer.close()
    size = record.stat().st_size
    viewer(frame_event(1))
    viewer.close()
    assert record.stat().st_size == size


def test_two_viewers_do_not_disturb_each_other(tmp_path: Path) -> None:
    a, b = viewer_of(tmp_path / "a.rrd"), viewer_of(tmp_path / "b.rrd")
    a(frame_event(1))
    b(frame_event(2))
    a.close()
    b.close()
    for name, k in (("a.rrd", 1), ("b.rrd", 2)):
        assert [time for time, _ in column(tmp_path / name, "/world/camera", "Transform3D:translation")] == [k]


def test_a_recording_that_exists_is_not_overwritten(record: Path) -> None:
    record.write_text("precious")
    with pytest.raises(OutputError, match=r"run\.rrd: exists already; give another name, or remove it"):
        viewer_of(record)
    assert record.read_text() == "precious"


def test_a_recording_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"there is no folder .*none; make it first"):
        viewer_of(tmp_path / "none" / "run.rrd")


@pytest.mark.skipif(not LINUX, reason="/proc is a folder that nobody can write into")
def test_a_recording_in_a_forbidden_place_is_an_error() -> None:
    with pytest.raises(OutputError, match=r"/proc/run\.rrd: cannot be written"):
        viewer_of(Path("/proc/run.rrd"))


@pytest.mark.skipif(not LINUX, reason="/dev/full is a disk without space")
def test_a_disk_that_is_full_at_the_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerun_viewer, "_file_sink", lambda record: rr.FileSink("/dev/full"))
    with pytest.raises(OutputError, match="No space left on device"):
        viewer_of(Path("run.rrd"))


@pytest.fixture
def files_may_grow_to() -> Iterator[Callable[[int], None]]:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_ends_the_recording_and_not_the_run(
    record: Path, files_may_grow_to: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    viewer = viewer_of(record)
    files_may_grow_to(300_000)
    with caplog.at_level(logging.WARNING):
        for k in range(20):
            viewer(landmarks_event(k, 2000 * (k + 1)))
            viewer(keyframe_event(k, k))
        viewer.close()
    assert "File-writer thread shut down" in viewer.problem or "timed out" in viewer.problem  # as its threads have it
    assert [entry.message for entry in caplog.records] == [f"Rerun shows no more of this run: {viewer.problem}"]
    assert record.stat().st_size <= 300_000


def test_a_recording_whose_writer_has_stopped_for_good_is_left_behind(
    record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = viewer_of(record)
    [output] = viewer._outputs
    real, left = output._recording, []

    class Stuck:
        def flush(self, *, timeout_sec: float) -> None:
            time.sleep(timeout_sec)
            raise RuntimeError("Flush timed out - not all log messages were sent")

        def disconnect(self) -> None:
            raise AssertionError("this would wait without end")

    monkeypatch.setattr(recording_output, "START_S", 0.05)
    monkeypatch.setattr(rr, "unregister_shutdown", lambda: left.append(True))
    monkeypatch.setattr(output, "_recording", Stuck())
    viewer.close()
    assert left == [True]
    assert viewer.problem == "Flush timed out - not all log messages were sent"
    real.disconnect()


@pytest.mark.skipif(not LINUX, reason="other systems always have a screen")
def test_a_window_without_a_screen_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UserError) as caught:
        viewer_of(None, view="spawn")
    assert str(caught.value) == (
        "--view spawn: there is no screen (DISPLAY and WAYLAND_DISPLAY are not set); "
        "use --view web, or --record FILE.rrd and look later"
    )


def test_a_window_that_dies_is_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":nowhere")
    monkeypatch.setattr(viewer_process, "executable", lambda: "false")
    with pytest.raises(UserError, match="--view spawn: the Rerun viewer ended at once with code 1; use --record"):
        viewer_of(None, view="spawn")


def test_the_viewer_is_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert os.access(viewer_process.executable(), os.X_OK)


@pytest.fixture
def window_without_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server half of Rerun's window: it listens as the window does, and shows nothing."""
    monkeypatch.setenv("DISPLAY", ":0")
    real = viewer_process._started

    def headless(command: list[str], port: int, view: str) -> subprocess.Popen[bytes]:
        return real([command[0], "--serve-grpc", "--port", str(port), "--bind", "127.0.0.1"], port, view)

    monkeypatch.setattr(viewer_process, "_started", headless)


@pytest.mark.usefixtures("window_without_a_screen")
def test_closing_the_window_ends_neither_the_run_nor_the_recording(record: Path) -> None:
    viewer = viewer_of(record, view="spawn")
    window = viewer._viewer
    assert window is not None
    for event in a_run(frames=10)[:-1]:
        viewer(event)
    window.kill()
    window.wait()
    for event in [frame_event(k) for k in range(10, 20)]:
        viewer(event)
    viewer.close()
    assert viewer.problem == "the viewer was closed"
    assert len(column(record, "/world/camera", "Transform3D:translation")) == 20
    assert rerun_command("rrd", "verify", str(record)).returncode == 0


@pytest.mark.usefixtures("window_without_a_screen")
def test_the_window_outlives_the_run() -> None:
    viewer = viewer_of(None, view="spawn")
    window = viewer._viewer
    assert window is not None
    viewer(frame_event(0))
    viewer.close()
    try:
        assert window.poll() is None
        assert viewer.problem == ""
    finally:
        window.kill()
        window.wait()


def listening() -> set[tuple[str, int]]:
    """(address, port) of listening sockets, IPv4."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    sockets = [line.split()[1].split(":") for line in lines if line.split()[3] == "0A"]
    return {(".".join(str(b) for b in bytes.fromhex(a)[::-1]), int(p, 16)) for a, p in sockets}


@pytest.fixture
def on_the_web(record: Path) -> Iterator[RerunViewer]:
    viewer = viewer_of(record, view="web")
    yield viewer
    viewer.close()


def test_the_page_is_served_while_the_run_lasts(on_the_web: RerunViewer) -> None:
    assert on_the_web.url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(on_the_web.url) as page:
        assert b"<html" in page.read()
    on_the_web(frame_event(0))
    on_the_web.close()
    assert on_the_web.problem == ""
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(on_the_web.url)


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_the_page_and_its_data_are_for_this_machine_only(on_the_web: RerunViewer) -> None:
    data, page = (int(part) for part in rerun_ports(on_the_web.url))
    addresses = {address for address, port in listening() if port in (data, page)}
    assert addresses == {"127.0.0.1"}
    assert {port for _, port in listening()} >= {data, page}


def rerun_ports(url: str) -> tuple[str, str]:
    """(port of the data, port of the page)."""
    page, _, data = url.partition("/?url=")
    return data.split("%3A")[2].split("%2F")[0], page.rsplit(":", 1)[1]


def test_a_second_viewer_takes_other_ports(on_the_web: RerunViewer) -> None:
    second = viewer_of(None, view="web")
    second.close()
    assert set(rerun_ports(second.url)).isdisjoint(rerun_ports(on_the_web.url))


def test_the_recording_is_complete_beside_the_page(on_the_web: RerunViewer, record: Path) -> None:
    for event in a_run(frames=10):
        on_the_web(event)
    on_the_web.close()
    assert len(column(record, "/world/camera", "Transform3D:translation")) == 10


def test_the_layout_is_made_anew_by_each_call() -> None:
    first, second = blueprint(), blueprint()
    assert first is not second
    assert first.root_container is not second.root_container


def test_importing_slam_does_not_load_rerun() -> None:
    code = "import sys, slam, relocalizer, slam.events; sys.exit('rerun' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

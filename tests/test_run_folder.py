from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from relocalizer.camera import Camera
from relocalizer.errors import OutputError
from relocalizer.geometry import Similarity, rigid
from relocalizer.intrinsics_correction import IntrinsicsCorrection
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_tum
from slam.events import (
    EdgeAccepted,
    EdgeRejected,
    FrameProcessed,
    GraphOptimized,
    LandmarksUpdated,
    Relocalized,
    TrackingLost,
)
from slam.map.frames import Frame
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.map.tracking_status import TrackingState
from slam.result import Units
from slam.run.checkpoints import Checkpoints
from slam.run.event_log import EventLog
from slam.run.files import write_atomically
from slam.run.plain_values import summarize
from slam.run.report import read_report
from slam.run.run_folder import RunFolder, next_run_folder
from slam.run.run_statistics import RunStatistics, percentiles


def frame_event(index: int, *, tracked: bool = True, state=TrackingState.TRACKING) -> FrameProcessed:
    camera = Camera.assume(8, 6, fov_deg=60)
    image = np.zeros((6, 8, 3), np.uint8)
    return FrameProcessed(
        frame=Frame(index=index, timestamp_ns=index * 10**8, image=image, camera=camera),
        state=state,
        reason="",
        world_from_cam=rigid(np.eye(3), [index, 0, 0]) if tracked else None,
        keyframe_id=0,
        pixels=np.zeros((40, 2), np.float32),
        track_ids=np.arange(40),
        is_inlier=np.arange(40) < 30,
        depth=float("nan"),
        stage_ms={"track": 1.23456789012},
    )


def loop_edge() -> Edge:
    return Edge(i=0, j=5, i_from_j=Similarity(np.eye(3), np.ones(3), 2.0), sigmas=np.ones(7), kind=EdgeKind.LOOP)


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is there already and not empty; choose another --out"):
        RunFolder.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_taken(tmp_path):
    RunFolder.create(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="a file stands where a folder is needed"):
            RunFolder.create(path)


def test_the_next_run_folder_is_the_first_free_number(tmp_path):
    for taken in ("desk-1", "desk-2", "desk-4"):
        (tmp_path / taken).mkdir()
    assert next_run_folder(tmp_path, "desk").name == "desk-3"


def test_a_frame_is_logged_without_its_image_and_with_counts(tmp_path):
    log = EventLog(RunFolder.create(tmp_path))
    log(frame_event(3))
    log.close()
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert len(line) < 500
    logged = json.loads(line)
    assert logged["event"] == "FrameProcessed"
    assert logged["frame"] == {"index": 3, "timestamp_ns": 300000000}
    assert logged["world_from_cam"] == [3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert logged["is_inlier"] == {"true": 30, "of": 40}
    assert logged["pixels"] == {"shape": [40, 2]}
    assert logged["depth"] is None
    assert logged["stage_ms"] == {"track": 1.23456789}


def test_logged_fields_keep_the_order_of_the_event():
    assert list(summarize(frame_event(0)))[:4] == ["frame", "state", "reason", "world_from_cam"]


def test_every_line_of_the_log_is_on_disk_at_once(tmp_path):
    log = EventLog(RunFolder.create(tmp_path))
    log(frame_event(0))
    assert (tmp_path / "events.jsonl").read_text().count("\n") == 1
    log.close()


def test_graphs_and_landmarks_are_logged_by_their_size():
    poses = {k: Similarity(np.eye(3), np.zeros(3), 1.0) for k in range(100)}
    solved = GraphOptimized(frame_index=9, world_from_keyframe=poses, error_before=2.0, error_after=1.0, cause="loop")
    assert summarize(solved)["world_from_keyframe"] == {"count": 100}
    points = LandmarksUpdated(
        frame_index=1, ids=np.arange(99), points_world=np.ones((99, 3)), colors=np.zeros((99, 3), np.uint8)
    )
    assert summarize(points)["points_world"] == {"shape": [99, 3]}


def test_an_edge_is_logged_with_its_similarity_and_sigmas():
    logged = summarize(EdgeAccepted(edge=loop_edge(), frame_index=4))["edge"]
    assert logged["i_from_j"] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 2.0]
    assert (logged["kind"], logged["sigmas"]) == ("loop", [1.0] * 7)


def test_a_report_stands_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path)
    folder.write_report({"format": 1, "status": "running"})

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OutputError, match=r"report\.json: cannot be written \(No space left on device\)"):
        folder.write_report({"format": 1, "status": "finished"})
    assert read_report(tmp_path)["status"] == "running"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_full_device_is_one_line(tmp_path):
    (tmp_path / ".text.txt.part").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left on device"):
        write_atomically(tmp_path / "text.txt", "x" * 100)


def test_an_event_log_on_a_full_device_says_so_and_closes(tmp_path):
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    log = EventLog(RunFolder(tmp_path))
    with pytest.raises(OutputError, match=r"events\.jsonl: cannot be written \(No space left on device\)"):
        log(frame_event(0))
    log.close()


def test_checkpoints_leave_a_readable_trajectory_and_a_running_report(tmp_path):
    folder = RunFolder.create(tmp_path)
    checkpoints = Checkpoints(folder, {"format": 1, "status": "running"}, every_s=0.0)
    for index in range(4):
        checkpoints(frame_event(index, tracked=index > 0))
    checkpoints.save()
    live = read_tum(tmp_path / "trajectory.txt")
    assert live.timestamps_ns.tolist() == [10**8, 2 * 10**8, 3 * 10**8]
    report = read_report(tmp_path)
    assert (report["status"], report["frames"], report["tracked"]) == ("running", 4, 3)


def test_checkpoints_continue_when_the_disk_has_room_again(tmp_path, monkeypatch, caplog):
    checkpoints = Checkpoints(RunFolder.create(tmp_path), {"format": 1, "status": "running"}, every_s=0.0)

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("os.fsync", refuse)
        for index in range(3):
            checkpoints(frame_event(index))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    checkpoints(frame_event(3))
    assert len(read_tum(tmp_path / "trajectory.txt")) == 4


def test_an_empty_trajectory_can_be_written(tmp_path):
    empty = Trajectory(np.zeros(0, np.int64), np.zeros((0, 4, 4)))
    result = SimpleNamespace(
        trajectory=empty,
        segments=[],
        keyframe_trajectory=empty,
        online=empty,
        units=Units(),
        lens=IntrinsicsCorrection(),
    )
    for _, write in RunFolder.create(tmp_path).result_files(result, Camera.assume(64, 48, fov_deg=60.0)):
        write()
    text = (tmp_path / "trajectory.txt").read_text()
    assert [line for line in text.splitlines() if not line.startswith("#")] == []


def test_a_folder_without_a_report_is_not_a_run_folder(tmp_path):
    with pytest.raises(OutputError, match=r"not a run folder \(report.json is missing\)"):
        read_report(tmp_path)


def test_statistics_count_frames_loops_and_lost_episodes():
    statistics = RunStatistics()
    statistics(frame_event(0, tracked=False, state=TrackingState.INITIALIZING))
    statistics(frame_event(1))
    statistics(TrackingLost(frame_index=2, timestamp_ns=2, reason="dark"))
    for index in (2, 3, 4):
        statistics(frame_event(index, tracked=False, state=TrackingState.LOST))
    statistics(Relocalized(frame_index=5, timestamp_ns=5, keyframe_id=0, inliers=40, frames_lost=3))
    statistics(frame_event(5))
    statistics(EdgeAccepted(edge=loop_edge(), frame_index=5))
    statistics(EdgeRejected(i=0, j=4, kind=EdgeKind.LOOP, reason="few inliers", frame_index=5))
    assert (statistics.frames, statistics.tracked, statistics.first_pose_frame) == (6, 2, 1)
    assert (statistics.loops_accepted, statistics.loops_rejected) == (1, 1)
    (episode,) = statistics.lost
    assert (episode.frames, episode.found, episode.reason) == (3, True, "dark")


def test_percentiles_of_a_stage():
    assert percentiles({"pose": [float(k) for k in range(1, 101)], "never": []}) == {
        "pose": {"p50": 50.5, "p95": 95.05}
    }

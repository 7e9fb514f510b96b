"""A finished run replayed from its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import rerun.chunk as rc
from scipy.spatial.transform import RigidTransform

from relocalizer.errors import OutputError
from relocalizer.geometry import Similarity
from relocalizer.maps.map_reader import load_map
from slam.cli import main
from slam.evaluation.trajectory_files import read_tum
from slam.events import (
    EdgeAccepted,
    Event,
    FrameProcessed,
    GraphOptimized,
    Initialized,
    KeyframeAdded,
    LandmarksUpdated,
    LoopExamined,
    PairRelated,
    PlaceAttempt,
    RelocalizationTried,
    RunFinished,
    ScaleSet,
)
from slam.map.image_points import MatchedPoints
from slam.map.keyframe_graph import EdgeKind
from slam.run.plain_values import summarize
from slam.run.replay import ReplayError, open_replay

FRAMES = 70
T = TypeVar("T")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """The folder of a short run in meters. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "room"
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "run", str(root / "sequences" / "room_loop"), "--out", str(folder), "--predictor", "geometric",
                "--quiet", "--max-frames", str(FRAMES), "--refine", "none", "--scale-from", "groundtruth:0.6",
            ]
        )  # fmt: skip
    assert not ended.value.code
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same folder, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


@pytest.fixture(scope="module")
def replayed(finished: Path) -> list[Event]:
    return list(open_replay(finished).events())


def of(events: list[Event], kind: type[T]) -> list[T]:
    return [event for event in events if isinstance(event, kind)]


def edited(folder: Path, change: Callable[[list[str]], list[str]]) -> Path:
    log = folder / "events.jsonl"
    log.write_text("".join(change(log.read_text().splitlines(keepends=True))))
    return folder


def test_every_frame_is_replayed_where_it_was_live_in_the_units_of_the_run(finished, replayed):
    frames = of(replayed, FrameProcessed)
    assert [event.frame.index for event in frames] == list(range(FRAMES))
    live = read_tum(finished / "trajectory_online.txt")
    # The frames before the first pair were placed later, which the log of live poses does not know.
    at = {int(t): position for t, position in zip(live.timestamps_ns, live.positions, strict=True)}
    posed = [event for event in frames if event.world_from_cam is not None]
    assert len(posed) > FRAMES / 2
    for event in posed:
        assert event.world_from_cam.translation == pytest.approx(at[event.frame.timestamp_ns], abs=2e-6)


def test_points_that_were_followed_are_counted_and_their_places_are_not_known(finished, replayed):
    logged = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    counts = [e["is_inlier"] for e in logged if e["event"] == "FrameProcessed"]
    frames = of(replayed, FrameProcessed)
    assert [(int(e.is_inlier.sum()), len(e.track_ids)) for e in frames] == [(c["true"], c["of"]) for c in counts]
    assert {len(event.pixels) for event in frames} == {0}


def test_frames_that_became_keyframes_have_the_image_that_the_map_keeps(finished, replayed):
    kept = {event.keyframe.frame_index: event.keyframe.id for event in of(replayed, KeyframeAdded)}
    reference = load_map(finished / "map")
    assert len(kept) >= 3
    for event in of(replayed, FrameProcessed):
        if event.frame.index in kept:
            row = reference.row_of[kept[event.frame.index]]
            assert np.array_equal(event.frame.image, reference.image(row))
        else:
            assert event.frame.image.size == 0


def test_edges_keep_their_ends_their_kind_and_their_similarity(finished, replayed):
    logged = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    [first, *_] = [e["edge"] for e in logged if e["event"] == "EdgeAccepted"]
    edge = of(replayed, EdgeAccepted)[0].edge
    assert (edge.i, edge.j, edge.kind) == (first["i"], first["j"], EdgeKind.ODOMETRY)
    assert edge.i_from_j.translation.tolist() == first["i_from_j"][:3]
    assert edge.sigmas.tolist() == first["sigmas"]


def test_what_happened_comes_in_the_order_of_the_log(finished, replayed):
    logged = [json.loads(line)["event"] for line in (finished / "events.jsonl").read_text().splitlines()]
    at_the_end = ("LandmarksUpdated", "RunFinished")
    expected = [name for name in logged if name not in at_the_end]
    assert [type(event).__name__ for event in replayed] == [*expected, "GraphOptimized", *at_the_end]
    assert len(of(replayed, Initialized)) == len(of(replayed, ScaleSet)) == 1


def test_a_search_for_a_lost_frame_comes_back_with_its_places_and_the_pose_found_there(copied):
    tried = PlaceAttempt(keyframe_id=0, similarity=0.4, landmarks=30, reason="", confidence=0.8)
    found = RelocalizationTried(
        frame_index=9, timestamp_ns=1, keyframe_id=0, attempts=(tried,), matches=MatchedPoints.none(),
        world_from_cam=RigidTransform.from_translation([1.0, 2.0, 3.0]),
    )  # fmt: skip
    line = json.dumps({"event": "RelocalizationTried", **summarize(found)}) + "\n"
    [again] = of(list(open_replay(edited(copied, lambda lines: [*lines, line])).events()), RelocalizationTried)
    meters = json.loads((copied / "report.json").read_text())["units"]["meters_per_unit"]
    assert again.attempts == (tried,)
    assert again.world_from_cam.translation == pytest.approx(meters * np.array([1.0, 2.0, 3.0]))


def test_at_the_end_the_map_and_the_path_stand_as_the_run_left_them(finished, replayed):
    path, keyframes = read_tum(finished / "trajectory.txt"), read_tum(finished / "keyframes.txt")
    reference = load_map(finished / "map")
    poses = of(replayed, GraphOptimized)[-1].world_from_keyframe
    assert np.allclose([poses[k].translation for k in sorted(poses)], keyframes.positions, atol=1e-6)
    end = of(replayed, RunFinished)[0]
    assert np.array_equal(end.world_from_cam, path.world_from_cam)
    assert end.frame_indices.tolist() == list(range(FRAMES))
    assert not end.interrupted
    landmarks = of(replayed, LandmarksUpdated)[0]
    assert np.array_equal(landmarks.points_world, reference.points_world)
    assert np.array_equal(landmarks.depth_sigmas, reference.depth_sigmas_world)
    assert all(event.measurement.memory_mb > 10 for event in of(replayed, FrameProcessed))
    assert len(landmarks.ids) > 200


def test_the_map_of_an_anchored_run_is_in_meters_as_its_keyframes_are(finished):
    reference, keyframes = load_map(finished / "map"), read_tum(finished / "keyframes.txt")
    assert reference.provenance.units == "meters"
    assert np.allclose(reference.keyframes.translations, keyframes.positions, atol=1e-6)


def test_without_a_map_keyframes_stand_at_the_poses_of_their_file_and_what_is_missing_is_said(copied):
    shutil.rmtree(copied / "map")
    replay = open_replay(copied)
    assert replay.missing == ("no map/ in it: keyframes have no images and landmarks are not shown",)
    events = list(replay.events())
    keyframes = read_tum(copied / "keyframes.txt")
    poses = of(events, GraphOptimized)[-1].world_from_keyframe
    assert all(isinstance(pose, Similarity) for pose in poses.values())
    assert np.allclose([poses[k].translation for k in sorted(poses)], keyframes.positions)
    assert of(events, LandmarksUpdated) == []
    assert {event.frame.image.size for event in of(events, FrameProcessed)} == {0}


def test_a_killed_run_is_replayed_as_far_as_it_was_written(copied):
    def cut(lines: list[str]) -> list[str]:
        return [*lines[:60], lines[60][:25]]

    for name in ("keyframes.txt", "trajectory_online.txt"):
        (copied / name).unlink()
    shutil.rmtree(copied / "map")
    report = json.loads((copied / "report.json").read_text())
    (copied / "report.json").write_text(json.dumps({**report, "status": "running", "units": None}))
    replay = open_replay(edited(copied, cut))
    assert replay.missing[1] == "the run did not end by itself (running): poses are as saved last"
    events = list(replay.events())
    assert 20 < len(of(events, FrameProcessed)) < 60
    assert of(events, RunFinished)[0].interrupted


def test_an_event_of_a_newer_version_is_passed_over(copied, replayed):
    newer = '{"event": "CoffeeMade", "cups": 2}\n'
    events = list(open_replay(edited(copied, lambda lines: [newer, *lines])).events())
    assert len(events) == len(replayed)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no json\n", "line 2: not an event; expected what slam run wrote"),
        ("[1, 2]\n", "line 2: not an event; expected what slam run wrote"),
        ('{"event": "TrackingLost", "reason": "dark"}\n', "line 2: not the event TrackingLost of this version"),
        ('{"event": "FrameProcessed", "frame": {"index": 1}}\n', "line 2: not the event FrameProcessed"),
    ],
)
def test_a_damaged_line_is_named(copied, line, said):
    replay = open_replay(edited(copied, lambda lines: [lines[0], line, *lines[1:]]))
    with pytest.raises(ReplayError, match=said):
        list(replay.events())


def test_what_is_no_run_folder_is_refused(tmp_path, copied):
    with pytest.raises(ReplayError, match="nowhere: no such folder; expected one that slam run made"):
        open_replay(tmp_path / "nowhere")
    with pytest.raises(OutputError, match=r"not a run folder \(report.json is missing\)"):
        open_replay(tmp_path)
    (copied / "events.jsonl").unlink()
    with pytest.raises(ReplayError, match=r"holds no events\.jsonl, so there is nothing to replay"):
        open_replay(copied)


# The command


def rows(recording: Path, entity: str) -> int:
    chunks = rc.RrdReader(recording).stream().filter(content=entity).to_chunks()
    return sum(chunk.to_record_batch().num_rows for chunk in chunks)


def test_view_records_the_run_with_every_pose_and_the_keyframes_images(finished, replayed, tmp_path, slam_command):
    record = tmp_path / "again.rrd"
    ended = slam_command("view", finished, "--record", record)
    assert ended.code == 0, ended.err
    assert ended.complaint.startswith(f"wrote {record}; next: ")
    posed = [event for event in of(replayed, FrameProcessed) if event.world_from_cam is not None]
    assert rows(record, "/world/camera") == len(posed)
    assert rows(record, "/world/landmarks") == 1
    assert rows(record, "/world/trajectory/final") == 1
    assert rows(record, "/world/camera/image/tracks") == 0


def test_view_has_the_panels_of_a_live_run_without_its_recording(finished, replayed, tmp_path, slam_command):
    record = tmp_path / "again.rrd"
    assert slam_command("view", finished, "--record", record).code == 0
    keyframes = len(of(replayed, KeyframeAdded))
    assert keyframes - 1 <= rows(record, "/world/camera/image/ages") <= keyframes
    asked = 1 + len(of(replayed, PairRelated))  # and the style of the plot
    assert rows(record, "/predictor/confidence") == asked >= keyframes - 1
    assert rows(record, "/predictor/rotation/map") == asked
    assert rows(record, "/keyframes/similarity") >= 1
    assert rows(record, "/keyframes/criteria/parallax") > 30
    assert rows(record, "/world/graph/after/odometry") == 1
    assert rows(record, "/plots/motion/residual") > 30
    assert rows(record, "/loops/table") == len(of(replayed, LoopExamined))


def test_what_was_measured_is_replayed(finished, replayed):
    frames = of(replayed, FrameProcessed)
    assert all(event.measurement is not None for event in frames)
    assert all(20 < event.measurement.brightness < 220 for event in frames)
    kept = {event.keyframe.frame_index for event in of(replayed, KeyframeAdded)}
    assert {event.frame.index for event in frames if event.points is not None} <= kept
    for event in frames:
        if event.points is not None and event.world_from_cam is not None:
            assert np.median(event.points.residuals_px[event.points.is_inlier]) < 2.0


def test_a_sound_run_is_explained_without_a_complaint(finished, tmp_path, slam_command):
    ended = slam_command("explain", finished, "--json")
    assert ended.code == 0
    explanation = json.loads(ended.out)
    assert (explanation["findings"], explanation["frames"]) == ([], FRAMES)
    assert explanation["coverage"] == [1.0] * 40
    page = tmp_path / "room.html"
    ended = slam_command("explain", finished, "--html", page)
    assert "nothing went wrong that was measured" in ended.out
    assert "Nothing went wrong that was measured" in page.read_text()
    assert slam_command("explain", finished, "--html", page).complaint.endswith("choose another name or remove it")


def test_what_is_no_run_cannot_be_explained(tmp_path, slam_command):
    assert slam_command("explain", tmp_path).code == 2


def test_view_changes_nothing_in_the_folder(copied, tmp_path, slam_command):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    assert slam_command("view", copied, "--record", tmp_path / "again.rrd").code == 0
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_view_says_what_cannot_be_shown(copied, tmp_path, slam_command):
    shutil.rmtree(copied / "map")
    ended = slam_command("view", copied, "--record", tmp_path / "again.rrd")
    assert ended.code == 0
    assert f"{copied}: no map/ in it: keyframes have no images and landmarks are not shown" in ended.err


def test_the_page_is_served_until_the_stop_signal(finished, slam_command, monkeypatch):
    happened: list[str] = []

    class Page:
        url, problem = "http://127.0.0.1:9090/", ""

        def __init__(self, **options):
            happened.append(options["view"])

        def __call__(self, event):
            happened.append("event")

        def catch_up(self):
            pass

        def close(self):
            happened.append("closed")

    monkeypatch.setattr("slam.viz.rerun_viewer.RerunViewer", Page)
    monkeypatch.setattr("slam.run.runner.wait_for_stop_signal", lambda: happened.append("wait"))
    ended = slam_command("view", finished, "--view", "web")
    assert "the run is shown at http://127.0.0.1:9090/ until Ctrl-C" in ended.err
    assert [what for what in happened if what != "event"] == ["web", "wait", "closed"]
    slam_command("view", finished, "--view", "web", "--no-wait")
    assert [what for what in happened if what != "event"] == ["web", "wait", "closed", "web", "closed"]


def test_view_says_how_far_it_is(finished, tmp_path, slam_command, monkeypatch):
    monkeypatch.setattr("slam.progress.LINE_EVERY_S", 0.0)
    ended = slam_command("view", finished, "--record", tmp_path / "again.rrd")
    frames = open_replay(finished).frames
    assert frames > 0
    assert f"{frames}/{frames} frames, 0 s left" in ended.err


def test_a_viewer_that_fails_on_the_way_ends_with_1(finished, tmp_path, slam_command, monkeypatch):
    monkeypatch.setattr("slam.viz.rerun_drawing.Drawing.show", lambda self, event: _fail())
    ended = slam_command("view", finished, "--record", tmp_path / "again.rrd")
    assert (ended.code, ended.complaint) == (1, "slam: not all of the run could be shown: no room")


def _fail() -> None:
    raise RuntimeError("no room")


def test_view_writes_only_recordings(finished, tmp_path, slam_command):
    ended = slam_command("view", finished, "--record", tmp_path / "again.mp4")
    assert (ended.code, ended.complaint.endswith("again.mp4: a recording's name ends in .rrd")) == (2, True)


def test_view_of_something_else_is_one_line(tmp_path, slam_command):
    ended = slam_command("view", tmp_path, "--record", tmp_path / "again.rrd")
    assert ended.code == 2
    assert "not a run folder (report.json is missing); give one that slam run made" in ended.complaint
    assert not (tmp_path / "again.rrd").exists()

"""Map units become meters: by a known distance, or by the beginning of the ground truth."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from oracle_map import build, room

from relocalizer.errors import ConfigError
from relocalizer.geometry import Similarity, rigid
from relocalizer.maps.map_reader import load_map
from relocalizer.maps.map_rules import validate
from relocalizer.maps.reference_map import Provenance
from slam.evaluation.trajectory import Trajectory
from slam.map.frame_log import FrameLog
from slam.map.slam_map import SlamMap
from slam.map.tracks import Tracks
from slam.result import collect_result
from slam.sessions.metric_scale import GroundTruthPrefix, KnownDistance, ScaleError, in_meters, parse_scale_reference
from slam.sessions.stored_map import to_reference_map

STEP = 6
SMALLER = 0.25  # the map is this much smaller than the world


@pytest.fixture
def run():
    """A slam_map and log in map units that are four meters long: 24 frames, every sixth a keyframe; frames 40 to 43 lie
    in a second segment, with units of their own."""
    builder = build(room())
    log, world = FrameLog(), builder.world
    shrink = Similarity(np.eye(3), np.zeros(3), SMALLER)
    for index in range(4 * STEP):
        pose = shrink @ Similarity.from_rigid(world.poses[index])
        if index % STEP == 0:
            builder.add(index, pose=pose)
        keyframe = builder.mapper.map.graph.last_id
        log.add(world.frame(index), pose.rigid, Tracks.none(), keyframe, builder.mapper.map.graph)
    for index in range(40, 44):
        pose = Similarity(np.eye(3), [index / 10, 0, 0], 7.0)
        if index == 40:
            other = builder.add(index, pose=pose, segment=1, follow=False)
        log.add(world.frame(index), pose.rigid, Tracks.none(), other, builder.mapper.map.graph)
    return builder.mapper.map, log


def truth_of(log: FrameLog) -> Trajectory:
    world = room()
    times = [record.timestamp_ns for record in log.records]
    return Trajectory(np.array(times), np.array([world.poses[r.index].as_matrix() for r in log.records]))


def known(a: int, b: int) -> KnownDistance:
    """The true distance between two frames."""
    poses = room().poses
    return KnownDistance(a, b, float(np.linalg.norm(poses[b].translation - poses[a].translation)))


def refusal(result, anchor, truth=None, slam_map=None) -> str:
    with pytest.raises(ScaleError) as caught:
        in_meters(result, slam_map or SlamMap(), anchor, truth)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "anchor"),
    [
        ("frames:120:480=2.35", KnownDistance(120, 480, 2.35)),
        ("frames:9:0=.5", KnownDistance(9, 0, 0.5)),
        ("groundtruth:5", GroundTruthPrefix(5.0)),
        ("", None),
    ],
)
def test_an_anchor_is_read_from_its_words(text, anchor):
    assert parse_scale_reference(text) == anchor
    assert anchor is None or parse_scale_reference(anchor.spec) == anchor


@pytest.mark.parametrize(
    "text",
    ["2.35", "frames:1:2", "frames:1=2", "frames:-1:2=3", "frames:1:2=1e9", "groundtruth", "map:there", "frames"],
)
def test_an_unknown_scale_reference_is_reported_with_those_there_are(text):
    with pytest.raises(ConfigError) as caught:
        parse_scale_reference(text)
    assert str(caught.value) == (
        f"--scale-from {text}: expected frames:A:B=METERS (a known distance between two frames), "
        "marker:DICTIONARY:METERS (side of ArUco or AprilTag markers), gps:FILE or gps:FILE@SECONDS (CSV or GPX), "
        "depth:FOLDER (RGB-D data set), "
        "or groundtruth:METERS (evaluation only)"
    )


@pytest.mark.parametrize("text", ["frames:1:2=0", "groundtruth:0.0"])
def test_a_distance_of_nothing_is_refused(text):
    with pytest.raises(ConfigError, match=r"expected a distance of more than 0 m"):
        parse_scale_reference(text)


def test_a_frame_named_twice_is_refused():
    with pytest.raises(ConfigError, match="names frame 7 twice; expected two frames"):
        parse_scale_reference("frames:7:7=1")


def test_a_known_distance_makes_every_length_meters(run):
    slam_map, log = run
    metric = in_meters(collect_result(slam_map, log), slam_map, known(2, 21), None)
    truth = truth_of(log).positions[: len(metric.trajectory)]
    assert np.allclose(metric.trajectory.positions, truth, atol=1e-9)
    assert np.allclose(metric.keyframe_trajectory.positions, truth[::STEP], atol=1e-9)
    assert metric.units.meters_per_unit == pytest.approx(1 / SMALLER)
    assert (metric.units.name, metric.units.source) == (
        "meters",
        f"{known(2, 21).meters:g} m given between frames 2 and 21",
    )


def test_a_distance_that_no_map_can_hold_is_refused_and_changes_nothing(run):
    slam_map, log = run
    result = collect_result(slam_map, log)
    before = dict(slam_map.graph.world_from_keyframe)
    said = refusal(result, KnownDistance(2, 21, 1e15), slam_map=slam_map)
    assert "and a map has to stay below 1e+12 m; check the distance" in said
    assert slam_map.graph.world_from_keyframe == before


def test_the_map_that_is_saved_afterwards_is_metric_too(run):
    slam_map, log = run
    before = collect_result(slam_map, log)
    metric = in_meters(before, slam_map, known(0, 20), None)
    again = collect_result(slam_map, log)  # from the graph, which the run's map is written from
    assert np.allclose(again.trajectory.world_from_cam, metric.trajectory.world_from_cam)
    assert len(again.landmark_ids) > 100
    assert np.allclose(again.landmark_points, metric.landmark_points)
    assert np.allclose(again.landmark_points, before.landmark_points / SMALLER)


def test_parts_that_nothing_ties_to_the_first_keep_their_own_units(run):
    slam_map, log = run
    before = collect_result(slam_map, log).segments[0]
    in_meters(collect_result(slam_map, log), slam_map, known(0, 20), None)
    assert np.array_equal(collect_result(slam_map, log).segments[0].world_from_cam, before.world_from_cam)


def at_rest(slam_map, log):
    return to_reference_map(slam_map, log.records, Provenance(predictor="oracle", descriptor="oracle"), lambda k: b"")


def test_a_map_is_metric_in_the_segment_that_was_anchored_alone(run, tmp_path):
    slam_map, log = run
    in_meters(collect_result(slam_map, log), slam_map, known(0, 20), None)
    saved = at_rest(slam_map, log)
    assert (saved.units_of(0), saved.units_of(1)) == ("meters", "map units")
    assert saved.provenance.units == "meters"
    assert saved.provenance.scale_source == known(0, 20).source
    assert saved.provenance.unanchored == (1,)
    validate(saved)


def test_a_map_saved_before_its_run_was_anchored_is_in_map_units_and_says_so(run):
    """Whatever the order: the units that a map names are those that its lengths are in."""
    slam_map, log = run
    before = at_rest(slam_map, log)
    in_meters(collect_result(slam_map, log), slam_map, known(0, 20), None)
    after = at_rest(slam_map, log)
    assert (before.provenance.units, before.provenance.scale_source) == ("map units", "")
    assert before.units_of(0) == "map units"
    assert np.allclose(after.keyframes.translations[:4], before.keyframes.translations[:4] / SMALLER)
    assert np.array_equal(after.keyframes.translations[4:], before.keyframes.translations[4:])


def test_a_result_is_not_made_metric_twice(run):
    """Its map is scaled in place, and would be scaled again."""
    slam_map, log = run
    result = collect_result(slam_map, log)
    metric = in_meters(result, slam_map, known(0, 20), None)
    poses = dict(slam_map.graph.world_from_keyframe)
    with pytest.raises(ValueError, match="in map units, but its map is in meters"):
        in_meters(result, slam_map, known(0, 20), None)
    assert all(slam_map.graph.world_from_keyframe[k] is pose for k, pose in poses.items())
    again = in_meters(metric, slam_map, KnownDistance(0, 20, 2 * known(0, 20).meters), None)  # a better distance
    assert np.allclose(again.trajectory.positions, 2 * metric.trajectory.positions)


@pytest.mark.parametrize("other", [True, False])
def test_meters_stay_when_segments_join_whichever_was_recognized_in_the_other(run, other):
    slam_map, log = run
    in_meters(collect_result(slam_map, log), slam_map, known(0, 20), None)
    before = dict(slam_map.graph.world_from_keyframe)
    first, second = 0, slam_map.graph.last_id
    change = Similarity(np.eye(3), [1.0, 2.0, 3.0], 0.5)  # world of the first from that of the second
    pair = (second, first, change.inverse()) if other else (first, second, change)
    slam_map.join_segments(*pair)
    assert set(slam_map.graph.segment_of.values()) == {0}
    assert slam_map.graph.world_from_keyframe[first].is_close(before[first])
    assert slam_map.graph.world_from_keyframe[second].is_close(change @ before[second])
    assert at_rest(slam_map, log).provenance.unanchored == ()


def test_a_metric_segment_keeps_its_world_when_an_older_one_joins_it(run):
    slam_map, _ = run
    last = slam_map.graph.last_id
    slam_map.graph.scale_to_meters(1, 2.0, "a plumb line")
    before = slam_map.graph.world_from_keyframe[last]
    change = Similarity(np.eye(3), [1.0, 2.0, 3.0], 0.5)
    slam_map.join_segments(0, last, change)
    assert slam_map.graph.world_from_keyframe[last].is_close(before)
    assert slam_map.graph.metric == {1: "a plumb line"}
    assert set(slam_map.graph.segment_of.values()) == {1}


def test_edges_between_keyframes_still_fit_their_poses(run):
    slam_map, log = run
    graph = slam_map.graph
    i_from_j = graph.world_from_keyframe[0].inverse() @ graph.world_from_keyframe[3]
    in_meters(collect_result(slam_map, log), slam_map, known(0, 20), None)
    after = graph.world_from_keyframe[0].inverse() @ graph.world_from_keyframe[3]
    assert after.is_close(i_from_j, atol=1e-12)


def test_the_beginning_of_the_ground_truth_gives_the_scale_in_any_world(run):
    slam_map, log = run
    turned = Similarity.from_rigid(rigid(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]), [5, 6, 7]))
    metric = in_meters(
        collect_result(slam_map, log), slam_map, GroundTruthPrefix(0.3), truth_of(log).transformed(turned)
    )
    assert metric.units.meters_per_unit == pytest.approx(1 / SMALLER)
    assert metric.units.source == "the first 0.3 m of the ground truth, for evaluation only"


def test_only_the_beginning_of_the_ground_truth_counts(run):
    slam_map, log = run
    truth = truth_of(log).world_from_cam.copy()
    truth[12:, :3, 3] += 100.0  # nonsense, far behind the first centimetres
    metric = in_meters(
        collect_result(slam_map, log),
        slam_map,
        GroundTruthPrefix(0.05),
        Trajectory(truth_of(log).timestamps_ns, truth),
    )
    assert metric.units.meters_per_unit == pytest.approx(1 / SMALLER)


def test_a_frame_without_a_pose_is_named_with_those_that_have_one(run):
    assert refusal(collect_result(*run), KnownDistance(0, 30, 1.0)) == (
        "--scale-from frames:0:30=1: frame 30 has no pose; "
        "name two of the 24 frames from 0 to 23 that have one in the first part"
    )


def test_a_frame_of_another_part_of_the_map_is_refused(run):
    assert "frame 41 is in part 2 of the map, which is not connected to the first" in refusal(
        collect_result(*run), KnownDistance(0, 41, 1.0)
    )


def test_two_frames_at_one_place_give_no_scale(run):
    slam_map, log = run
    result = collect_result(slam_map, log)
    still = result.trajectory.world_from_cam.copy()
    still[5] = still[4]
    object.__setattr__(result, "trajectory", Trajectory(result.trajectory.timestamps_ns, still))
    assert "frames 4 and 5 are at one place in the map" in refusal(result, KnownDistance(4, 5, 1.0))


def test_without_ground_truth_its_beginning_is_refused(run):
    assert refusal(collect_result(*run), GroundTruthPrefix(2.0)).startswith(
        "--scale-from groundtruth:2: this source has no ground truth"
    )


def test_ground_truth_without_times_gives_no_scale(run):
    slam_map, log = run
    untimed = replace(truth_of(log), has_times=False)
    assert "the ground truth has no times" in refusal(collect_result(slam_map, log), GroundTruthPrefix(0.3), untimed)


def test_a_map_that_stands_still_where_the_ground_truth_moves_is_refused(run):
    slam_map, log = run
    result = collect_result(slam_map, log)
    still = np.tile(result.trajectory.world_from_cam[0], (len(result.trajectory), 1, 1))
    object.__setattr__(result, "trajectory", Trajectory(result.trajectory.timestamps_ns, still))
    assert "the map does not move as the ground truth does there" in refusal(
        result, GroundTruthPrefix(0.1), truth_of(log)
    )


def test_more_ground_truth_than_there_is_is_refused(run):
    slam_map, log = run
    said = refusal(collect_result(slam_map, log), GroundTruthPrefix(500.0), truth_of(log))
    assert "the ground truth of the tracked frames is " in said
    assert said.endswith("m long; give a smaller number")


# The command


def test_a_run_that_was_anchored_says_everywhere_in_what_and_from_what(tmp_path, root, slam_command):
    run = slam_command(
        "run", root / "sequences" / "room_loop", "-o", tmp_path / "out", "--predictor", "geometric",
        "--max-frames", 60, "--scale-from", "groundtruth:0.6", "--refine", "none",
    )  # fmt: skip
    assert run.code == 0, run.err
    source = "the first 0.6 m of the ground truth, for evaluation only"
    assert f"scale: {source}" in run.err
    assert f"meters (scale: {source})" in run.out
    assert f"next: slam view {tmp_path / 'out'}" in run.out.splitlines()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["units"]["name"], report["units"]["source"]) == ("meters", source)
    assert report["evaluation"]["scale"] == pytest.approx(1.0, abs=0.03)
    assert report["evaluation"]["ate_se3"]["rmse"] < 0.05
    for name in ("trajectory.txt", "keyframes.txt", "trajectory_online.txt"):
        assert (tmp_path / "out" / name).read_text().splitlines()[1] == f"# lengths in meters: {source}"
    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert [e["source"] for e in events if e["event"] == "ScaleSet"] == [source]
    assert not [e for e in events if e["event"] == "GraphOptimized" and e["cause"].startswith("final")]
    judged = slam_command("eval", tmp_path / "out", root / "sequences" / "room_loop" / "groundtruth.txt")
    assert f"estimate: lengths in meters: {source}" in judged.out
    assert f"meters (scale: {source})" in slam_command("map", "info", tmp_path / "out").out
    assert json.loads(slam_command("map", "info", tmp_path / "out", "--json").out)["scale_source"] == source


def test_a_run_that_could_not_be_anchored_is_kept_in_map_units_and_ends_with_1(
    tmp_path, images, slam_command, straight_slam
):
    straight_slam()
    ended = slam_command("run", images, "-o", tmp_path / "out", "--scale-from", "frames:0:9=2")
    assert ended.code == 1
    problem = "--scale-from frames:0:9=2: frame 0 has no pose; name two of the 10 frames from 2 to 11 that have one"
    assert ended.complaint.startswith(f"slam: lengths are map units, not meters: {problem}")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["status"], report["verdict"]["grade"], report["units"]["name"]) == (
        "finished",
        "partial",
        "map units",
    )
    assert report["units"]["problem"].startswith(problem)
    assert (tmp_path / "out" / "trajectory.txt").read_text().count("# ") == 1


@pytest.mark.parametrize("anchor", ["groundtruth:5", "frames:3:3=1", "sideways"])
def test_an_anchor_that_cannot_be_is_refused_before_the_run(tmp_path, images, slam_command, anchor):
    ended = slam_command("run", images, "-o", tmp_path / "out", "--scale-from", anchor)
    assert ended.code == 2
    assert ended.complaint.startswith(f"slam: --scale-from {anchor}: ")
    assert not (tmp_path / "out").exists()


def test_the_saved_configuration_anchors_again(tmp_path, images, slam_command, straight_slam):
    straight_slam()
    slam_command("run", images, "-o", tmp_path / "out", "--scale-from", "frames:0:9=2")
    again = slam_command("run", images, "-o", tmp_path / "again", "-c", tmp_path / "out" / "config.yaml")
    assert again.code == 1
    assert "frames:0:9=2: frame 0 has no pose" in again.complaint


def test_a_run_in_a_map_in_meters_is_in_meters(tmp_path, root, slam_command):
    bundled = root / "sequences" / "room_loop"
    first = slam_command(
        "run", bundled, "-o", tmp_path / "first", "--predictor", "geometric", "--max-frames", 50, "--refine", "none",
        "--scale-from", "groundtruth:0.4",
    )  # fmt: skip
    assert first.code == 0, first.err
    second = slam_command(
        "run", bundled, "-o", tmp_path / "second", "--predictor", "geometric", "--start", 20, "--max-frames", 12,
        "--refine", "none", "--map", tmp_path / "first",
    )  # fmt: skip
    assert second.code == 0, second.err
    report = json.loads((tmp_path / "second" / "report.json").read_text())
    assert (report["units"]["name"], report["units"]["source"]) == ("meters", "that of the map the run began in")
    meters_from = load_map(tmp_path / "second").provenance.scale_source
    assert meters_from == "the first 0.4 m of the ground truth, for evaluation only"
    assert report["evaluation"]["scale"] == pytest.approx(1.0, abs=0.15)  # a short piece tells its scale only roughly

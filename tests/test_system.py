"""The whole system on a synthetic world with ground truth, with an oracle as the predictor."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import CAMERA, OraclePredictor, OracleTracker, OracleWorld, look_along, room_path, room_points

from relocalizer.geometry import rotation_angle, rotation_matrix
from relocalizer.retrieval import FaissRetriever
from slam.components.assembly import Components
from slam.config.schema import SlamConfig
from slam.evaluation.metrics import evaluate
from slam.events import (
    EdgeAccepted,
    Event,
    FrameLocalizedLater,
    FrameProcessed,
    GraphOptimized,
    Initialized,
    KeyframeAdded,
    Relocalized,
    RunFinished,
    ScaleUnobservable,
    TrackingLost,
)
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
from slam.map.keyframe_graph import EdgeKind
from slam.map.tracking_status import TrackingState
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster
from slam.progress import Progress, no_progress
from slam.result import SlamResult
from slam.system import Slam


def world_of(poses, *, blind=frozenset(), pixel_noise=0.3, count=4000):
    return OracleWorld(
        poses, room_points(np.random.default_rng(3), count), pixel_noise=pixel_noise, blind=frozenset(blind)
    )


def run(
    world: OracleWorld,
    config: SlamConfig | None = None,
    *,
    on_progress: Progress = no_progress,
    retriever: FaissRetriever | None = None,
    **noise,
) -> tuple[SlamResult, list[Event]]:
    events: list[Event] = []
    config = config or SlamConfig()
    slam = Slam(
        config,
        Components(
            predictor=OraclePredictor(world, **noise),
            tracker=OracleTracker(world),
            retriever=FaissRetriever() if retriever is None else retriever,
            optimizer=GtsamOptimizer(),
            adjuster=SchurBundleAdjuster(),
        ),
        observers=[events.append],
    )
    for frame in world.frames():
        slam.step(frame)
    return slam.finish(on_progress=on_progress), events


def of(events, kind):
    return [e for e in events if isinstance(e, kind)]


@pytest.fixture(scope="module")
def room():
    world = world_of(room_path())
    return world, *run(world)


def test_a_walk_around_a_room_is_recovered_to_a_thousandth_of_its_length(room):
    world, result, _ = room
    found = evaluate(result.trajectory, world.ground_truth)
    assert len(result.trajectory) == len(world.poses)
    assert found.ate_sim3.rmse < 0.001 * world.ground_truth.length


def test_the_loop_is_detected_and_accepted(room):
    _, _, events = room
    loops = [e.edge for e in of(events, EdgeAccepted) if e.edge.kind is EdgeKind.LOOP]
    assert loops
    assert any(edge.j - edge.i > 10 for edge in loops)


def test_every_keyframe_can_be_retrieved():
    world, remembered = world_of(room_path(120, turns=0.6)), []

    class Noting(FaissRetriever):
        def add(self, key, descriptor):
            remembered.append(key)
            super().add(key, descriptor)

    result, _ = run(world, retriever=Noting())
    assert remembered == sorted(result.graph.keyframes)


def test_every_accepted_loop_is_true(room):
    world, result, events = room
    for event in of(events, EdgeAccepted):
        edge = event.edge
        if edge.kind is not EdgeKind.LOOP:
            continue
        i, j = (result.graph.keyframes[k].frame_index for k in (edge.i, edge.j))
        truth = world.poses[i].inv() * world.poses[j]
        assert np.degrees(rotation_angle(rotation_matrix(truth).T @ edge.i_from_j.rotation)) < 2


def test_at_a_loop_the_live_pose_jumps_by_the_correction_and_by_nothing_else(room):
    _, _, events = room
    solved = next(e for e in of(events, GraphOptimized) if e.cause.startswith("loop"))
    added = next(e for e in of(events, KeyframeAdded) if e.keyframe.frame_index == solved.frame_index)
    live = {e.frame.index: e.world_from_cam for e in of(events, FrameProcessed) if e.world_from_cam is not None}
    n = solved.frame_index
    steps = {i: np.linalg.norm(live[i].translation - live[i - 1].translation) for i in range(n - 6, n + 7)}
    ordinary = float(np.median(list(steps.values())))
    correction = solved.world_from_keyframe[added.keyframe.id] @ added.world_from_keyframe.inverse()
    before = correction.apply(live[n - 1].translation)
    assert np.linalg.norm(before - live[n - 1].translation) > 0.5 * ordinary  # otherwise the test would prove nothing
    assert np.linalg.norm(live[n].translation - before) == pytest.approx(ordinary, rel=0.3)
    assert all(step == pytest.approx(ordinary, rel=0.3) for i, step in steps.items() if i != n)


def test_events_are_in_order_and_cover_the_whole_run(room):
    world, result, events = room
    frames = of(events, FrameProcessed)
    assert [e.frame.index for e in frames] == list(range(len(world.poses)))
    assert isinstance(events[-1], RunFinished)
    kinds = [type(e) for e in events]
    assert kinds.index(Initialized) < kinds.index(KeyframeAdded)
    assert len(of(events, KeyframeAdded)) == len(result.graph.keyframes)
    assert frames[0].state is TrackingState.INITIALIZING
    assert frames[0].world_from_cam is None


def test_the_same_input_gives_the_same_bytes(room):
    _, first, _ = room
    second, _ = run(world_of(room_path()))
    assert second.trajectory.world_from_cam.tobytes() == first.trajectory.world_from_cam.tobytes()


def test_gross_errors_of_the_predictor_do_not_deform_the_map():
    world = world_of(room_path(160, turns=0.8))
    result, _ = run(world, rotation_sigma_deg=1.0, direction_sigma_deg=5.0, outlier_rate=0.2)
    found = evaluate(result.trajectory, world.ground_truth)
    assert found.ate_sim3.rmse < 0.01 * world.ground_truth.length


def test_a_camera_at_rest_never_gets_a_map_and_the_reason_is_given():
    world = world_of([room_path(10)[0]] * 20)
    result, events = run(world)
    assert len(result.trajectory) == 0
    assert "px" in of(events, FrameProcessed)[-1].reason
    assert not of(events, Initialized)


def test_a_camera_that_only_rotates_never_gets_a_map():
    center = np.array([0.0, 0.0, 1.5])
    world = world_of([look_along(center, np.array([np.cos(a), np.sin(a), 0])) for a in np.linspace(0, 1.2, 60)])
    result, events = run(world)
    assert not of(events, Initialized)
    assert len(result.trajectory) == 0


def test_after_a_blackout_the_camera_is_relocalized_in_the_map():
    dark = range(150, 158)
    world = world_of(room_path(), blind=dark)
    result, events = run(world)
    [lost] = of(events, TrackingLost)
    assert lost.frame_index == 150
    assert lost.reason
    [back] = of(events, Relocalized)
    assert 158 <= back.frame_index < 163
    live = {e.frame.index for e in of(events, FrameProcessed) if e.world_from_cam is not None}
    assert not live & set(dark)
    assert evaluate(result.trajectory, world.ground_truth).ate_sim3.rmse < 0.003 * world.ground_truth.length


def test_frames_before_the_initial_pair_get_their_poses_at_initialization(room):
    _, result, events = room
    [first] = of(events, Initialized)
    assert first.frame_indices[1] > 1
    assert set(range(first.frame_indices[1])) <= set(result.frame_indices.tolist())


def test_the_camera_of_the_world_is_used_as_given(room):
    _, result, _ = room
    assert all(k.camera == CAMERA for k in result.graph.keyframes.values())


def test_during_a_pure_rotation_the_scale_is_reported_unobservable_and_the_map_is_kept():
    walk = room_path(200, turns=0.8)[:120]
    center = walk[-1].translation
    ahead = rotation_matrix(walk[-1])[:, 2]
    start = np.arctan2(ahead[1], ahead[0])
    turned = [
        look_along(center, np.array([np.cos(start + a), np.sin(start + a), 0.0])) for a in np.linspace(0, 0.35, 30)
    ]
    world = world_of([*walk, *turned])
    result, events = run(world)
    said = [e for e in of(events, ScaleUnobservable) if "parallax" in e.reason]
    assert len(said) == 1
    assert said[0].frame_index >= 115
    assert "0.5 needed" in said[0].reason
    assert evaluate(result.trajectory, world.ground_truth).ate_sim3.rmse < 0.003 * world.ground_truth.length


def test_frames_of_a_place_that_is_mapped_later_get_a_pose_at_the_end_of_the_run():
    path = room_path()
    early = range(60, 65)  # images of a place that the camera reaches only later
    world = world_of([*path[:60], *path[115:120], *path[55:135]])
    result, events = run(world)
    live = {e.frame.index for e in of(events, FrameProcessed) if e.world_from_cam is not None}
    assert not live & set(early)
    assert {e.frame_index for e in of(events, FrameLocalizedLater)} >= set(early)
    assert set(early) <= set(result.frame_indices.tolist())
    assert not set(early) & set(np.searchsorted(world.ground_truth.timestamps_ns, result.online.timestamps_ns))
    assert (np.diff(result.keyframe_trajectory.timestamps_ns) > 0).all()
    assert evaluate(result.trajectory, world.ground_truth).ate_sim3.rmse < 0.003 * world.ground_truth.length


def test_the_final_refinement_reports_its_progress():
    path = room_path()
    world = world_of([*path[:60], *path[115:120], *path[55:135]])
    reported: list[tuple[str, int, int]] = []
    run(world, on_progress=lambda *step: reported.append(step))
    looks = [step for step in reported if step[0] == "relocalizing frames without a pose"]
    assert [done for _, done, _ in looks] == list(range(len(looks)))
    assert 5 <= len(looks) <= looks[0][2]
    assert reported[len(looks) :] == [
        ("rounds of the final bundle adjustment", done, 3) for done in range(len(reported) - len(looks))
    ]
    assert len(reported) > len(looks)


def test_two_segments_are_joined_when_the_way_between_them_is_mapped():
    path = room_path()
    world = world_of([*path[:60], *path[150:210], *path[60:150]])
    result, events = run(world)
    assert len(of(events, Initialized)) == 2
    assert not result.segments
    assert len(result.trajectory) > 195
    assert evaluate(result.trajectory, world.ground_truth).ate_sim3.rmse < 0.003 * world.ground_truth.length


def test_a_segment_of_another_place_stays_separate():
    path = room_path()
    world = world_of([*path[:60], *path[120:180]])
    result, events = run(world)
    assert len(result.segments) == 1
    assert not [e for e in of(events, EdgeAccepted) if e.edge.kind is EdgeKind.LOOP]
    assert len(result.trajectory) + len(result.segments[0]) > 105


def turned_from(pose, angles):
    """Cameras at the position of `pose`, rotated about the vertical by these angles."""
    ahead = rotation_matrix(pose)[:, 2]
    start = np.arctan2(ahead[1], ahead[0])
    return [look_along(pose.translation, np.array([np.cos(start + a), np.sin(start + a), 0.0])) for a in angles]


@pytest.fixture(scope="module")
def turned():
    """A walk with a rotation on the spot, away from all landmarks and back."""
    path = room_path(200, turns=0.8)
    there = np.linspace(0, 2.4, 60)
    world = world_of([*path[:60], *turned_from(path[59], [*there, *there[::-1]]), *path[60:110]])
    return world, *run(world)


def test_a_camera_that_rotates_away_from_the_map_keeps_its_orientation_and_its_position(turned):
    world, result, events = turned
    assert len(result.trajectory) == len(world.poses)
    assert not of(events, TrackingLost)
    found = evaluate(result.trajectory, world.ground_truth)
    assert found.ate_sim3.rmse < 0.003 * world.ground_truth.length
    assert found.orientation_deg.rmse < 1.0


def test_a_rotation_without_landmarks_reports_once_that_the_position_is_held(turned):
    _, _, events = turned
    held = [e for e in of(events, FrameProcessed) if "held" in e.reason]
    assert len(held) > 10
    assert all(e.world_from_cam is not None for e in held)
    assert len([e for e in of(events, ScaleUnobservable) if "held" in e.reason]) == 1
    assert "held" not in of(events, FrameProcessed)[-1].reason


def test_a_camera_that_rotates_away_and_then_moves_is_lost_and_gets_no_invented_pose():
    path = room_path(200, turns=0.8)
    away = turned_from(path[59], np.linspace(0, 2.4, 60))
    ahead = rotation_matrix(away[-1])[:, 2]
    walked = [
        look_along(away[-1].translation + s * np.array([ahead[1], -ahead[0], 0]), ahead)
        for s in np.linspace(0.02, 0.5, 25)
    ]
    world = world_of([*path[:60], *away, *walked])
    _, events = run(world)
    assert of(events, TrackingLost)[0].frame_index < 60 + 60 + 8

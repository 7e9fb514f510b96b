"""Stored maps, and runs that start in one, on a synthetic world with ground truth."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from oracle import OraclePredictor, OracleTracker, OracleWorld, index_of, room_path, room_points

from relocalizer.errors import MapError
from relocalizer.geometry import align_points
from relocalizer.maps.map_export import export_map
from relocalizer.maps.map_facts import facts_of
from relocalizer.maps.map_rules import validate
from relocalizer.maps.reference_map import ReferenceMap
from relocalizer.retrieval import FaissRetriever
from slam.components.assembly import Components
from slam.config.schema import SlamConfig
from slam.evaluation.trajectory_files import read_tum
from slam.events import FrameProcessed, KeyframeAdded, Relocalized
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
from slam.map.tracking_status import TrackingState
from slam.mapping.mapper import Mapper
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster
from slam.sessions.stored_map import restore, shares_world_with, to_reference_map
from slam.system import Slam

FIRST = range(0, 120)  # about half of the way around the room
TABLES = ("keyframes", "features", "observations", "landmarks", "edges", "frames")


def room(blind=(), path=None) -> OracleWorld:
    points = room_points(np.random.default_rng(3), 2500)
    world = OracleWorld(path or room_path(), points, pixel_noise=0.3, blind=frozenset(blind))
    # A map keeps descriptors in bytes, as those of real features are: nowhere negative, and without a dominant entry.
    world.descriptors[:] = np.abs(world.descriptors)
    world.descriptors /= np.linalg.norm(world.descriptors, axis=1, keepdims=True)
    return world


def walk(world, indices, **options):
    """Slam over some frames of a world, its result and its events."""
    events: list = []
    slam = Slam(
        options.pop("config", SlamConfig()),
        Components(
            predictor=OraclePredictor(world),
            tracker=OracleTracker(world),
            retriever=FaissRetriever(),
            optimizer=GtsamOptimizer(),
            adjuster=SchurBundleAdjuster(),
        ),
        observers=[events.append],
        **options,
    )
    for index in indices:
        slam.step(world.frame(index))
    return slam, slam.finish(), events


def at_rest(slam: Slam, world: OracleWorld) -> ReferenceMap:
    """The map with images that the oracle can read; JPEG compression would destroy them."""
    saved = slam.saved_map()
    return replace(saved, image=lambda row: world.frame(int(saved.keyframes.frame_indices[row])).image)


def of(events, kind):
    return [event for event in events if isinstance(event, kind)]


def arrays_of(reference_map: ReferenceMap) -> dict[str, np.ndarray]:
    tables = {name: getattr(reference_map, name) for name in TABLES}
    return {f"{n}.{f.name}": getattr(t, f.name) for n, t in tables.items() for f in fields(t)}


def changed(before: ReferenceMap, after: ReferenceMap) -> set[str]:
    """Names of the arrays whose bytes differ; descriptors may be rounded once more."""
    pairs = {name: (array, arrays_of(after)[name]) for name, array in arrays_of(before).items()}
    return {
        name
        for name, (a, b) in pairs.items()
        if a.shape != b.shape
        or (a.dtype == np.uint8 and np.abs(a.astype(int) - b).max() > 1)
        or (a.dtype != np.uint8 and a.tobytes() != b.tobytes())
    }


@pytest.fixture(scope="module")
def world():
    return room()


@pytest.fixture(scope="module")
def first_run(world):
    return walk(world, FIRST)


@pytest.fixture(scope="module")
def first_map(first_run, world):
    return at_rest(first_run[0], world)


def error_in_map(result, first_map, world) -> float:
    """RMSE of a run's positions after aligning the map to the ground truth; fraction of the room's size."""
    rows = first_map.keyframes.frame_indices
    truth = world.ground_truth.positions
    truth_from_map = align_points(truth[rows], first_map.keyframes.translations)
    off = truth_from_map.apply(result.trajectory.positions) - truth[result.frame_indices]
    return float(np.sqrt((off**2).sum(axis=1).mean()) / np.linalg.norm(np.ptp(truth, axis=0)))


# --- storing and restoring ----------------------------------------------------------------------------


def test_the_map_of_a_run_is_valid_and_complete(first_run, first_map):
    _, result, _ = first_run
    validate(first_map)
    assert first_map.keyframes.ids.tolist() == sorted(result.graph.keyframes)
    assert len(first_map.edges.i) == len(result.graph.edges)
    assert np.allclose(first_map.points_world, result.landmark_points)
    assert first_map.frames.indices.tolist() == result.frame_indices.tolist()


def test_only_features_with_a_track_are_stored(first_run, first_map):
    on_track = sum(int((t >= 0).sum()) for t in first_run[0]._mapper.map.landmarks.feature_tracks.values())
    assert len(first_map.features.landmark) == on_track
    assert (first_map.features.landmark >= 0).all()


def test_a_map_restored_into_an_empty_live_map_and_stored_again_has_the_same_bytes(first_map, world):
    predictor = OraclePredictor(world)
    mapper = Mapper(SlamConfig(), predictor, SchurBundleAdjuster())
    earlier = restore(first_map, mapper.map, predictor, FaissRetriever())
    again = to_reference_map(mapper.map, earlier.frames, first_map.provenance, lambda k: b"")
    assert changed(first_map, again) <= {"frames.rotations"}  # they pass through quaternions
    assert np.allclose(again.frames.rotations, first_map.frames.rotations, atol=1e-12)


def test_a_second_map_in_the_same_live_map_gets_new_ids(first_map, world):
    predictor = OraclePredictor(world)
    mapper = Mapper(SlamConfig(), predictor, SchurBundleAdjuster())
    restore(first_map, mapper.map, predictor, None)
    second = restore(first_map, mapper.map, predictor, None, gap=10)
    last = int(first_map.keyframes.ids[-1])
    assert second.keyframe_ids[0] == last + 11
    assert len(set(mapper.map.graph.segment_of.values())) == 2
    mine = mapper.map.landmarks.observed[second.keyframe_ids[0]].ids
    assert not np.isin(mine, mapper.map.landmarks.observed[0].ids).any()
    twice = mapper.map.landmarks.points_world(mapper.map.landmarks.landmark_ids(), mapper.map.graph)
    assert np.allclose(twice, np.concatenate([first_map.points_world, first_map.points_world]))


def test_a_restored_edge_has_the_same_weight(first_map, world):
    weights = np.ones(len(first_map.edges.i))
    weights[3] = 0.25
    doubted = replace(first_map, edges=replace(first_map.edges, weights=weights))
    mapper = Mapper(SlamConfig(), OraclePredictor(world), SchurBundleAdjuster())
    restore(doubted, mapper.map, OraclePredictor(world), None)
    pair = (int(doubted.edges.i[3]), int(doubted.edges.j[3]))
    assert mapper.map.graph.weight(mapper.map.graph.edges[pair]) == 0.25
    assert sum(mapper.map.graph.weight(edge) for edge in mapper.map.graph.edges.values()) == len(weights) - 0.75


# --- continuing a map ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second_run(first_map, world):
    return walk(world, range(90, 170), start_map=first_map)


def test_a_run_that_starts_in_a_map_is_relocalized_at_once_and_is_in_its_frame(second_run, first_map, world):
    _, result, events = second_run
    assert [e.frame_index for e in of(events, Relocalized)] == [90]
    assert result.frame_indices.tolist() == list(range(90, 170))
    assert error_in_map(result, first_map, world) < 0.003


def test_the_extended_map_contains_both_runs(second_run, first_map, world):
    slam, result, events = second_run
    extended = at_rest(slam, world)
    validate(extended)
    added = [e.keyframe.id for e in of(events, KeyframeAdded)]
    assert extended.keyframes.ids.tolist() == [*first_map.keyframes.ids.tolist(), *added]
    assert set(extended.keyframes.segment.tolist()) == {0}
    assert len(extended.frames.indices) == len(first_map.frames.indices) + len(result.trajectory)
    assert len(result.keyframe_trajectory) == len(added)


def test_the_images_of_both_runs_are_in_the_extended_map(first_map, second_run, world):
    slam, _, events = second_run
    added = {e.keyframe.id for e in of(events, KeyframeAdded)}
    extended = slam.saved_map()
    frame_of = dict(zip(extended.keyframes.ids.tolist(), extended.keyframes.frame_indices.tolist(), strict=True))
    for row, k in enumerate(extended.keyframes.ids.tolist()):
        assert k in added or first_map.image(first_map.row_of[k]).shape == (480, 640, 3)
        assert index_of(extended.image(row)) == frame_of[k]


def test_both_runs_are_sessions_of_the_extended_map(second_run, first_map, world):
    extended = at_rest(second_run[0], world)
    old = len(first_map.keyframes)
    assert extended.session_of_keyframe.tolist() == [0] * old + [1] * (len(extended.keyframes) - old)
    assert np.bincount(extended.session_of_frame)[0] == len(first_map.frames.indices)


def test_a_keyframe_of_the_deferred_relocalization_belongs_to_its_run(tmp_path, monkeypatch):
    """The stored map is in order of time, although the ids of its keyframes are not."""
    monkeypatch.setattr(
        "slam.relocalization.deferred.COVERED_RATIO", 1.0
    )  # each frame recognized then becomes a keyframe
    path = room_path()
    early = room(path=[*path[:60], *path[115:120], *path[55:135]])
    slam, result, _ = walk(early, range(145))
    saved = at_rest(slam, early)
    assert (np.diff(saved.keyframes.timestamps_ns) < 0).any()
    [file] = export_map(saved, "tum", tmp_path / "poses.txt")
    written = read_tum(file)
    assert np.array_equal(written.timestamps_ns, result.trajectory.timestamps_ns)
    assert np.allclose(written.positions, result.trajectory.positions, atol=1e-8)
    assert [part["sessions"] for part in facts_of(saved)["segments"]] == [1]


def test_the_map_in_which_a_run_starts_is_not_changed(first_map, world):
    before = {name: array.copy() for name, array in arrays_of(first_map).items()}
    walk(world, range(100, 140), start_map=first_map)
    assert all(np.array_equal(array, before[name]) for name, array in arrays_of(first_map).items())


def test_a_run_that_starts_outside_the_map_begins_a_segment_and_joins_the_map_when_it_reaches_it(world):
    early, _, _ = walk(world, range(0, 60))
    first_map = at_rest(early, world)
    slam, result, _ = walk(world, range(120, 240), start_map=first_map)
    extended = at_rest(slam, world)
    new = extended.keyframes.ids > first_map.keyframes.ids[-1]
    joined = extended.keyframes.segment[new] == 0
    assert joined.all()
    assert shares_world_with(result, first_map.keyframes.ids.tolist())
    assert error_in_map(result, first_map, world) < 0.02


def test_a_run_that_never_reaches_the_map_leaves_two_segments(world):
    early, _, _ = walk(world, range(0, 40))
    first_map = at_rest(early, world)
    slam, result, _ = walk(world, range(90, 150), start_map=first_map)
    extended = at_rest(slam, world)
    assert set(extended.keyframes.segment.tolist()) == {0, 1}
    assert result.segment == 1
    assert not shares_world_with(result, first_map.keyframes.ids.tolist())


def test_lengths_stay_meters_in_a_metric_map(first_map, world):
    metric = replace(first_map, provenance=replace(first_map.provenance, units="meters"))
    slam, result, _ = walk(world, range(100, 110), start_map=metric)
    assert slam.saved_map().provenance.units == "meters"
    assert result.units.note == "lengths in meters: that of the map the run began in"


def test_a_path_that_is_not_connected_to_the_metric_map_is_not_in_meters(world):
    early = at_rest(walk(world, range(0, 40))[0], world)
    metric = replace(early, provenance=replace(early.provenance, units="meters"))
    _, result, _ = walk(world, range(90, 120), start_map=metric)
    assert len(result.trajectory)
    assert result.units.name == "map units"


def two_parts(world, unanchored) -> ReferenceMap:
    """Frames 0 to 39 and 90 to 149 as two segments of a metric map, of which one is not anchored."""
    first = at_rest(walk(world, range(0, 40))[0], world)
    second = at_rest(walk(world, range(90, 150), start_map=first)[0], world)
    assert set(second.keyframes.segment.tolist()) == {0, 1}
    return replace(second, provenance=replace(second.provenance, units="meters", unanchored=(unanchored,)))


@pytest.mark.parametrize("unanchored", [0, 1])
def test_a_run_is_in_meters_when_the_segment_that_it_continues_is(world, unanchored):
    parts = two_parts(world, unanchored)
    slam, result, _ = walk(world, range(110, 120), start_map=parts)
    assert result.segment == 1
    assert result.units.name == ("meters" if unanchored == 0 else "map units")
    assert at_rest(slam, world).provenance.unanchored == (unanchored,)


# --- localization mode --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def localized(first_map, world):
    return walk(world, range(20, 110), start_map=first_map, localize_only=True)


def test_every_frame_of_a_mapped_place_gets_a_pose_in_the_map(localized, first_map, world):
    _, result, _ = localized
    assert result.frame_indices.tolist() == list(range(20, 110))
    assert error_in_map(result, first_map, world) < 0.005


def test_localization_does_not_change_the_map(localized, first_map, world):
    slam, _, events = localized
    assert of(events, KeyframeAdded) == []
    assert all(name.startswith("frames.") for name in changed(first_map, slam.saved_map()))


def test_frames_of_other_places_are_lost_with_a_reason_and_no_map_is_begun(first_map, world):
    blind = room(blind=range(60, 110))
    slam, result, events = walk(blind, range(40, 120), start_map=first_map, localize_only=True)
    lost = [e for e in of(events, FrameProcessed) if e.world_from_cam is None]
    assert {e.frame.index for e in lost} == set(range(60, 110))
    assert all(e.state is TrackingState.LOST and e.reason for e in lost)
    assert set(slam.saved_map().keyframes.segment.tolist()) == {0}
    assert set(result.frame_indices.tolist()) == {*range(40, 60), *range(110, 120)}


def test_in_a_map_without_keyframes_no_frame_is_localized_and_no_map_is_begun(world):
    slam, _, _ = walk(world, range(1))
    empty = slam.saved_map()
    assert len(empty.keyframes) == 0
    _, result, events = walk(world, range(60), start_map=empty, localize_only=True)
    assert len(result.trajectory) == 0
    assert of(events, KeyframeAdded) == []
    assert {e.reason for e in of(events, FrameProcessed)} == {"the map has no keyframe to be found by"}


# --- predictors that can read a map -------------------------------------------------------------------


def refusal(first_map, world, **changed):
    other = replace(first_map, provenance=replace(first_map.provenance, **changed))
    with pytest.raises(MapError) as caught:
        walk(world, [], start_map=other)
    return str(caught.value)


def test_a_map_of_another_predictor_is_refused_with_what_to_add(first_map, world):
    said = refusal(first_map, world, predictor="reloc3r-512", descriptor="reloc3r-512-gem")
    assert "made by predictor reloc3r-512" in said
    assert "add --predictor reloc3r-512" in said


def test_a_map_with_other_place_descriptors_is_refused(first_map, world):
    assert "with vlad descriptors, this is oracle with oracle" in refusal(first_map, world, descriptor="vlad")


def test_a_map_of_other_weights_is_refused(first_map, world):
    class Trained(OraclePredictor):
        weights_sha256 = "b" * 64

    mapper = Mapper(SlamConfig(), Trained(world), SchurBundleAdjuster())
    other = replace(first_map, provenance=replace(first_map.provenance, weights_sha256="a" * 64))
    with pytest.raises(MapError, match=r"made with the weights aaaaaaaaaaaa\.\.\., these are bbbbbbbbbbbb"):
        restore(other, mapper.map, Trained(world), None)


def test_place_descriptors_of_another_length_are_refused(first_map, world):
    short = replace(
        first_map, keyframes=replace(first_map.keyframes, descriptors=first_map.keyframes.descriptors[:, :9])
    )
    with pytest.raises(MapError, match="place descriptors of 9 numbers, this predictor makes 256"):
        walk(world, [], start_map=short)

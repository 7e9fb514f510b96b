"""Two maps in one, on a world whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oracle import OraclePredictor, OracleTracker, OracleWorld, room_path, room_points

from relocalizer.errors import MapError
from relocalizer.geometry import align_points
from relocalizer.maps.map_rules import validate
from relocalizer.maps.reference_map import ReferenceMap
from relocalizer.retrieval import FaissRetriever
from slam.components.assembly import Components
from slam.config.schema import SlamConfig
from slam.events import EdgeRejected
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
from slam.map.keyframe_graph import EdgeKind
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster
from slam.sessions.merging import merge_maps, why_no_overlap
from slam.system import Slam


def room() -> OracleWorld:
    world = OracleWorld(room_path(), room_points(np.random.default_rng(3), 2500), pixel_noise=0.3)
    world.descriptors **= 2  # a map keeps descriptors in bytes, as those of real features are: nowhere negative
    world.descriptors /= np.linalg.norm(world.descriptors, axis=1, keepdims=True)
    return world


def components_of(world: OracleWorld) -> Components:
    return Components(
        predictor=OraclePredictor(world),
        tracker=OracleTracker(world),
        retriever=FaissRetriever(),
        optimizer=GtsamOptimizer(),
        adjuster=SchurBundleAdjuster(),
    )


def mapped(world: OracleWorld, indices) -> ReferenceMap:
    slam = Slam(SlamConfig(), components_of(world))
    for index in indices:
        slam.step(world.frame(index))
    slam.finish()
    saved = slam.saved_map()
    return replace(saved, image=lambda row: world.frame(int(saved.keyframes.frame_indices[row])).image)


def merged(world: OracleWorld, a: ReferenceMap, b: ReferenceMap, **options):
    return merge_maps(a, b, SlamConfig(), components_of(world), **options)


def error(world: OracleWorld, m: ReferenceMap) -> float:
    """RMSE of the keyframes' positions against the truth, as a share of the room's size."""
    a, b = world.ground_truth.positions[m.keyframes.frame_indices], m.keyframes.translations
    off = align_points(a, b).apply(b) - a
    return float(np.sqrt((off**2).sum(axis=1).mean()) / np.linalg.norm(np.ptp(world.ground_truth.positions, axis=0)))


@pytest.fixture(scope="module")
def world():
    return room()


@pytest.fixture(scope="module")
def halves(world):
    return mapped(world, range(0, 130)), mapped(world, range(100, 230))


@pytest.fixture(scope="module")
def whole(world, halves):
    return merged(world, *halves)


def test_two_halves_that_overlap_become_one_map_as_good_as_they_were(world, halves, whole):
    validate(whole.map)
    assert whole.apart == 0
    assert set(whole.map.keyframes.segment.tolist()) == {0}
    assert error(world, whole.map) < 1.5 * max(error(world, half) for half in halves)


def test_nothing_of_either_half_is_lost(halves, whole):
    assert len(whole.map.keyframes) == sum(len(half.keyframes) for half in halves)
    assert len(whole.map.frames.indices) == sum(len(half.frames.indices) for half in halves)


def test_each_half_is_a_session_of_the_whole(halves, whole):
    counts = [len(half.keyframes) for half in halves]
    assert np.bincount(whole.map.session_of_keyframe).tolist() == counts
    assert np.bincount(whole.map.session_of_frame).tolist() == [len(half.frames.indices) for half in halves]


def test_the_first_maps_keyframes_keep_their_ids(halves, whole):
    first = halves[0].keyframes
    kept = whole.map.keyframes.ids[: len(first)]
    assert np.array_equal(kept, first.ids)
    assert np.array_equal(whole.map.keyframes.timestamps_ns[: len(first)], first.timestamps_ns)


def test_overlaps_are_named_and_true(world, whole):
    assert whole.loops
    for i, j, _ in whole.loops:
        a, b = (int(whole.map.keyframes.frame_indices[whole.map.row_of[k]]) for k in (i, j))
        apart = np.linalg.norm(world.ground_truth.positions[a] - world.ground_truth.positions[b])
        assert apart < 1.0


def test_points_seen_by_both_halves_have_one_name(halves, whole):
    assert len(whole.map.landmarks) < sum(len(half.landmarks) for half in halves)


def test_images_of_both_go_along(halves, whole):
    rows = [0, len(halves[0].keyframes)]
    assert all(whole.map.image.jpeg(row)[:2] == b"\xff\xd8" for row in rows)


def test_progress_is_reported_of_the_comparison_and_of_the_refinement(world):
    reported = []
    a, b = mapped(world, range(0, 60)), mapped(world, range(30, 90))
    merged(world, a, b, on_progress=lambda *step: reported.append(step))
    compared = len(b.keyframes)
    assert reported[:compared] == [("keyframes compared", k, compared) for k in range(1, compared + 1)]
    assert reported[compared:] == [("rounds of bundle adjustment", k, 3) for k in range(3)]


def test_maps_without_overlap_are_refused_with_a_reason(world):
    with pytest.raises(MapError, match=r"maps: no overlap found: .*; map the ground between them"):
        merged(world, mapped(world, range(0, 30)), mapped(world, range(100, 130)))


def test_of_the_places_that_were_none_the_one_that_most_landmarks_spoke_for_is_named():
    def rejected(i: int, landmarks: int, reason: str) -> EdgeRejected:
        return EdgeRejected(i=i, j=90, kind=EdgeKind.LOOP, reason=reason, landmarks=landmarks, frame_index=0)

    events = [
        rejected(1, 12, "12 points of keyframe 1 matched, 15 needed"),
        rejected(2, 40, "deferred: 40 landmarks and no second loop that agrees, 60 needed alone"),
        rejected(3, 0, "confidence 0.05 of the pair estimate, 0.1 needed"),
    ]
    assert why_no_overlap(events, keyframes=9) == (
        "3 places looked alike, none held (the nearest: keyframes 2 and 90, "
        "deferred: 40 landmarks and no second loop that agrees, 60 needed alone)"
    )
    assert why_no_overlap([], keyframes=9) == "none of 9 keyframes looks like a place of the other map"


def test_a_metric_map_comes_first_so_that_meters_are_not_lost(world, halves):
    metric = replace(halves[1], provenance=replace(halves[1].provenance, units="meters"))
    with pytest.raises(MapError, match="the second is in meters, the first is not; name the metric one first"):
        merged(world, halves[0], metric)


def test_a_segment_that_sees_nothing_of_the_first_map_stays_apart(world):
    """Of a second map in two parts, one overlaps: it joins, the other goes along on its own."""
    near, far = mapped(world, range(100, 130)), mapped(world, range(150, 180))
    both = side_by_side(near, far, world)
    result = merged(world, mapped(world, range(60, 110)), both)
    assert result.apart == 1
    assert len(set(result.map.keyframes.segment.tolist())) == 2


def metric(m: ReferenceMap, *unanchored: int) -> ReferenceMap:
    source = "2 m given"
    return replace(
        m, provenance=replace(m.provenance, units="meters", scale_source=source, unanchored=tuple(unanchored))
    )


def test_what_joins_a_metric_map_is_in_meters_and_what_stays_apart_is_not(world):
    near, far = mapped(world, range(100, 130)), mapped(world, range(150, 180))
    both = side_by_side(near, far, world)
    result = merged(world, metric(mapped(world, range(60, 110))), both)
    assert (result.apart, result.map.provenance.units, result.map.provenance.scale_source) == (1, "meters", "2 m given")
    [apart] = set(result.map.keyframes.segment.tolist()) - {0}
    assert result.map.provenance.unanchored == (apart,)
    validate(result.map)


def side_by_side(a: ReferenceMap, b: ReferenceMap, world: OracleWorld) -> ReferenceMap:
    """Two maps as two segments of one."""
    from slam.mapping.mapper import Mapper
    from slam.sessions.stored_map import restore, to_reference_map

    mapper = Mapper(SlamConfig(), OraclePredictor(world), SchurBundleAdjuster())
    first = restore(a, mapper.map, OraclePredictor(world), None)
    second = restore(b, mapper.map, OraclePredictor(world), None, gap=10)
    jpeg = {**first.jpeg, **second.jpeg}
    saved = to_reference_map(mapper.map, [*first.frames, *second.frames], a.provenance, lambda k: jpeg[k]())
    return replace(saved, image=lambda row: world.frame(int(saved.keyframes.frame_indices[row])).image)

"""Images of a known room located in a map of it: exactly where landmarks help, roughly where not, or not at all."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from map_samples import in_two_segments
from oracle import OraclePredictor, OracleTracker, OracleWorld, look_along, room_path, room_points

from relocalizer.config import RelocalizationConfig
from relocalizer.errors import MapError
from relocalizer.geometry import exp_so3, log_so3, rigid, rotation_angle, rotation_matrix, translation_of
from relocalizer.interfaces import CalibratedImage, NoEstimate
from relocalizer.maps.image_matching import PosedImage
from relocalizer.maps.map_from_poses import map_from_poses
from relocalizer.maps.map_rules import validate
from relocalizer.relocalizer import NotFound, Relocalization, Relocalizer

MAPPED = range(0, 200, 8)


class Tracker(OracleTracker):
    """Descriptors without signs, as those of real images: a map keeps none."""

    def detect(self, gray):
        found = super().detect(gray)
        positive = np.maximum(found.descriptors, 0.0)
        return replace(found, descriptors=positive / np.linalg.norm(positive, axis=1, keepdims=True))


class Silent(OraclePredictor):
    """A predictor that relates nothing to anything."""

    def relate(self, pairs):
        return [NoEstimate("nothing in common")] * len(pairs)


class Room:
    """A world, a map of some of its frames, and views of any."""

    def __init__(self, world, mapped=MAPPED, **noise):
        world.descriptors[:] = np.abs(world.descriptors)
        self.world = world
        self.tracker = Tracker(world)
        self.predictor = OraclePredictor(world, **noise)
        self.map = self.to_reference_map(mapped)

    def to_reference_map(self, mapped):
        images = [
            PosedImage(
                name=str(k),
                read=lambda k=k: self.world.frame(k).image,
                camera=self.world.camera,
                world_from_cam=self.world.poses[k],
                timestamp_ns=k,
            )
            for k in mapped
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("relocalizer.maps.image_matching.detect_features", lambda gray, *_: self.tracker.detect(gray))
            return map_from_poses(images, self.predictor)

    def view(self, k, *, camera=True):
        frame = self.world.frame(k)
        features = self.tracker.detect(self.tracker.gray(frame.image))
        return CalibratedImage(frame.image, frame.camera, features) if camera else CalibratedImage(frame.image)

    def relocalizer(self, reference_map=None, **changes):
        return Relocalizer(reference_map or self.map, self.predictor, config=RelocalizationConfig(**changes))

    def error(self, k, outcome):
        """(meters, degrees); a refusal fails the test and shows its reason."""
        assert isinstance(outcome, Relocalization), outcome
        between = self.world.poses[k].inv() * outcome.world_from_cam
        return np.linalg.norm(translation_of(between)), np.degrees(rotation_angle(rotation_matrix(between)))


def bare(reference_map):
    """The same map without the place of any landmark."""
    table = reference_map.landmarks
    none = {name: getattr(table, name)[:0] for name in type(table).__dataclass_fields__}
    return replace(reference_map, landmarks=type(table)(**none))


@pytest.fixture(scope="module")
def room():
    points = room_points(np.random.default_rng(3), 2500)
    return Room(OracleWorld(room_path(240), points, pixel_noise=0.3))


def test_a_map_from_posed_images_is_a_valid_map_in_meters(room):
    validate(room.map)
    assert room.map.provenance.units == "meters"
    assert len(room.map.landmarks) > 800


@pytest.mark.parametrize("k", [3, 51, 118, 230])
def test_an_image_is_found_to_millimetres_on_its_landmarks(room, k):
    outcome = room.relocalizer().locate(room.view(k))
    meters, degrees = room.error(k, outcome)
    assert meters < 0.005
    assert degrees < 0.1
    assert outcome.how == "landmarks"
    assert outcome.confidence > 0.9
    assert outcome.inliers > 100


def test_without_landmarks_the_pose_is_averaged_and_less_sure(room):
    refined = room.relocalizer().locate(room.view(51))
    averaged = room.relocalizer(bare(room.map)).locate(room.view(51))
    meters, degrees = room.error(51, averaged)
    assert averaged.how == "averaged"
    assert averaged.inliers == 0
    assert meters < 0.15
    assert degrees < 1.0
    assert np.trace(averaged.covariance) > 10 * np.trace(refined.covariance)


def test_an_image_of_an_unknown_camera_is_averaged(room):
    outcome = room.relocalizer().locate(room.view(51, camera=False))
    assert room.error(51, outcome)[0] < 0.15
    assert outcome.how == "averaged"


def test_many_at_once_are_the_same_as_one_by_one(room):
    relocalizer, views = room.relocalizer(), [room.view(k) for k in (10, 77, 140)]
    together = relocalizer.locate_many(views)
    for view, outcome in zip(views, together, strict=True):
        alone = relocalizer.locate(view)
        np.testing.assert_array_equal(alone.world_from_cam.as_matrix(), outcome.world_from_cam.as_matrix())
        assert alone.confidence == outcome.confidence


def test_many_images_are_encoded_and_related_in_one_call_each(room):
    calls = []

    class Counting(OraclePredictor):
        def encode(self, views):
            calls.append(("encode", len(views)))
            return super().encode(views)

        def relate(self, pairs):
            calls.append(("relate", len(pairs)))
            return super().relate(pairs)

    relocalizer = Relocalizer(room.map, Counting(room.world), config=RelocalizationConfig(candidates=5))
    for row in range(len(room.map.keyframes)):
        relocalizer._restore(row)
    calls.clear()
    relocalizer.locate_many([room.view(k) for k in (10, 77, 140)])
    assert calls == [("encode", 3), ("relate", 15)]


def test_an_image_that_shows_nothing_is_not_found_and_says_why():
    points = room_points(np.random.default_rng(3), 2500)
    room = Room(OracleWorld(room_path(240), points, blind=frozenset([51])))
    assert room.relocalizer().locate(room.view(51)) == NotFound("0 landmarks matched, 8 needed")


def test_without_landmarks_an_image_that_no_keyframe_knows_is_not_found_either():
    points = room_points(np.random.default_rng(3), 2500)
    room = Room(OracleWorld(room_path(240), points, blind=frozenset([51])))
    outcome = room.relocalizer(bare(room.map)).locate(room.view(51))
    assert outcome == NotFound("none of 8 keyframes could be related to it (0 matches, 20 needed)")


def test_an_image_of_another_room_is_not_found(room):
    elsewhere = Room(OracleWorld(room_path(240), room_points(np.random.default_rng(8), 2500), seed=9))
    outcome = Relocalizer(room.map, Silent(room.world)).locate(elsewhere.view(51))
    assert isinstance(outcome, NotFound)
    assert outcome.reason.endswith("needed")


def test_wrong_pairs_do_not_bend_a_pose_that_landmarks_tell(room):
    noisy = Room(room.world, outlier_rate=0.4)
    assert noisy.error(118, noisy.relocalizer().locate(noisy.view(118)))[0] < 0.005


def test_two_rooms_that_look_the_same_make_every_pose_doubtful():
    """One building, two equal rooms 40 m apart: the landmarks agree with either."""
    points = room_points(np.random.default_rng(3), 1200)
    shift = np.array([40.0, 0.0, 0.0])
    path = room_path(120)
    both = [*path, *[rigid(rotation_matrix(p), translation_of(p) + shift) for p in path]]
    world = OracleWorld(both, np.concatenate([points, points + shift]), pixel_noise=0.3)
    world.descriptors[len(points) :] = world.descriptors[: len(points)]
    room = Room(world, mapped=[*range(0, 100, 6), *range(123, 220, 6)])
    # A place is recognized by its appearance, and the two look alike.
    room.predictor._waves[:, :3] = 0.0
    described = [
        room.predictor.describe(room.predictor.encode([room.view(k)])[0]) for k in room.map.keyframes.timestamps_ns
    ]
    reference = replace(room.map, keyframes=replace(room.map.keyframes, descriptors=np.array(described)))
    outcome = room.relocalizer(reference, candidates=20).locate(room.view(33))
    assert isinstance(outcome, NotFound)
    assert "agree with one place and" in outcome.reason


def test_keyframes_that_contradict_the_landmarks_refuse_the_pose(room):
    class Turned(OraclePredictor):
        def relate(self, pairs):
            found = super().relate(pairs)
            return [replace(e, i_from_j_rotation=e.i_from_j_rotation @ exp_so3([0.0, 0.3, 0.0])) for e in found]

    outcome = Relocalizer(room.map, Turned(room.world)).locate(room.view(51))
    assert isinstance(outcome, NotFound)
    assert outcome.reason.startswith("keyframes and landmarks disagree by 1")
    assert outcome.reason.endswith("deg (limit 8)")


def test_a_predictor_that_relates_nothing_leaves_the_landmarks_to_tell_the_pose(room):
    outcome = Relocalizer(room.map, Silent(room.world)).locate(room.view(51))
    assert room.error(51, outcome)[0] < 0.005


def test_fewer_landmarks_than_asked_for_are_refused_with_both_numbers(room):
    config = RelocalizationConfig(min_inliers=1000)
    outcome = Relocalizer(room.map, Silent(room.world), config=config).locate(room.view(51))
    assert isinstance(outcome, NotFound)
    assert re.fullmatch(r"\d+ of \d+ projected landmarks agree, 1000 and \d+% needed", outcome.reason)


def test_where_landmarks_are_too_few_to_speak_the_keyframes_do(room):
    outcome = room.relocalizer(min_inliers=1000).locate(room.view(51))
    assert room.error(51, outcome)[0] < 0.15
    assert outcome.how == "averaged"


def test_when_neither_landmarks_nor_keyframes_tell_both_reasons_are_given(room):
    outcome = room.relocalizer(min_inliers=1000, min_views=20).locate(room.view(51))
    assert isinstance(outcome, NotFound)
    assert "projected landmarks agree, 1000 and" in outcome.reason
    assert outcome.reason.endswith("needed; without them, 8 of 8 keyframes agree, 20 needed")


def test_landmarks_in_one_corner_of_the_image_are_refused(room):
    view = room.view(51)
    corner = (view.features.pixels < [160, 160]).all(axis=1)
    few = replace(
        view.features,
        pixels=view.features.pixels[corner],
        descriptors=view.features.descriptors[corner],
        scales=view.features.scales[corner],
    )
    outcome = room.relocalizer(min_inliers=6).locate(replace(view, features=few))
    assert isinstance(outcome, NotFound)
    assert "of 48 parts of the image, 4 needed" in outcome.reason


def test_the_pose_is_in_the_segment_whose_keyframes_show_the_place(room):
    """The second half of the map is another segment, in a world of its own."""
    table = room.map.keyframes
    later = np.arange(len(table)) >= 13
    turn = rigid(exp_so3([0.0, 0.0, 2.0]), [30.0, 5.0, 0.0])
    moved = replace(
        table,
        segment=later.astype(np.int64),
        rotations=np.where(later[:, None, None], rotation_matrix(turn) @ table.rotations, table.rotations),
        translations=np.where(later[:, None], turn.apply(table.translations), table.translations),
    )
    # Only landmarks of the later keyframes move with them.
    outcome = room.relocalizer(replace(room.map, keyframes=moved)).locate(room.view(150))
    assert isinstance(outcome, Relocalization)
    assert outcome.segment == 1
    between = (turn * room.world.poses[150]).inv() * outcome.world_from_cam
    assert np.linalg.norm(translation_of(between)) < 0.02


def test_candidates_lie_apart():
    """A camera that stood still for twenty images is one candidate, not twenty."""
    still = [look_along(np.array([0.0, 0.0, 1.4]), np.array([1.0, 0.2, 0.0]))] * 20
    walk = [look_along(np.array([0.0, 0.1 * k, 1.4]), np.array([1.0, 0.2, 0.0])) for k in range(1, 12)]
    world = OracleWorld([*still, *walk], room_points(np.random.default_rng(3), 2500))
    room = Room(world, mapped=range(30))
    relocalizer = room.relocalizer(candidates=5)
    [query] = relocalizer._queries([room.view(0)])
    places = [translation_of(world.poses[row]).round(3).tolist() for row in query.candidates]
    assert len(places) == 5
    assert len({tuple(place) for place in places}) == 5


def test_a_map_whose_settings_of_features_cannot_be_is_refused(room):
    provenance = replace(room.map.provenance, features={"max_features": -5})
    with pytest.raises(MapError, match=r"features that cannot be \(max_features\)"):
        Relocalizer(replace(room.map, provenance=provenance), room.predictor)


def test_a_map_of_another_predictor_is_refused(room):
    class Other(OraclePredictor):
        name = "other"

    with pytest.raises(MapError, match="made by predictor oracle"):
        Relocalizer(room.map, Other(room.world))


def test_the_bound_is_metric_in_meters_and_a_share_of_the_depth_otherwise(room):
    assert {segment: bound.distance for segment, bound in room.relocalizer().bounds.items()} == {0: 0.25}
    unmetric = replace(room.map, provenance=replace(room.map.provenance, units="map units"))
    bound = room.relocalizer(unmetric).bounds[0]
    depth = np.median(np.linalg.norm(room.map.points_world - room.map.keyframes.translations.mean(axis=0), axis=1))
    assert bound.distance == pytest.approx(0.1 * depth, rel=0.4)
    assert np.degrees(bound.angle_rad) == pytest.approx(5.0)
    assert (bound.units, room.relocalizer().bounds[0].units) == ("map units", "meters")


def test_an_image_is_located_to_a_bound_in_the_units_of_the_segment_that_it_is_in(room):
    parts = in_two_segments(room.map, scale=40.0)
    validate(parts)
    relocalizer = room.relocalizer(parts)
    first, second = (relocalizer.locate(room.view(k)) for k in (30, 170))
    assert (first.segment, second.segment) == (0, 1)
    assert (first.bound.distance, first.bound.units) == (0.25, "meters")
    assert second.bound.units == "map units"
    alone = room.relocalizer(replace(room.map, provenance=replace(room.map.provenance, units="map units")))
    assert second.bound.distance == pytest.approx(40.0 * alone.bounds[0].distance, rel=0.3)
    assert second.confidence > 0.9  # of an error in its own units, and not of 0.25 in any


def test_errors_are_as_large_as_the_covariance_says(room):
    relocalizer, squared = room.relocalizer(), []
    for k in range(4, 200, 8):
        outcome = relocalizer.locate(room.view(k))
        # cam_from_world errs on its left by what takes the found pose to the true one.
        error = outcome.world_from_cam.inv() * room.world.poses[k]
        vector = np.concatenate([log_so3(rotation_matrix(error)), translation_of(error)])
        squared.append(vector @ np.linalg.solve(outcome.covariance, vector) / 6)
    assert 0.02 < np.mean(squared) < 2.0  # features of this room are four times sharper than assumed


def test_an_empty_list_of_images_gives_an_empty_list(room):
    assert room.relocalizer().locate_many([]) == []

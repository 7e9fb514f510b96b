"""The first pair: found when there is parallax, waited for with a reason when there is none."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from oracle import OraclePredictor, OracleTracker, OracleWorld, look_along, room_path, room_points

from relocalizer.features import match_features
from relocalizer.geometry import direction_angle, rigid, rotation_angle, rotation_matrix, translation_of
from relocalizer.interfaces import NoEstimate
from relocalizer.triangulation import triangulate
from slam.config.schema import InitializationConfig, SlamConfig
from slam.map.frames import InitialPair
from slam.map.slam_map import SlamMap
from slam.tracking.frame_tracker import FrameTracker
from slam.tracking.initializer import MAX_BETWEEN, Initializer, NotInitialized, ReferenceFrame, localize_initial_frames
from slam.tracking.keyframe_policy import common_pixels

CENTER = np.array([0.0, 0.0, 1.5])
FIRST_PAIR = InitializationConfig(
    min_parallax_px=24.0, min_landmarks=60, min_landmark_parallax_deg=0.3, min_parallax_deg=1.5
)
CONFIG = SlamConfig(initialization=FIRST_PAIR)


def world_of(poses, **changes):
    return OracleWorld(poses, room_points(np.random.default_rng(3), 2500), pixel_noise=0.3, **changes)


@dataclass(eq=False)
class Start:
    """An initializer fed from a world, frame by frame."""

    world: OracleWorld
    frame_tracker: FrameTracker
    initializer: Initializer

    def take(self, index):
        frame = self.world.frame(index)
        self.frame_tracker.track(frame)
        return self.initializer.process(frame)

    def take_all(self):
        """Outcomes up to and with the first pair."""
        outcomes = []
        for index in range(len(self.world.poses)):
            outcomes.append(self.take(index))
            if isinstance(outcomes[-1], InitialPair):
                break
        return outcomes


def start(world, config=None, predictor=None, **noise):
    config = config or CONFIG
    slam_map = SlamMap()
    frame_tracker = FrameTracker(config, OracleTracker(world), slam_map)
    predictor = predictor or OraclePredictor(world, **noise)
    return Start(world, frame_tracker, Initializer(config, slam_map, frame_tracker, predictor))


# A pair is found


@pytest.fixture(scope="module")
def walked():
    begun = start(world_of(room_path(60, 0.3)), rotation_sigma_deg=0.05, direction_sigma_deg=0.3)
    return begun, begun.take_all()


def test_a_walk_gives_a_first_pair_and_until_then_reasons(walked):
    _, outcomes = walked
    assert isinstance(outcomes[-1], InitialPair)
    assert len(outcomes) > 3
    assert all(isinstance(o, NotInitialized) and o.reason for o in outcomes[:-1])


def test_the_pair_is_the_first_frame_and_the_one_at_hand(walked):
    _, outcomes = walked
    assert outcomes[-1].first.frame.index == 0
    assert outcomes[-1].second.frame.index == len(outcomes) - 1


def test_the_pairs_pose_is_true_up_to_its_length(walked):
    begun, outcomes = walked
    pair, poses = outcomes[-1], begun.world.poses
    truth = poses[0].inv() * poses[pair.second.frame.index]
    turn = rotation_matrix(truth).T @ rotation_matrix(pair.first_from_second)
    assert np.degrees(rotation_angle(turn)) < 0.3
    assert np.degrees(direction_angle(translation_of(truth), translation_of(pair.first_from_second))) < 2.0


def test_the_length_puts_the_median_landmark_at_depth_one(walked):
    begun, outcomes = walked
    pair, camera = outcomes[-1], begun.world.camera
    before, now = common_pixels(pair.first.tracks, pair.second.tracks)
    result = triangulate(
        camera.normalized(before),
        camera.normalized(now),
        pair.first_from_second,
        noise=1.2 / 500,
        min_parallax_rad=0.0053,
    )
    assert np.median(result.points_i[result.good, 2]) == pytest.approx(1.0, abs=1e-6)


def test_the_pair_has_the_parallax_that_was_asked_for(walked):
    _, outcomes = walked
    assert outcomes[-1].parallax_deg >= FIRST_PAIR.min_parallax_deg


def test_the_first_frame_lies_where_the_map_has_it(walked):
    begun, outcomes = walked
    somewhere = rigid(np.eye(3), [1.0, 2.0, 3.0])
    frame, found = next(localize_initial_frames(outcomes[-1], begun.frame_tracker, somewhere))
    assert frame.index == 0
    assert np.allclose(found.world_from_cam.as_matrix(), somewhere.as_matrix())


def test_the_frames_between_are_all_there_in_order_without_either_end(walked):
    _, outcomes = walked
    indices = [frame.index for frame, _ in outcomes[-1].between]
    assert indices == list(range(1, len(outcomes) - 1))


def test_the_frames_between_carry_the_references_tracks(walked):
    _, outcomes = walked
    pair = outcomes[-1]
    for _, tracks in pair.between:
        assert len(tracks) > 50
        assert np.isin(tracks.ids, pair.first.tracks.ids).all()


def test_the_same_frames_give_the_same_pair(walked):
    _, outcomes = walked
    again = start(world_of(room_path(60, 0.3)), rotation_sigma_deg=0.05, direction_sigma_deg=0.3).take_all()
    matrices = (o[-1].first_from_second.as_matrix() for o in (outcomes, again))
    assert len(again) == len(outcomes)
    assert np.array_equal(*matrices)


# Waiting


def test_the_first_frame_is_waited_with_and_says_how_much_it_sees():
    begun = start(world_of(room_path(5, 0.1)))
    outcome = begun.take(0)
    assert re.fullmatch(r"\d{3} points to follow", outcome.reason)
    assert len(begun.frame_tracker.tracks) == int(outcome.reason.split()[0])


def test_a_camera_that_stands_still_waits_for_motion_and_says_how_much():
    outcomes = start(world_of([room_path(10)[0]] * 15)).take_all()
    assert len(outcomes) == 15
    for outcome in outcomes[1:]:
        moved, needed = map(float, re.fullmatch(r"tracks moved ([\d.]+) px, ([\d.]+) needed", outcome.reason).groups())
        assert moved < 2.0
        assert needed == 24.0


def test_a_camera_that_only_turns_waits_and_says_the_direction_is_unknown():
    poses = [look_along(CENTER, np.array([np.cos(a), np.sin(a), 0.0])) for a in np.linspace(0, 0.5, 25)]
    outcomes = start(world_of(poses)).take_all()
    assert not any(isinstance(o, InitialPair) for o in outcomes)
    assert "no baseline" in {o.reason for o in outcomes}


def test_a_camera_that_turns_while_a_predictor_makes_up_a_direction_gets_no_map_either():
    poses = [look_along(CENTER, np.array([np.cos(a), np.sin(a), 0.0])) for a in np.linspace(0, 0.5, 25)]
    outcomes = start(world_of(poses), min_baseline=0.0, direction_sigma_deg=30.0, rotation_sigma_deg=0.05).take_all()
    assert not any(isinstance(o, InitialPair) for o in outcomes)


class NeverSure(OraclePredictor):
    """Finds no pose, and remembers between which frames it was asked for one."""

    def relate(self, pairs):
        self.asked = [*getattr(self, "asked", []), *((i.index, j.index) for i, j in pairs)]
        return [NoEstimate("7 matches, 20 needed")] * len(pairs)


def test_attempts_become_rarer_while_they_fail():
    world = world_of(room_path(400, 0.3))
    predictor = NeverSure(world)
    begun = start(world, predictor=predictor)
    reasons = [begun.take(index).reason for index in range(60)]
    tried = [j for i, j in predictor.asked if i == 0]
    assert all(reasons[j] == "7 matches, 20 needed" for j in tried)
    assert 5 < len(tried) < 18
    moved = [np.median(np.linalg.norm(np.subtract(*both(world, 0, j)), axis=1)) for j in tried]
    assert all(later > 1.1 * earlier for earlier, later in pairwise(moved))


def test_a_camera_that_turned_away_and_back_needs_no_more_motion_than_a_new_one():
    """A look around before the walk: the turn moved the tracks far, and says nothing about the parallax after it."""
    there = np.concatenate([np.linspace(0, 0.5, 25), np.linspace(0.5, 0, 25)])
    look = [look_along(CENTER, np.array([np.cos(a), np.sin(a), 0.0])) for a in there]
    aside = [look_along(CENTER + np.array([0, 0.02 * k, 0]), np.array([1.0, 0, 0])) for k in range(1, 60)]
    walked = start(world_of(aside)).take_all()
    turned = start(world_of([*look, *aside])).take_all()
    assert isinstance(turned[-1], InitialPair)
    assert len(turned) - len(look) <= len(walked) + 3


def both(world, i, j):
    """Pixels in frames i and j of the points seen in both."""
    (in_i, pixels_i), (in_j, pixels_j) = world.visible(i), world.visible(j)
    _, a, b = np.intersect1d(in_i, in_j, return_indices=True)
    return pixels_i[a], pixels_j[b]


class Matched(OraclePredictor):
    """Answers that rest on matches, as those of local features do."""

    def relate(self, pairs):
        return [replace(answer, inliers=50) for answer in super().relate(pairs)]


def test_tracks_that_contradict_an_estimate_from_matches_give_no_pair_but_a_count():
    world = world_of(room_path(60, 0.3))
    begun = start(world, predictor=Matched(world, direction_sigma_deg=0.0, rotation_sigma_deg=40.0))
    outcomes = [begun.take(index) for index in range(12)]
    assert not any(isinstance(o, InitialPair) for o in outcomes)
    assert any(re.fullmatch(r"\d+ of \d+ tracks agree with a first pair, 30 needed", o.reason) for o in outcomes)


def test_tracks_decide_where_they_contradict_a_networks_answer():
    begun = start(world_of(room_path(60, 0.3)), direction_sigma_deg=30.0, rotation_sigma_deg=40.0)
    pair = begun.take_all()[-1]
    assert isinstance(pair, InitialPair)
    truth = begun.world.poses[0].inv() * begun.world.poses[pair.second.frame.index]
    turn = rotation_matrix(truth).T @ rotation_matrix(pair.first_from_second)
    assert np.degrees(rotation_angle(turn)) < 0.5
    assert np.degrees(direction_angle(translation_of(truth), translation_of(pair.first_from_second))) < 3.0


def test_a_network_that_tracks_contradict_is_asked_once():
    class Counted(OraclePredictor):
        asked = 0

        def relate(self, pairs):
            self.asked += len(pairs)
            return super().relate(pairs)

    config = SlamConfig(initialization=FIRST_PAIR.model_copy(update={"min_parallax_px": 5.0}))
    world = world_of(room_path(60, 0.3))
    predictor = Counted(world, direction_sigma_deg=30.0, rotation_sigma_deg=40.0)
    outcomes = start(world, config, predictor).take_all()
    assert isinstance(outcomes[-1], InitialPair)
    assert sum("parallax" in o.reason for o in outcomes[:-1]) > 1
    assert predictor.asked == 1


def test_too_little_parallax_is_said_in_degrees():
    config = SlamConfig(initialization=FIRST_PAIR.model_copy(update={"min_parallax_deg": 25.0, "min_parallax_px": 5.0}))
    begun = start(world_of(room_path(60, 0.3)), config, rotation_sigma_deg=0.05, direction_sigma_deg=0.3)
    reasons = [begun.take(index).reason for index in range(15)]
    assert any(re.fullmatch(r"parallax [\d.]+ deg, 25 needed", r) for r in reasons)


# Wide steps


def wide(step=10):
    """Every tenth frame only, and no tracks survive between them."""
    world = world_of(room_path(60, 0.3)[::step])

    class Breaking(OracleTracker):
        def follow(self, before, after, pixels, guess):
            return pixels.copy(), np.zeros(len(pixels), bool)

    begun = start(world, rotation_sigma_deg=0.05, direction_sigma_deg=0.3)
    tracker = Breaking(world)
    slam_map = SlamMap()
    begun.frame_tracker = FrameTracker(CONFIG, tracker, slam_map)
    predictor = OraclePredictor(world, rotation_sigma_deg=0.05, direction_sigma_deg=0.3)
    begun.initializer = Initializer(CONFIG, slam_map, begun.frame_tracker, predictor)
    return begun


def names_agree(world, pair):
    """Of each track of the second image, whether it is the same point of the world as in the first."""
    first, second = world.visible(pair.first.frame.index), world.visible(pair.second.frame.index)
    names = {tuple(p): s for s, p in zip(first[0].tolist(), first[1].tolist(), strict=True)}
    named = dict(zip(pair.first.tracks.ids.tolist(), map(tuple, pair.first.tracks.pixels.tolist()), strict=True))
    there = {tuple(p): s for s, p in zip(second[0].tolist(), second[1].tolist(), strict=True)}
    tracks = zip(pair.second.tracks.ids.tolist(), map(tuple, pair.second.tracks.pixels.tolist()), strict=True)
    return [names[named[t]] == there[p] for t, p in tracks]


def test_where_tracks_break_points_are_recognized_by_their_looks():
    begun = wide()
    outcomes = begun.take_all()
    assert isinstance(outcomes[-1], InitialPair)
    same = names_agree(begun.world, outcomes[-1])
    assert len(same) >= 60
    assert np.mean(same) > 0.98


def test_points_that_look_alike_are_distinguished_along_the_lines_of_a_sure_estimate():
    begun = wide()
    begun.world.descriptors[1::2] = begun.world.descriptors[::2]
    pair = begun.take_all()[-1]
    assert isinstance(pair, InitialPair)
    by_descriptors = match_features(pair.first.features, pair.second.features, ratio=0.85)
    assert len(pair.second.tracks) > 1.1 * len(by_descriptors)
    assert np.mean(names_agree(begun.world, pair)) > 0.95


def test_a_reference_that_was_recognized_has_no_frames_between():
    assert wide().take_all()[-1].between == []


def test_when_nothing_is_recognized_it_starts_again_with_the_frame_at_hand():
    poses = [look_along(CENTER, np.array([np.cos(a), np.sin(a), 0.0])) for a in (0.0, 0.02, np.pi)]
    walk = [look_along(CENTER + np.array([0.0, 0.06 * k, 0.0]), np.array([-1.0, 0.0, 0.0])) for k in range(1, 15)]
    begun = start(world_of([*poses, *walk]), rotation_sigma_deg=0.05, direction_sigma_deg=0.3)
    outcomes = begun.take_all()
    assert re.fullmatch(r"tracks broke: \d+ points matched, 30 needed", outcomes[2].reason)
    pair = outcomes[-1]
    assert isinstance(pair, InitialPair)
    assert pair.first.frame.index == 2
    assert [frame.index for frame, _ in pair.between] == list(range(3, pair.second.frame.index))


def test_restarting_forgets_the_reference_and_what_was_between():
    begun = start(world_of(room_path(60, 0.3)), rotation_sigma_deg=0.05, direction_sigma_deg=0.3)
    for index in range(3):
        assert isinstance(begun.take(index), NotInitialized)
    begun.initializer.restart()
    outcomes = [begun.take(3)]
    assert "points to follow" in outcomes[0].reason
    while isinstance(outcomes[-1], NotInitialized):
        outcomes.append(begun.take(3 + len(outcomes)))
    pair = outcomes[-1]
    assert pair.first.frame.index == 3
    assert [frame.index for frame, _ in pair.between] == list(range(4, pair.second.frame.index))


def test_an_image_that_shows_nothing_is_a_reference_that_is_given_up():
    poses = room_path(60, 0.3)
    begun = start(world_of(poses, blind=frozenset([0, 1])), rotation_sigma_deg=0.05, direction_sigma_deg=0.3)
    outcomes = begun.take_all()
    assert outcomes[0].reason == "0 points to follow"
    assert isinstance(outcomes[-1], InitialPair)
    assert outcomes[-1].first.frame.index == 2


def test_an_image_is_matched_to_references_before_the_one_that_is_followed():
    ahead, back = np.array([1.0, 0.0, 0.0]), np.array([-1.0, 0.0, 0.0])
    poses = [look_along(CENTER, ahead), look_along(CENTER, back), look_along(CENTER + np.array([0.0, 0.4, 0.0]), ahead)]
    outcomes = start(world_of(poses), rotation_sigma_deg=0.05, direction_sigma_deg=0.3).take_all()
    pair = outcomes[-1]
    assert isinstance(pair, InitialPair)
    assert (pair.first.frame.index, pair.second.frame.index) == (0, 2)
    assert pair.between == []


def test_frames_between_are_remembered_without_their_images_and_never_without_bound():
    frame = world_of(room_path(2, 0.1)).frame(0)
    tracks = start(world_of(room_path(2, 0.1))).frame_tracker.tracks
    reference = ReferenceFrame(None)
    for _ in range(5 * MAX_BETWEEN):
        reference.add_between(frame, tracks)
    assert MAX_BETWEEN // 2 <= len(reference.between) <= MAX_BETWEEN
    assert all(kept.image.size == 0 and kept.timestamp_ns == frame.timestamp_ns for kept, _ in reference.between)

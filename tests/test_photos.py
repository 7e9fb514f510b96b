"""Photos without an order: the view graph, the map that grows from one photo to the next, and what the run says."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from oracle import OraclePredictor, OracleTracker, OracleWorld, room_path, room_points
from scipy.spatial.transform import Rotation
from textured_walk import FOCAL_PX, HEIGHT, WALLS, WIDTH, poses, rendered, textures

from relocalizer.camera import Camera
from relocalizer.errors import ConfigError, SequenceError
from relocalizer.features import LocalFeatures
from relocalizer.geometry import FloatArray, stack_matrices
from relocalizer.interfaces import PairEstimate
from relocalizer.retrieval import FaissRetriever
from slam.components.assembly import Components
from slam.config.schema import SlamConfig
from slam.evaluation.metrics import evaluate
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_trajectory
from slam.events import FrameNotLocalized
from slam.input.open_source import open_source
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
from slam.map.lens_evidence import LensState
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster
from slam.photos.photo_limits import MAX_PHOTOS, expect_photos
from slam.photos.view_graph import (
    ENOUGH,
    EXHAUSTIVE_PHOTOS,
    RETRIEVED,
    PhotoFeatures,
    ViewGraph,
    best_pairs,
    pairs_to_compare,
    verified_pairs,
)
from slam.run.camera_before_run import calibrate_first
from slam.run.record_run import record_run
from slam.run.recorded_run import RunReport
from slam.system import Slam

CAMERA = Camera(width=WIDTH, height=HEIGHT, fx=FOCAL_PX, fy=FOCAL_PX, cx=(WIDTH - 1) / 2, cy=(HEIGHT - 1) / 2)
UNORDERED = SlamConfig.model_validate({"input": {"unordered": True}})
WAY = poses(14)
ORDER = np.random.default_rng(3).permutation(len(WAY))  # number of the pose of each file
OTHER_ROOM = poses(60)[:12:2]


def write_photos(folder: Path, *, camera: bool = True, other_room: bool = False) -> Path:
    """Photos of the walk in a new folder, in the order `ORDER` of their poses, and some of another room after them."""
    folder.mkdir()
    walls = textures(2 * len(WALLS))
    images = [rendered(walls[: len(WALLS)], *WAY[n]) for n in ORDER]
    if other_room:
        images += [rendered(walls[len(WALLS) :], *pose) for pose in OTHER_ROOM]
    for number, image in enumerate(images):
        cv2.imwrite(str(folder / f"IMG_{number:04d}.png"), image)
    if camera:
        (folder / "camera.yaml").write_text(CAMERA.to_yaml(), encoding="utf-8")
    return folder


def truth(times_ns: np.ndarray) -> Trajectory:
    """The true poses of the photos of the walk, at the times of their files."""
    matrices = np.tile(np.eye(4), (len(WAY), 1, 1))
    for row, n in enumerate(ORDER):
        cam_from_world_rotation, position = WAY[n]
        matrices[row, :3, :3], matrices[row, :3, 3] = cam_from_world_rotation.T, position
    return Trajectory(times_ns, matrices)


def frames_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "frames.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def estimate(*, inliers: int) -> PairEstimate:
    return PairEstimate(
        i_from_j_rotation=Rotation.from_euler("y", 20, degrees=True).as_matrix(),
        i_from_j_direction=np.array([0.6, 0.0, 0.8]),
        confidence=0.5,
        rotation_sigma_rad=0.01,
        direction_sigma_rad=0.1,
        inliers=inliers,
    )


# --- the view graph -----------------------------------------------------------------------------------


def descriptors_on_a_circle(count: int) -> list[FloatArray]:
    angles = 2 * np.pi * np.arange(count) / count
    return list(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))


def test_every_pair_of_a_small_collection_is_matched() -> None:
    pairs = pairs_to_compare(descriptors_on_a_circle(EXHAUSTIVE_PHOTOS))
    assert len(pairs) == EXHAUSTIVE_PHOTOS * (EXHAUSTIVE_PHOTOS - 1) // 2


def test_in_a_large_collection_a_photo_is_matched_to_the_most_similar_ones_and_to_its_neighbors() -> None:
    count = 10 * EXHAUSTIVE_PHOTOS
    shuffled = np.random.default_rng(0).permutation(count)
    circle = descriptors_on_a_circle(count)
    pairs = pairs_to_compare([circle[n] for n in shuffled])
    assert pairs == sorted(set(pairs))
    assert all(i < j for i, j in pairs)
    assert len(pairs) <= count * (RETRIEVED + 2)
    assert {(i, i + 1) for i in range(count - 1)} <= set(pairs)
    at = np.argsort(shuffled)  # the photo at each place of the circle
    assert {(min(at[n], at[n + 1]), max(at[n], at[n + 1])) for n in range(count - 1)} <= set(pairs)


def test_the_pairs_with_the_most_matches_of_either_photo_are_verified() -> None:
    counts = {(0, 1): 90, (0, 2): 50, (0, 3): 40, (1, 2): 80, (1, 3): 4}
    assert best_pairs(counts, 1) == [(0, 1), (0, 3), (1, 2)]
    assert best_pairs(counts, 9) == [(0, 1), (0, 2), (0, 3), (1, 2)]  # 4 matches are too few


def test_the_view_graph_ranks_pairs_and_partners() -> None:
    counts = {(0, 1): 40, (1, 2): 61, (0, 2): 12, (0, 3): 14}
    views = ViewGraph({(0, 1): estimate(inliers=36), (1, 2): estimate(inliers=0)}, counts)
    assert views.pairs([0, 1, 2]) == [(1, 2), (0, 1)]
    assert views.pairs([0, 2]) == []
    assert views.partners(1) == pytest.approx({0: 18.0, 2: 30.5})  # a predictor without inliers: the matches
    assert views.likeliest(0) == [1, 3, 2]
    forward, backward = views.estimate(0, 1), views.estimate(1, 0)
    assert forward is not None
    assert backward is not None
    assert np.allclose(backward.i_from_j_direction, -forward.i_from_j_rotation.T @ forward.i_from_j_direction)
    assert views.estimate(0, 2) is None


class CountingPredictor:
    """Relates pairs of numbers: all confidently, with a direction unless their sum is in `without_direction`."""

    def __init__(self, without_direction: tuple[int, ...] = ()) -> None:
        self.related: list[tuple[int, int]] = []
        self._without_direction = without_direction

    def relate(self, pairs: Sequence[tuple[int, int]]) -> list[PairEstimate]:
        self.related += pairs
        certain = replace(estimate(inliers=40), confidence=0.95)
        rotation_only = replace(certain, i_from_j_direction=None, direction_unknown="no parallax")
        return [rotation_only if sum(pair) in self._without_direction else certain for pair in pairs]


def numbered(count: int) -> list[PhotoFeatures]:
    return [PhotoFeatures(LocalFeatures.none(), n, np.ones(1, np.float32)) for n in range(count)]  # type: ignore[arg-type]


def test_a_photo_with_enough_confident_partners_is_verified_with_no_others() -> None:
    counts = {(i, j): 100 - i - j for i, j in combinations(range(8), 2)}
    predictor = CountingPredictor()
    verified = verified_pairs(numbered(8), counts, predictor)  # type: ignore[arg-type]
    partners = {n: sum(n in pair for pair in verified) for n in range(8)}
    assert min(partners.values()) == ENOUGH
    assert list(verified) == predictor.related
    assert len(verified) < len(counts)
    assert (6, 7) not in verified


def test_partners_without_a_direction_are_not_enough() -> None:
    counts = {(i, j): 100 - i - j for i, j in combinations(range(8), 2)}
    without = CountingPredictor(without_direction=tuple(range(14)))
    assert len(verified_pairs(numbered(8), counts, without)) == len(counts)  # type: ignore[arg-type]


def test_groups_of_photos_stay_connected_however_many_partners_each_photo_has() -> None:
    groups = [(i, j) for start in (0, 7) for i, j in combinations(range(start, start + 7), 2)]
    counts = {**dict.fromkeys(groups, 50), (3, 10): 9, (4, 11): 8}
    verified = verified_pairs(numbered(14), counts, CountingPredictor())  # type: ignore[arg-type]
    assert (3, 10) in verified
    assert (4, 11) not in verified


# --- a run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "images", other_room=True)


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    return record_run(photos, out=tmp_path_factory.mktemp("run") / "run", config=UNORDERED)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos of the walk, and one that shows nothing."""
    folder = write_photos(tmp_path_factory.mktemp("few") / "images")
    for path in sorted(folder.glob("IMG_*.png"))[5:]:
        path.unlink()
    cv2.imwrite(str(folder / "IMG_9999.png"), np.full((HEIGHT, WIDTH, 3), 128, np.uint8))
    return folder


def test_the_photos_of_a_place_make_one_map_and_those_of_another_place_another(run: RunReport) -> None:
    assert (run.status, run.failures) == ("finished", ())
    assert run.tracked == len(WAY)
    assert list(run.values["other_segments"]) == [len(OTHER_ROOM)]
    assert run.values["keyframes"] >= len(WAY)


def test_the_poses_are_those_of_the_cameras(run: RunReport) -> None:
    found = read_trajectory(run.folder / "trajectory.txt")
    evaluation = evaluate(found, truth(found.timestamps_ns))
    assert evaluation.to_dict()["ate_sim3"]["rmse"] < 0.005  # meters, in a room of 6 by 7


def test_the_table_of_frames_names_every_photo_in_the_order_of_the_files(run: RunReport) -> None:
    rows = frames_of(run.folder)
    assert [row["name"] for row in rows] == [f"IMG_{n:04d}.png" for n in range(len(WAY) + len(OTHER_ROOM))]
    assert {row["state"] for row in rows} == {"localized later"}
    assert len({row["keyframe"] for row in rows}) == len(rows)


def test_a_photo_that_shows_nothing_is_named_with_the_reason_and_the_same_photos_give_the_same_bytes(
    few: Path, tmp_path: Path
) -> None:
    events: list[object] = []
    report = record_run(few, out=tmp_path / "a", config=UNORDERED, observers=[events.append])
    [missing] = [event for event in events if isinstance(event, FrameNotLocalized)]
    assert (missing.frame_index, bool(missing.reason)) == (5, True)
    assert report.tracked == 5
    assert frames_of(tmp_path / "a")[-1]["state"] == "initializing"
    record_run(few, out=tmp_path / "b", config=UNORDERED)
    assert (tmp_path / "a" / "trajectory.txt").read_bytes() == (tmp_path / "b" / "trajectory.txt").read_bytes()


def test_photos_continue_a_map(run: RunReport, few: Path, tmp_path: Path) -> None:
    again = record_run(few, out=tmp_path / "run", config=UNORDERED, start_map=run.folder)
    assert again.tracked == 5
    assert again.values["map"]["poses_in_map"]


def test_a_predictor_without_matches_maps_photos_too() -> None:
    """A network gives poses of pairs and counts no inliers."""
    world = OracleWorld(room_path(48, 0.4), room_points(np.random.default_rng(3), 2500), pixel_noise=0.3)
    components = Components(
        predictor=OraclePredictor(world),
        tracker=OracleTracker(world),
        retriever=FaissRetriever(),
        optimizer=GtsamOptimizer(),
        adjuster=SchurBundleAdjuster(),
    )
    slam = Slam(UNORDERED, components)
    photos = list(world.frames())[::4]
    for n in np.random.default_rng(0).permutation(len(photos)):
        assert not slam.step(photos[n]).is_tracked
    result = slam.finish()
    assert len(result.trajectory) == len(photos)
    truth = Trajectory(result.trajectory.timestamps_ns, stack_matrices([world.poses[i] for i in result.frame_indices]))
    assert evaluate(result.trajectory, truth).to_dict()["ate_sim3"]["rmse"] < 0.05


# --- the camera ---------------------------------------------------------------------------------------


def test_the_camera_of_photos_without_an_order_is_estimated_from_their_most_similar_pairs(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "images", camera=False)
    source, calibration = calibrate_first(open_source(folder), UNORDERED)
    assert calibration is not None
    assert calibration.is_used
    assert calibration.evidence.state is LensState.KNOWN
    assert source.camera.mean_focal == pytest.approx(FOCAL_PX, rel=0.05)


# --- what the run says --------------------------------------------------------------------------------


def test_photos_mapped_in_the_order_of_their_files_are_said_to_have_none(photos: Path, tmp_path: Path) -> None:
    report = record_run(photos, out=tmp_path / "run")
    assert any("if they are photos without an order, slam run --photos maps them" in r for r in report.verdict.reasons)


def test_photos_mapped_as_such_are_not_proposed_to_be(run: RunReport) -> None:
    assert "--photos" not in json.dumps(run.values["verdict"])


def test_photos_of_which_no_two_overlap_are_said_to(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
    (folder / "camera.yaml").write_text(CAMERA.to_yaml(), encoding="utf-8")
    report = record_run(folder, out=tmp_path / "run", config=UNORDERED)
    assert str(report.verdict) == (
        "failed: no map could be begun: no two of the 3 photos match with enough inliers and parallax"
    )


class Source:
    """What is asked of a source before its photos are mapped."""

    name = "film"

    def __init__(self, length: int | None) -> None:
        self.length = length


def test_a_source_without_an_end_cannot_be_mapped_as_photos() -> None:
    with pytest.raises(SequenceError, match="has no end"):
        expect_photos(Source(None))


def test_too_many_photos_are_refused_with_a_stride() -> None:
    with pytest.raises(SequenceError, match="--stride 3"):
        expect_photos(Source(3 * MAX_PHOTOS))
    expect_photos(Source(MAX_PHOTOS))


def test_photos_cannot_be_mapped_in_a_map_that_must_not_change() -> None:
    with pytest.raises(ConfigError, match="slam relocalize"):
        expect_photos(Source(3), localize_only=True)

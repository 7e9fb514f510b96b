"""The localization suites on miniatures of both layouts, with the true poses and with local features."""

from __future__ import annotations

from pathlib import Path

import miniatures
import numpy as np
import pytest
from miniatures import ThumbnailOracle, room_views, write
from scipy.spatial.transform import RigidTransform, Rotation

from relocalizer.averaging import RelativePoseObservation
from relocalizer.geometry import rotation_angle, rotation_matrix, translation_of
from relocalizer.interfaces import NoEstimate, PairEstimate
from slam.benchmarks.benchmark_error import BenchmarkError
from slam.benchmarks.given_retrieval import read_retrieval, retrieval_file, rows_by_name
from slam.benchmarks.official_averaging import NAME, component_median_and_lines
from slam.benchmarks.scene_localizer import AVERAGING, LANDMARKS
from slam.benchmarks.suite import BenchmarkRequest
from slam.benchmarks.suites import open_suite


def request(suite: str, root: Path, **options: object) -> BenchmarkRequest:
    config = {"predictor": {"kind": "geometric"}}
    return BenchmarkRequest(suite=suite, data=str(root), out=str(root / "out"), config=config, **options)  # type: ignore[arg-type]


def evaluated(suite: str, root: Path, **options: object):
    """The suite, the results of its items, and its summary."""
    opened = open_suite(request(suite, root, **options))
    results = {item: opened.evaluate(item) for stage in opened.stages() for item in stage}
    return opened, results, opened.summarize(results)


@pytest.fixture(scope="module")
def seven_scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("7scenes")
    return root, miniatures.seven_scenes(root, room_views(6))


@pytest.fixture
def true_poses(monkeypatch, seven_scenes):
    oracle = ThumbnailOracle(seven_scenes[1])
    monkeypatch.setattr("slam.components.assembly.build_predictor", lambda config: oracle)
    return oracle


@pytest.mark.usefixtures("true_poses")
def test_true_relative_poses_localize_without_error(seven_scenes):
    opened, results, summary = evaluated("7scenes-localization", seven_scenes[0], top_k=3)
    assert opened.stages() == [["map-chess", "map-chess-SfM"], ["chess-000", "chess-SfM-000"]]
    assert results["map-chess"]["keyframes"] == 3
    queries = [query for item in ("chess-000", "chess-SfM-000") for query in results[item]["queries"]]
    assert len(queries) == 6
    for query in queries:
        for method in (AVERAGING, NAME):
            assert query[method]["m"] < 1e-6, method
            assert query[method]["deg"] < 1e-6, method
    for truth in ("kinectfusion", "sfm"):
        assert summary.figures[f"robust_averaging_mean_{truth}_m"] < 1e-6
        assert summary.figures[f"component_median_lines_mean_{truth}_deg"] < 1e-6
    assert len(opened.rows(results)) == 6


def test_local_features_localize_in_a_rendered_scene(seven_scenes):
    """The landmarks of the scene's own images; a wrong camera or pose convention would leave nothing."""
    opened = open_suite(request("7scenes-localization", seven_scenes[0], limit=1))
    opened.evaluate("map-chess")
    result = opened.evaluate("chess-000")
    assert len(result["queries"]) == 1
    for query in result["queries"]:
        assert query[LANDMARKS]["m"] < 0.02
        assert query[LANDMARKS]["deg"] < 0.5


def test_cambridge_takes_names_from_the_lists_and_poses_from_the_reconstruction(tmp_path, monkeypatch):
    """An image that is missing is reported, and the others are localized."""
    views = miniatures.cambridge(tmp_path, room_views(8))
    monkeypatch.setattr("slam.components.assembly.build_predictor", lambda config: ThumbnailOracle(views))
    (tmp_path / "ShopFacade/seq1/frame00004.png").unlink()
    opened, results, summary = evaluated("cambridge", tmp_path, top_k=3)
    queries = results["ShopFacade-000"]["queries"]
    assert [query["query"] for query in queries] == [f"seq1/frame{k:05d}.png" for k in (2, 6, 8)]
    assert max(query[NAME]["m"] for query in queries) < 1e-6
    assert opened._scene("ShopFacade").left_out == 1  # a query without a pose
    [fault] = results["ShopFacade-000"]["faults"]
    assert "frame00004.png" in fault
    assert set(summary.figures) >= {"landmarks_mean_of_5_m", "landmarks_mean_of_4_without_greatcourt_m"}
    assert summary.tables[0].rows[-1][0] == "mean of 5: only 1 of 5 scenes"


PAIRS = [
    (f"seq-02/frame-{k:06d}.color.png", f"seq-01/frame-{j:06d}.color.png") for k in range(2) for j in (k, k + 1, 2 - k)
]


def write_retrieval(folder: Path, form: str) -> Path:
    """The retrieval `PAIRS` in the format of hloc, or in that of Reloc3r's evaluation."""
    if form == "hloc":
        return write(folder / "chess_top3.txt", "".join(f"{query} {database}\n" for query, database in PAIRS))
    rows = np.empty(2, dtype=object)
    rows[:] = [
        [{"query_path": f"./data/7scenes/chess/{q}", "db_path": f"./data/7scenes/chess/{d}"} for q, d in own]
        for own in (PAIRS[:3], PAIRS[3:])
    ]
    np.save(folder / "chess_top3.npy", rows, allow_pickle=True)
    return folder / "chess_top3.npy"


@pytest.mark.parametrize("form", ["hloc", "npy"])
def test_a_retrieval_is_read_in_both_formats(tmp_path, form):
    written = write_retrieval(tmp_path, form)
    assert retrieval_file(tmp_path, "chess") == retrieval_file(written, "chess") == written
    rows = {f"seq-01/frame-{k:06d}.color.png": 10 + k for k in range(3)}
    found = rows_by_name(read_retrieval(written), [PAIRS[0][0], PAIRS[3][0], "seq-02/frame-000009.color.png"], rows)
    assert list(found.values()) == [[10, 11, 12], [11, 12, 11], []]


def test_a_retrieval_of_another_form_is_one_line(tmp_path):
    with pytest.raises(BenchmarkError, match="expected 'query database', got 3 columns"):
        read_retrieval(write(tmp_path / "a.txt", "a b 0.5\n"))
    np.save(tmp_path / "a.npy", np.array([["a", "b"]]))
    with pytest.raises(BenchmarkError, match="expected dictionaries"):
        read_retrieval(tmp_path / "a.npy")
    with pytest.raises(BenchmarkError, match="no retrieval of chess"):
        retrieval_file(tmp_path, "chess")


@pytest.mark.usefixtures("true_poses")
def test_a_given_retrieval_says_which_images_are_related(seven_scenes, tmp_path):
    given = write_retrieval(tmp_path, "hloc")
    opened = open_suite(request("7scenes-localization", seven_scenes[0], pairs=str(given)))
    opened.evaluate("map-chess")
    found = {query["query"]: query for query in opened.evaluate("chess-000")["queries"]}
    assert found["seq-02/frame-000001.color.png"][NAME]["m"] < 1e-6
    unlisted = found["seq-02/frame-000002.color.png"]
    assert unlisted[LANDMARKS] == {"m": None, "deg": None, "reason": "no database image was retrieved"}
    assert unlisted[NAME]["m"] is None


@pytest.mark.usefixtures("true_poses")
def test_steps_and_limits_are_stated(seven_scenes):
    opened = open_suite(request("7scenes-localization", seven_scenes[0], step=2, limit=2))
    scene = opened._scene("chess")
    assert [image.name for image in scene.database] == [f"seq-01/frame-{k:06d}.color.png" for k in (0, 2)]
    assert len(scene.queries) == 2
    protocol = opened.summarize({}).protocol
    assert protocol["images"] == "1 in 2 database and query images of the published splits, at most 2 queries per scene"


# --- the official averaging -----------------------------------------------------------------------------


def observations(truth: RigidTransform, count: int, rng: np.random.Generator) -> list[RelativePoseObservation]:
    found = []
    for _ in range(count):
        world_from_i = RigidTransform.from_components(rng.normal(size=3), Rotation.random(rng=rng))
        i_from_j = world_from_i.inv() * truth
        t = translation_of(i_from_j)
        estimate = PairEstimate(
            i_from_j_rotation=rotation_matrix(i_from_j),
            i_from_j_direction=t / np.linalg.norm(t),
            confidence=0.5,
            rotation_sigma_rad=0.1,
            direction_sigma_rad=0.1,
        )
        found.append(RelativePoseObservation(world_from_i, estimate))
    return found


@pytest.mark.parametrize("axis", [[0, -1, 0], [1, 0, 0], [0.3, 0.5, -0.8]])
def test_the_official_averaging_finds_the_pose_also_where_quaternions_tie(rng, axis):
    turn = np.radians(90) * np.array(axis) / np.linalg.norm(axis)
    truth = RigidTransform.from_components([0.4, -1.0, 2.0], Rotation.from_rotvec(turn))
    found = component_median_and_lines(observations(truth, 10, rng))
    assert not isinstance(found, NoEstimate)
    assert np.linalg.norm(translation_of(found) - translation_of(truth)) < 1e-9
    assert rotation_angle(rotation_matrix(truth).T @ rotation_matrix(found)) < 1e-7


def test_the_official_averaging_takes_lines_and_no_rays(rng):
    """A direction that points the wrong way changes nothing: the published method's own property."""
    truth = RigidTransform.from_components([0.4, -1.0, 2.0], Rotation.identity())
    seen = observations(truth, 4, rng)
    first = seen[0].estimate
    opposite = PairEstimate(
        i_from_j_rotation=first.i_from_j_rotation,
        i_from_j_direction=-first.i_from_j_direction,
        confidence=0.5,
        rotation_sigma_rad=0.1,
        direction_sigma_rad=0.1,
    )
    found = component_median_and_lines([RelativePoseObservation(seen[0].world_from_i, opposite), *seen[1:]])
    assert np.linalg.norm(translation_of(found) - translation_of(truth)) < 1e-9


def test_the_official_averaging_needs_directions_that_differ(rng):
    truth = RigidTransform.from_components([0.0, 0.0, 5.0], Rotation.identity())
    [seen] = observations(truth, 1, rng)
    assert "one line" in component_median_and_lines([seen, seen, seen]).reason
    assert "2 needed" in component_median_and_lines([seen]).reason


# --- what may be wrong with the data --------------------------------------------------------------------


def test_a_scene_that_cannot_be_read_is_a_line_and_the_others_are_evaluated(tmp_path):
    for scene in ("OldHospital", "ShopFacade"):
        miniatures.cambridge(tmp_path, room_views(4), scene)
    write(tmp_path / "OldHospital/reconstruction.nvm", "NVM_V3\n\n1\nseq1/a.jpg 500 9 0 0 0 0 0 0 0 0\n")
    opened = open_suite(request("cambridge", tmp_path))
    [fault] = opened.faults
    assert "line 4: expected a unit quaternion" in fault
    assert opened.stages()[0] == ["map-ShopFacade"]


@pytest.mark.parametrize("suite", ["7scenes-localization", "cambridge"])
def test_a_folder_without_scenes_is_one_line(tmp_path, suite):
    with pytest.raises(BenchmarkError, match=r"no scene with .*"):
        open_suite(request(suite, tmp_path))


def test_failures_count_as_infinite_in_the_median(seven_scenes):
    opened = open_suite(request("7scenes-localization", seven_scenes[0]))
    good = {"m": 0.01, "deg": 0.1, "reason": ""}
    bad = {"m": None, "deg": None, "reason": "lost"}
    queries = [{"query": str(k), LANDMARKS: good if k < 2 else bad, AVERAGING: good, NAME: bad} for k in range(5)]
    figures = opened.summarize({"chess-000": {"scene": "chess", "queries": queries}}).figures
    assert figures["landmarks_mean_kinectfusion_m"] == np.inf
    assert figures["robust_averaging_mean_kinectfusion_m"] == 0.01

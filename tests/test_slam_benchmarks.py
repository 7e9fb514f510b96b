"""The SLAM suites on miniatures of every public layout."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import miniatures
import numpy as np
import pytest
from miniatures import View, room_views, write
from oracle import OraclePredictor, OracleTracker, OracleWorld, room_path, room_points

from relocalizer.camera import Camera
from relocalizer.errors import UserError
from relocalizer.retrieval import FaissRetriever
from slam.benchmarks.slam_sequences import sequences_of
from slam.benchmarks.slam_summary import summarize_runs
from slam.benchmarks.suite import BenchmarkRequest
from slam.benchmarks.suites import SLAM, open_suite
from slam.components.assembly import Components
from slam.input.dataset_calibrations import ICL_NUIM_CAMERA, SEVEN_SCENES_CAMERA
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster
from slam.run.plain_values import plain

FREE = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=319.5, cy=239.5)
Write = Callable[[Path, Sequence[View]], Path]
LAYOUTS: dict[str, tuple[Write, Camera, str]] = {  # writer, camera of the images, item
    "tum": (partial(miniatures.tum, with_camera=True), FREE, "xyz"),
    "euroc": (miniatures.euroc, FREE, "MH_01"),
    "kitti": (miniatures.kitti, FREE, "07"),
    "7scenes": (miniatures.seven_scenes_sequence, SEVEN_SCENES_CAMERA, "chess"),
    "icl": (miniatures.icl, ICL_NUIM_CAMERA, "traj0_frei_png"),
}


def request(suite: str, root: Path, **options: object) -> BenchmarkRequest:
    config = {"predictor": {"kind": "geometric"}, "bundle_adjustment": {"calibrate": "never"}}
    return BenchmarkRequest(suite=suite, data=str(root), out=str(root / ".out"), config=config, **options)  # type: ignore[arg-type]


def oracle_views(monkeypatch: pytest.MonkeyPatch, camera: Camera, frames: int) -> list[View]:
    """Images of a world, in which the system then sees everything without noise."""
    points = room_points(np.random.default_rng(3), 1200)
    world = OracleWorld(room_path(240)[:frames], points, pixel_noise=0.0, camera=camera)

    def assemble(config: object, *, mask: object = None) -> Components:
        return Components(
            predictor=OraclePredictor(world, rotation_sigma_deg=0.0, direction_sigma_deg=0.0),
            tracker=OracleTracker(world, descriptor_noise=0.0),
            retriever=FaissRetriever(),
            optimizer=GtsamOptimizer(robust=True),
            adjuster=SchurBundleAdjuster(),
        )

    monkeypatch.setattr("slam.components.assembly.assemble", assemble)
    return [View(frame.image, camera, world.poses[frame.index].as_matrix()) for frame in world.frames()]


def test_every_slam_suite_has_a_miniature():
    assert {*LAYOUTS, "folder"} == set(SLAM)


@pytest.mark.parametrize("suite", LAYOUTS)
def test_a_world_without_noise_has_no_error_in_any_layout(tmp_path, monkeypatch, suite):
    make, camera, item = LAYOUTS[suite]
    make(tmp_path, oracle_views(monkeypatch, camera, 16))
    opened = open_suite(request(suite, tmp_path))
    assert opened.stages() == [[item]]
    result = opened.evaluate(item)
    assert result["coverage"] == 1.0
    assert result["reason"] == ""
    assert result["faults"] == []
    for kind in ("all", "keyframes_errors", "online"):
        errors = result[kind]
        assert errors["ate_sim3"]["max"] < 1e-6
        assert errors["rpe_frame"]["translation"]["max"] < 1e-6
        assert np.radians(errors["rpe_frame"]["rotation_deg"]["max"]) < 1e-6
        assert np.radians(errors["orientation_deg"]["max"]) < 1e-6
    of_run = json.loads((tmp_path / ".out" / "runs" / item / "report.json").read_text())
    assert json.loads(json.dumps(plain(result["all"]))) == of_run["evaluation"]  # the figures of slam run
    summary = opened.summarize({item: result})
    assert summary.figures["ate_sim3"] < 1e-6
    assert summary.tables[0].rows[0][0] == item
    json.dumps(result)
    [row] = opened.rows({item: result})
    assert row["ate_sim3_all"] < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "make"),
    [
        ("tum", miniatures.tum),  # through its distorted lens
        ("euroc", miniatures.euroc),
        ("kitti", miniatures.kitti),
        ("7scenes", miniatures.seven_scenes_sequence),
        ("icl", miniatures.icl),
    ],
)
def test_a_rendered_sequence_is_tracked_in_every_layout(tmp_path, suite, make):
    make(tmp_path, room_views(40, 3))
    opened = open_suite(request(suite, tmp_path))
    [[item]] = opened.stages()
    result = opened.evaluate(item)
    assert result["coverage"] > 0.9
    assert result["all"]["ate_sim3"]["rmse"] < 0.01


# --- which sequences ------------------------------------------------------------------------------------


def test_a_folder_gives_every_sequence_below_it(tmp_path, monkeypatch):
    views = oracle_views(monkeypatch, FREE, 3)
    miniatures.tum(tmp_path / "a", views)
    miniatures.kitti(tmp_path / "kitti", views)
    miniatures.euroc(tmp_path / "deep" / "er", views)
    miniatures.seven_scenes_sequence(tmp_path, views)
    for k, view in enumerate(views):
        miniatures.write_image(tmp_path / "plain" / f"{k}.png", view.image)
        miniatures.write_image(tmp_path / "own" / "images" / f"{k}.png", view.image)
    write(tmp_path / "own" / "camera.yaml", FREE.to_yaml())
    (tmp_path / "empty").mkdir()
    found = sequences_of("folder", tmp_path).paths
    assert sorted(found) == [
        "a/rgbd_dataset_freiburg1_xyz", "chess/seq-01", "deep/er/MH_01_easy", "kitti/sequences/07", "own", "plain",
    ]  # fmt: skip
    assert list(sequences_of("tum", tmp_path).paths) == ["xyz"]
    assert "desk" in sequences_of("tum", tmp_path).missing


@pytest.mark.skipif("SLAM_SEQUENCES" not in os.environ, reason="SLAM_SEQUENCES names no folder of sequences")
def test_the_real_sequences_are_found():
    root = Path(os.environ["SLAM_SEQUENCES"])
    found = sequences_of("folder", root).paths
    assert {"7scenes_redkitchen_seq01", "kitti07_first160", "fox_instant_ngp"} <= set(found)
    assert all(path.is_relative_to(root) for path in found.values())


@pytest.mark.parametrize("suite", SLAM)
def test_a_folder_without_sequences_is_one_line(tmp_path, suite):
    with pytest.raises(UserError, match=f"no sequence of {suite}"):
        open_suite(request(suite, tmp_path))


def test_several_seeds_are_several_items(tmp_path, monkeypatch):
    miniatures.tum(tmp_path, oracle_views(monkeypatch, FREE, 3))
    assert open_suite(request("tum", tmp_path, seeds=3)).stages() == [["xyz", "xyz#2", "xyz#3"]]


# --- what may be wrong with the data --------------------------------------------------------------------

TRUTH = "rgbd_dataset_freiburg1_xyz/groundtruth.txt"


def fault_of(root: Path, views: Sequence[View], text: str | None) -> str:
    """The sentence about a sequence whose ground truth is replaced by a text, or removed."""
    miniatures.tum(root, views, with_camera=True)
    if text is None:
        (root / TRUTH).unlink()
    else:
        write(root / TRUTH, text)
    opened = open_suite(request("tum", root))
    with pytest.raises(UserError) as raised:
        opened.evaluate("xyz")
    assert "\n" not in str(raised.value)
    assert not (root / ".out").exists()
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "no ground truth"),
        ("1.0 0 0 0 0 0 0 1\n2.0 1 0 0 0 0 0 1\n", "shares no time with the images"),
        ("1305031102.2 0 0 0 0 0 0 1\n1305031102.3 1 0 0 0 0 0 1\n", "3 are needed"),
        ("1305031102.2 nan 0 0 0 0 0 1\n1305031102.3 1 0 0 0 0 0 1\n", "line 1"),
        ("1305031102.2 0 0 0 0 0 0 2\n1305031102.3 1 0 0 0 0 0 1\n", "unit"),
        ("1305031102.2 0 0 0\n", "line 1"),
    ],
)
def test_bad_ground_truth_is_one_line_before_any_run(tmp_path, monkeypatch, text, sentence):
    assert sentence in fault_of(tmp_path, oracle_views(monkeypatch, FREE, 8), text)


def test_missing_images_are_a_fault_and_the_others_are_scored(tmp_path, monkeypatch):
    folder = miniatures.tum(tmp_path, oracle_views(monkeypatch, FREE, 20), with_camera=True)
    sorted((folder / "rgb").iterdir())[-1].unlink()
    result = open_suite(request("tum", tmp_path)).evaluate("xyz")
    assert result["frames"] == 19
    [fault] = result["faults"]
    assert fault.startswith("skipped 1 image; the first: ")


def test_a_ground_truth_of_other_times_is_a_fault_also_where_none_is_needed(tmp_path, monkeypatch):
    miniatures.tum(tmp_path, oracle_views(monkeypatch, FREE, 20), with_camera=True)
    write(tmp_path / TRUTH, "1.0 0 0 0 0 0 0 1\n2.0 1 0 0 0 0 0 1\n")
    result = open_suite(request("folder", tmp_path)).evaluate("rgbd_dataset_freiburg1_xyz")
    assert result["tracked"] > 0
    [fault] = result["faults"]
    assert "groundtruth.txt shares no time with the images" in fault


# --- summary --------------------------------------------------------------------------------------------


def run(sequence: str, error: float | None, seed: int = 0) -> dict[str, object]:
    statistics = {"rmse": error, "mean": error, "median": error, "max": error}
    errors = error and {
        "ate_sim3": statistics,
        "ate_se3": statistics,
        "scale": 2.0,
        "rpe_frame": {"translation": statistics, "rotation_deg": statistics},
        "rpe_second": None,
        "orientation_deg": None,
    }
    return {
        "sequence": sequence, "seed": seed, "frames": 10, "tracked": 9, "coverage": 0.9, "keyframes": 3,
        "lost_episodes": 0, "lost_frames": 0, "loops": 0, "fps": 9.0, "verdict": "good", "kitti": None, "plot": None,
        "resolution": "640x480",
        "all": errors, "keyframes_errors": errors, "online": errors, "reason": "" if error else "0 of 9 poses",
    }  # fmt: skip


def test_a_sequence_counts_with_the_median_of_its_runs_and_a_lost_one_leaves_no_mean():
    runs = {f"desk#{k}": run("desk", error, k) for k, error in enumerate((0.1, 0.3, 0.2))}
    summary = summarize_runs("title", {}, {**runs, "xyz": run("xyz", 0.4)}, ["rpy"])
    assert summary.figures["ate_sim3"] == pytest.approx(0.3)
    assert [row[0] for row in summary.tables[0].rows] == ["desk", "xyz", "mean"]
    assert summary.tables[0].rows[0][-1] == "3, 0.1 to 0.3"
    assert "rpy" in summary.tables[0].note
    lost = summarize_runs("title", {}, {**runs, "xyz": run("xyz", None)}, [])
    assert lost.figures["ate_sim3"] == np.inf
    assert lost.tables[0].rows[-1][1] is None


def test_a_sequence_without_ground_truth_is_not_in_the_mean():
    without = run("walk", None) | {"reason": "no ground truth"}
    summary = summarize_runs("title", {}, {"desk": run("desk", 0.1), "xyz": run("xyz", 0.3), "walk": without}, [])
    assert summary.figures["ate_sim3"] == pytest.approx(0.2)
    assert summary.tables[0].rows[-1][:2] == ["mean", pytest.approx(0.2)]


def test_the_tracking_table_has_the_shares_the_errors_the_cost_and_why_a_run_is_not_good():
    figures = {"posed": 1.0, "maps": 2, "cpu_ms": 31.5, "verdict": "partial", "verdict_reasons": ["two maps"]}
    one = run("desk", 0.1) | figures
    one["all"] = {**one["all"], "ate_percent": 0.4, "orientation_deg": {"rmse": 1.2}}  # type: ignore[dict-item]
    earlier = run("xyz", 0.2)  # a result of a version that counted none of them
    tracking = summarize_runs("title", {}, {"desk": one, "xyz": earlier}, []).tables[2]
    desk, xyz = (dict(zip(tracking.columns, row, strict=True)) for row in tracking.rows)
    assert (desk["posed, %"], desk["coverage, %"], desk["maps"]) == (100.0, 90.0, 2)
    assert (desk["ATE, % of path"], desk["rotation, deg"], desk["CPU ms/frame"]) == (0.4, 1.2, 31.5)
    assert "desk: partial, two maps." in tracking.note
    assert (xyz["posed, %"], xyz["ATE, % of path"], xyz["CPU ms/frame"]) == (None, None, None)


def test_the_bundled_sequences_are_a_suite():
    found = sequences_of("folder", Path(__file__).parents[1] / "sequences").paths
    assert list(found) == ["room_loop", "room_revisit"]

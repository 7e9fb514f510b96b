"""The pair suites on miniatures of every public layout, with the true poses and with local features."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import miniatures
import numpy as np
import pytest
from miniatures import ThumbnailOracle, View, room_views, write
from oracle import RELOC3R

from relocalizer.interfaces import NoEstimate, PairEstimate
from slam.benchmarks.benchmark_error import BenchmarkError
from slam.benchmarks.pair_metrics import pair_error, pose_auc
from slam.benchmarks.pair_suite import PAIR_SUITES
from slam.benchmarks.suite import BenchmarkRequest
from slam.benchmarks.suites import open_suite

Write = Callable[[Path, Sequence[View]], list[View]]
LAYOUTS: dict[str, tuple[str, Write, int, int]] = {  # suite, writer, number of views, number of pairs
    "ScanNet1500, test.npz": ("scannet1500", miniatures.scannet_official, 4, 2),
    "ScanNet1500, SuperGlue": ("scannet1500", miniatures.scannet_text, 3, 2),
    "ScanNet1500, glue-factory": ("scannet1500", partial(miniatures.scannet_text, glue_factory=True), 3, 2),
    "MegaDepth1500, LoFTR": ("megadepth1500", miniatures.megadepth_loftr, 3, 2),
    "MegaDepth1500, Reloc3r": ("megadepth1500", miniatures.megadepth_official, 3, 2),
    "MegaDepth1500, glue-factory": ("megadepth1500", miniatures.megadepth_glue_factory, 3, 2),
    "RealEstate10K": ("re10k", partial(miniatures.video_chunks, index="evaluation_index_re10k.json"), 6, 2),
    "ACID": ("acid", partial(miniatures.video_chunks, index="evaluation_index_acid.json"), 6, 2),
    "RealEstate10K, ten views": ("re10k10", partial(miniatures.video_chunks, index="none.json"), 20, 90),
    "CO3Dv2": ("co3d", miniatures.co3d, 20, 90),
    "own list": ("pairs", miniatures.own_list, 3, 2),
}


def request(suite: str, root: Path, **options: object) -> BenchmarkRequest:
    config = {"predictor": {"kind": "geometric"}}
    return BenchmarkRequest(suite=suite, data=str(root), out=str(root / "out"), config=config, **options)  # type: ignore[arg-type]


def evaluated(suite: str, root: Path, **options: object):
    """The suite, the results of its items, and its summary."""
    opened = open_suite(request(suite, root, **options))
    [items] = opened.stages()
    results = {item: opened.evaluate(item) for item in items}
    return opened, results, opened.summarize(results)


def use(monkeypatch: pytest.MonkeyPatch, predictor: object) -> None:
    monkeypatch.setattr("slam.components.assembly.build_predictor", lambda config: predictor)


def test_every_pair_suite_has_a_miniature():
    assert {suite for suite, *_ in LAYOUTS.values()} == set(PAIR_SUITES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_true_poses_have_no_error_in_any_layout(tmp_path, monkeypatch, layout):
    suite, make, views, pairs = LAYOUTS[layout]
    use(monkeypatch, ThumbnailOracle(make(tmp_path, room_views(views))))
    opened, results, summary = evaluated(suite, tmp_path)
    entries = [pair for result in results.values() for pair in result["pairs"]]
    assert opened.faults == ()
    assert all(result["faults"] == [] for result in results.values())
    assert len(entries) == pairs
    for entry in entries:
        assert max(entry["rotation_deg"], entry["plain_deg"], entry["folded_deg"]) < 1e-6
    assert summary.figures["auc5_plain"] == pytest.approx(100.0, abs=1e-3)
    assert all(row["item"] in results for row in opened.rows(results))
    json.dumps(results)


@pytest.mark.parametrize("layout", ["ScanNet1500, SuperGlue", "CO3Dv2"])
def test_local_features_relate_a_rendered_pair_in_the_public_layout(tmp_path, layout):
    """A wrong intrinsic matrix, crop or pose convention would turn the direction by many degrees."""
    suite, make, _, _ = LAYOUTS[layout]
    make(tmp_path, room_views(20 if suite == "co3d" else 6, 6))
    opened = open_suite(request(suite, tmp_path))
    [[item, *_]] = opened.stages()
    if suite == "co3d":
        opened._listing.items[item] = partial(lambda pairs: pairs[3:5], opened._listing.items[item]())
    result = opened.evaluate(item)
    assert result["pairs"]
    for pair in result["pairs"]:
        assert pair["rotation_deg"] < 0.5
        assert pair["plain_deg"] < 4.0


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_local_features_relate_most_pairs_in_every_layout(tmp_path, layout):
    suite, make, views, _ = LAYOUTS[layout]
    make(tmp_path, room_views(views, 6))
    _, results, summary = evaluated(suite, tmp_path)
    errors = [pair["rotation_deg"] for result in results.values() for pair in result["pairs"]]
    assert np.median(errors) < 0.5
    assert summary.figures["direction_median_deg"] < 5.0


def test_intrinsics_of_a_list_follow_the_size_of_the_image(tmp_path):
    """SuperGlue's list has them for the full color image, which is then resized."""
    views = room_views(2)
    miniatures.scannet_text(tmp_path, views)
    opened = open_suite(request("scannet1500", tmp_path))
    small = opened._listing.items["scene0707_00"]()[0].first.load()
    assert (small.camera.width, small.camera.height) == (640, 480)
    for k, view in enumerate(views):
        big = np.repeat(np.repeat(view.image, 2, axis=0), 2, axis=1)
        miniatures.write_image(tmp_path / f"scene0707_00/frame-{15 * k:06d}.jpg", big)
    [line] = (tmp_path / "scannet_test_pairs_with_gt.txt").read_text().splitlines()
    fields = line.split()
    K = view.camera.resized(1280, 960).matrix.ravel()
    fields[4:22] = [str(value) for value in [*K, *K]]
    write(tmp_path / "scannet_test_pairs_with_gt.txt", " ".join(fields) + "\n")
    again = open_suite(request("scannet1500", tmp_path))._listing.items["scene0707_00"]()[0].first.load()
    assert again.image.shape == (480, 640, 3)
    assert again.camera.matrix == pytest.approx(small.camera.matrix)


def test_a_superglue_list_finds_the_images_of_the_official_layout(tmp_path, monkeypatch):
    views = miniatures.scannet_official(tmp_path, room_views(4))
    K = " ".join(str(value) for value in views[0].camera.matrix.ravel())
    pose = miniatures.numbers(views[1].cam_from_world @ views[0].world_from_cam)
    names = [f"scans_test/scene0707_00/sens/frame-{k:06d}.color.jpg" for k in (0, 15)]
    (tmp_path / "test.npz").unlink()
    write(tmp_path / "scannet_test_pairs_with_gt.txt", f"{' '.join(names)} 0 0 {K} {K} {pose}\n")
    use(monkeypatch, ThumbnailOracle(views))
    _, results, _ = evaluated("scannet1500", tmp_path)
    assert results["scene0707_00"]["pairs"][0]["plain_deg"] < 1e-6


def test_a_list_without_pose_files_gives_the_poses_in_single_precision(tmp_path, monkeypatch):
    use(monkeypatch, ThumbnailOracle(miniatures.scannet_official(tmp_path, room_views(4))))
    for path in tmp_path.rglob("pose/*.txt"):
        path.unlink()
    _, results, _ = evaluated("scannet1500", tmp_path)
    assert all(1e-9 < pair["plain_deg"] < 2e-4 for result in results.values() for pair in result["pairs"])


def test_pairs_without_overlap_in_the_index_are_not_scored(tmp_path):
    miniatures.video_chunks(tmp_path, room_views(4), "evaluation_index_re10k.json")
    index = {"aaaa": {"context": [0, 1], "overlap": 0.9}, "bbbb": {"context": [0, 1], "overlap": 0.05}, "cccc": None}
    write(tmp_path / "evaluation_index_re10k.json", json.dumps(index))
    assert open_suite(request("re10k", tmp_path)).stages() == [["bbbb"]]


def test_limit_takes_the_first_items(tmp_path):
    miniatures.scannet_official(tmp_path, room_views(4))
    assert open_suite(request("scannet1500", tmp_path, limit=1)).stages() == [["scene0707_00"]]


def test_a_large_group_is_several_items(tmp_path):
    views = room_views(2)
    miniatures.own_list(tmp_path, views)
    line = (tmp_path / "pairs.txt").read_text().splitlines()[1]
    write(tmp_path / "pairs.txt", f"{line}\n" * 120)
    opened = open_suite(request("pairs", tmp_path))
    assert opened.stages() == [["pairs-000", "pairs-001", "pairs-002"]]


# --- scores ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "published"), [(512, (34.79, 58.37, 75.56)), (224, (28.34, 52.60, 71.56))])
def test_the_fitted_noise_of_reloc3r_gives_its_published_auc(variant, published):
    """Pairs like ScanNet1500's, many more than 1500: of fewer the AUC itself scatters by a point."""
    rng = np.random.default_rng(0)
    truth = np.eye(4)
    errors = []
    for _ in range(4_000):
        truth[:3, 3] = rng.normal(size=3)
        direction = truth[:3, 3] / np.linalg.norm(truth[:3, 3])
        rotation, found = RELOC3R[variant].answer(rng, np.eye(3), direction)
        answer = PairEstimate(
            i_from_j_rotation=rotation,
            i_from_j_direction=found / np.linalg.norm(found),
            confidence=1.0,
            rotation_sigma_rad=0.1,
            direction_sigma_rad=0.1,
        )
        error = pair_error(answer, truth)
        errors.append(max(error.rotation_deg, error.plain_deg))
    assert [100 * area for area in pose_auc(errors)] == pytest.approx(published, abs=1.0)


def test_missing_estimates_count_in_the_figures(tmp_path, monkeypatch):
    views = miniatures.own_list(tmp_path, room_views(3))
    oracle = ThumbnailOracle(views)
    answers = oracle.relate
    monkeypatch.setattr(oracle, "relate", lambda pairs: [NoEstimate("no matches"), *answers(pairs[1:])])
    use(monkeypatch, oracle)
    _, results, summary = evaluated("pairs", tmp_path)
    assert results["pairs"]["pairs"][0]["folded_deg"] == 180.0
    assert summary.figures["auc20_plain"] == summary.figures["auc20_folded"] == pytest.approx(50.0)
    assert summary.protocol["answered"].startswith("50.0 %")


def test_categories_count_alike_whatever_their_number_of_pairs(tmp_path):
    opened = object.__new__(type(open_suite(request("co3d", _co3d(tmp_path)))))
    opened._protocol, opened._request = PAIR_SUITES["co3d"], request("co3d", tmp_path)
    pair = {"pair": "", "rotation_deg": 1.0, "plain_deg": 1.0, "folded_deg": 1.0, "overlap": None, "missing": ""}
    bad = {**pair, "rotation_deg": 90.0, "plain_deg": 90.0, "folded_deg": 90.0}
    results = {
        "apple-1": {"group": "apple", "sizes": ["640x480"], "pairs": [pair] * 30},
        "chair-1": {"group": "chair", "sizes": ["500x500"], "pairs": [bad] * 10},
    }
    assert opened.summarize(results).figures["rra15"] == pytest.approx(50.0)


def _co3d(root: Path) -> Path:
    miniatures.co3d(root, room_views(20))
    return root


# --- what may be wrong with the data --------------------------------------------------------------------


def test_a_missing_image_is_a_line_and_the_other_pairs_are_evaluated(tmp_path, monkeypatch):
    use(monkeypatch, ThumbnailOracle(miniatures.own_list(tmp_path, room_views(4))))
    (tmp_path / "images/0.png").unlink()
    _, results, _ = evaluated("pairs", tmp_path)
    [fault] = results["pairs"]["faults"]
    assert fault.startswith(str(tmp_path / "images/0.png"))
    assert len(results["pairs"]["pairs"]) == 2


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("images/0.png images/1.png 1 2 3", "5 columns"),
        ("images/0.png ../outside.png " + "1 0 0 0 0 1 0 0 0 0 1 1", "leads out of"),
        ("images/0.png images/1.png nan 0 0 0 0 1 0 0 0 0 1 1", "NaN"),
        ("images/0.png images/1.png 5 0 0 0 0 1 0 0 0 0 1 1", "no rotation"),
        ("images/0.png images/1.png x 0 0 0 0 1 0 0 0 0 1 1", "expected numbers"),
    ],
)
def test_a_bad_line_is_reported_and_the_others_are_evaluated(tmp_path, monkeypatch, line, sentence):
    use(monkeypatch, ThumbnailOracle(miniatures.own_list(tmp_path, room_views(3))))
    (tmp_path / "pairs.txt").open("a").write(line + "\n")
    opened, results, _ = evaluated("pairs", tmp_path)
    [fault] = opened.faults
    assert sentence in fault
    assert "pairs.txt, line 4" in fault
    assert len(results["pairs"]["pairs"]) == 2


def replaced(path: Path, old: str, new: str) -> None:
    """Replace the first occurrence of a text in a file, gzipped or not."""
    zipped = path.suffix == ".jgz"
    text = gzip.decompress(path.read_bytes()).decode() if zipped else path.read_text()
    assert old in text
    text = text.replace(old, new, 1)
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())


def damage_second_list(root: Path) -> None:
    (root / "megadepth_test_1500_scene_info/0015_0.3_0.5.npz").write_bytes(pickle.dumps({"image_paths": print}))


def damage_meta_view(root: Path) -> None:
    path = root / "megadepth_meta_test.npz"
    with np.load(path, allow_pickle=True) as archive:
        arrays = dict(archive)
    arrays[list(arrays)[-1]] = np.array({"intrinsic": np.eye(3)}, dtype=object)
    np.savez(path, **arrays)


DAMAGES: dict[str, tuple[str, Write, int, Callable[[Path], None], str]] = {  # suite, writer, views, damage, sentence
    "a list of several": (
        "megadepth1500", miniatures.megadepth_loftr, 5, damage_second_list,
        "a pickle with more than numbers, text and arrays",
    ),
    "a view of an archive": (
        "megadepth1500", miniatures.megadepth_official, 4, damage_meta_view, "expected 'intrinsic' and 'pose' of",
    ),
    "a line of the views": (
        "megadepth1500", miniatures.megadepth_glue_factory, 4,
        lambda root: replaced(root / "views.txt", "0.jpg ", "0.jpg x "), "views.txt, line 1: expected",
    ),
    "a category": (
        "co3d", miniatures.co3d, 20,
        lambda root: (root / "apple/frame_annotations.jgz").write_bytes(b"none"), "apple/frame_annotations.jgz",
    ),
    "an entry of an index": (
        "re10k", partial(miniatures.video_chunks, index="evaluation_index_re10k.json"), 6,
        lambda root: replaced(root / "evaluation_index_re10k.json", "[0, 2]", '[0, "x"]'), "aaaa: expected",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_damaged_entry_is_one_line_and_the_others_are_evaluated(tmp_path, damage):
    suite, make, count, apply, sentence = DAMAGES[damage]
    make(tmp_path, room_views(count))
    whole = [pair.name for pairs in PAIR_SUITES[suite].listing(tmp_path, None).items.values() for pair in pairs()]
    apply(tmp_path)
    listing = PAIR_SUITES[suite].listing(tmp_path, None)
    [fault] = listing.faults
    assert sentence in fault
    left = [pair.name for pairs in listing.items.values() for pair in pairs()]
    assert 0 < len(left) < len(whole)
    assert set(left) < set(whole)


@pytest.mark.parametrize(
    ("suite", "file", "old", "new", "sentence"),
    [
        ("re10k10", "Re10K_relpose_seq-id-map_seed42.json", "[0, 1", '["x", 1', "expected 10 positions"),
        (
            "co3d",
            "apple/frame_annotations.jgz",
            '"principal_point": [',
            '"principal_point": [5.0, ',
            "frame 1: expected",
        ),
        ("co3d", "apple/frame_annotations.jgz", '"principal_point": [', '"principal_point": [1.0], "x": [', "frame 1"),
    ],
)
def test_a_damaged_sequence_is_a_fault_of_its_item(tmp_path, suite, file, old, new, sentence):
    if suite == "co3d":
        miniatures.co3d(tmp_path, room_views(20))
    else:
        miniatures.video_chunks(tmp_path, room_views(20), "none.json")
    replaced(tmp_path / file, old, new)
    first, second = PAIR_SUITES[suite].listing(tmp_path, None).items.values()
    with pytest.raises(BenchmarkError, match=sentence):
        first()
    assert len(second()) == 45


def test_names_that_are_no_numbers_are_one_line(tmp_path):
    miniatures.scannet_official(tmp_path, room_views(4))
    np.savez(tmp_path / "test.npz", name=np.full((2, 4), "scene"), rel_pose=np.zeros((2, 12)))
    with pytest.raises(BenchmarkError, match=r"test.npz: expected an array 'name' of whole numbers"):
        PAIR_SUITES["scannet1500"].listing(tmp_path, None)


def test_intrinsics_of_another_shape_are_a_line_and_the_other_scenes_are_evaluated(tmp_path):
    miniatures.scannet_official(tmp_path, room_views(4))
    first = next(iter(sorted((tmp_path / "scannet_test_1500").iterdir())))
    write(first / "intrinsic/intrinsic_depth.txt", "1 0\n0 1\n")
    listing = PAIR_SUITES["scannet1500"].listing(tmp_path, None)
    [fault] = listing.faults
    assert "intrinsic_depth.txt: expected a matrix" in fault
    assert len(listing.items) == 1


@pytest.mark.parametrize("suite", PAIR_SUITES)
def test_a_folder_without_a_list_is_one_line(tmp_path, suite):
    with pytest.raises(Exception, match=str(tmp_path)) as raised:
        open_suite(request(suite, tmp_path))
    assert "\n" not in str(raised.value)


def test_a_scene_that_no_chunk_has_is_a_fault_of_its_item(tmp_path):
    miniatures.video_chunks(tmp_path, room_views(4), "evaluation_index_re10k.json")
    write(tmp_path / "evaluation_index_re10k.json", json.dumps({"dddd": {"context": [0, 1], "overlap": 0.4}}))
    opened = open_suite(request("re10k", tmp_path))
    with pytest.raises(BenchmarkError, match="no scene dddd"):
        opened.evaluate("dddd")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_chunk_with_code_in_it_is_refused(tmp_path):
    miniatures.video_chunks(tmp_path, room_views(4), "evaluation_index_re10k.json")
    (tmp_path / "test/000000.torch").write_bytes(pickle.dumps([print]))
    opened = open_suite(request("re10k", tmp_path))
    with pytest.raises(BenchmarkError, match="not a chunk of scenes"):
        opened.evaluate("aaaa")

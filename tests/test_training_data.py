"""What is trained on: pairs, mixtures, splits, sizes, colors, and the cache of what frozen parts give."""

from __future__ import annotations

import json
import resource
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from map_samples import in_two_segments, small_map
from test_training_loop import losses_in, opener, settings
from training_world import CAMERA, pair_set, walk

from relocalizer.camera import Camera
from relocalizer.errors import ConfigError, SequenceError, TrainingError, TrajectoryError
from relocalizer.geometry import direction_angle, rotation_angle
from relocalizer.maps.colmap_model import NO_POINT, ColmapImage, ColmapModel, ColmapPoint
from relocalizer.maps.map_writer import save_map
from relocalizer.network.model import Architecture
from relocalizer.training.color_jitter import ColorJitter
from relocalizer.training.config import SourceConfig, checked_config, dump_config, merged, parse_changes, read_config
from relocalizer.training.data_sources import image_side, image_sizes
from relocalizer.training.evaluation import area_under_recall
from relocalizer.training.loss import relative_pose
from relocalizer.training.pair_data import Mixture, Share, epoch_batches, expect_apart, parse_mixture
from relocalizer.training.pair_loader import LoadingRule, PairLoader, Request
from relocalizer.training.pair_selection import PairRule, frustum_overlap, pairs_by_covisibility, with_direction
from relocalizer.training.posed_data import pairs_of_images, pairs_of_map, split
from relocalizer.training.session import train
from relocalizer.training.token_cache import TokenCache
from slam.input.posed_pairs import open_posed_pairs

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def numbered(count, name="set"):
    """A set whose views are never read."""
    return replace(
        pair_set(1), name=name, pairs=np.arange(2 * count).reshape(-1, 2), has_direction=np.ones(count, bool),
        identity=lambda k: f"{name} {k}",
    )  # fmt: skip


# --- mixtures -----------------------------------------------------------------------------------------


def test_a_mixture_takes_its_share_of_each_set():
    sets = {"a": numbered(5), "b": numbered(7), "c": numbered(3)}
    mixture = Mixture(sets, parse_mixture("12 @ a + 2 * b + c", list(sets)))
    assert len(mixture) == 12 + 14 + 3
    items = mixture.epoch_items(0)
    counts = Counter(map(tuple, items.tolist()))
    assert sorted(counts[0, k] for k in range(5)) == [2, 2, 2, 3, 3]
    assert [counts[1, k] for k in range(7)] == [2] * 7
    assert [counts[2, k] for k in range(3)] == [1] * 3
    assert np.array_equal(items, mixture.epoch_items(0))
    few = Mixture(sets, parse_mixture("3 @ b", list(sets)))
    assert len({tuple(few.epoch_items(epoch)[:, 1]) for epoch in range(5)}) > 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("10 @ x", "'x' is not among the data"),
        ("a b", "expected NAME, N @ NAME"),
        ("0 @ a", "must be at least 1"),
        ("a +", "expected NAME"),
    ],
)
def test_a_mixture_that_cannot_be_read_is_refused(text, sentence):
    with pytest.raises(TrainingError, match=sentence):
        parse_mixture(text, ["a"])


def test_batches_are_whole_shuffled_and_of_one_size_each():
    mixture = Mixture({"a": numbered(50)}, [Share("a")])
    batches = epoch_batches(mixture, 3, 8, 5)
    assert len(batches) == 6
    drawn = np.concatenate([batch.items[:, 1] for batch in batches])
    assert len(set(drawn.tolist())) == 48
    assert not np.array_equal(drawn, np.sort(drawn))
    assert len({batch.resolution for batch in batches}) > 1
    assert all(0 <= batch.resolution < 5 for batch in batches)
    again = epoch_batches(mixture, 3, 8, 5)
    assert all(np.array_equal(a.items, b.items) for a, b in zip(batches, again, strict=True))


# --- pairs --------------------------------------------------------------------------------------------


def test_views_that_see_the_same_landmarks_make_a_pair():
    seen = [np.arange(0, 40), np.arange(20, 60), np.arange(50, 90), np.arange(30, 70)]
    assert pairs_by_covisibility(seen, PairRule()).tolist() == [[0, 1], [1, 3], [2, 3]]  # 10 common ones are too few
    assert pairs_by_covisibility([np.arange(40)] * 30, PairRule(4)).max() == 29
    of_view = Counter(pairs_by_covisibility([np.arange(40)] * 30, PairRule(4)).ravel().tolist())
    assert min(of_view.values()) >= 4
    assert pairs_by_covisibility([], PairRule()).shape == (0, 2)


def test_the_overlap_of_frusta_is_a_share_of_the_image():
    camera = Camera(width=101, height=101, fx=50.0, fy=50.0, cx=50.0, cy=50.0)  # 90 degrees
    here, aside, behind = np.eye(4), np.eye(4), np.diag([-1.0, 1, -1, 1])
    aside[0, 3] = 2.0  # an image at depth 2 is 4 wide: half of it is seen
    assert frustum_overlap(camera, here, camera, here, 2.0) >= 0.5  # borders round in or out
    assert frustum_overlap(camera, here, camera, aside, 2.0) == pytest.approx(0.5, abs=0.13)
    assert frustum_overlap(camera, here, camera, behind, 2.0) == 0.0


def test_a_short_baseline_has_no_direction():
    centers = np.array([[0.0, 0, 0], [0.01, 0, 0], [1.0, 0, 0]])
    assert with_direction(centers, np.array([[0, 1], [0, 2]]), 2.0).tolist() == [False, True]


@pytest.fixture(scope="module")
def map_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps") / "map"
    save_map(folder, small_map(keyframes=10, landmarks=20))
    return folder


def test_keyframes_of_a_map_make_pairs_with_its_poses(map_folder):
    found = pairs_of_map(map_folder)
    saved = small_map(keyframes=10, landmarks=20)
    assert len(found) == 45
    pair = found[0]
    np.testing.assert_allclose(pair.second.world_from_cam[:3, 3], saved.keyframes.translations[1])
    np.testing.assert_allclose(pair.second.world_from_cam[:3, :3], saved.keyframes.rotations[1], atol=1e-9)
    assert pair.first.camera == saved.cameras[0]
    assert pair.first.read().shape == (48, 64, 3)
    assert pair.name == f"{map_folder}: keyframe 0 and {map_folder}: keyframe 3"
    assert found.has_direction.any()


def test_segments_of_a_map_make_no_pairs_with_each_other(tmp_path):
    apart = in_two_segments(small_map(keyframes=10, landmarks=20), 2.0)
    save_map(tmp_path / "map", replace(apart, provenance=replace(apart.provenance, unanchored=())))
    found, segments = pairs_of_map(tmp_path / "map"), apart.keyframes.segment
    assert (segments[found.pairs[:, 0]] == segments[found.pairs[:, 1]]).all()
    assert len(found) < 45


def test_a_map_without_common_landmarks_is_refused(tmp_path):
    save_map(tmp_path / "map", small_map(keyframes=4, landmarks=12))
    with pytest.raises(TrainingError, match="no two of its 4 keyframes see enough common landmarks"):
        pairs_of_map(tmp_path / "map")


def test_posed_images_make_pairs_by_gap_and_overlap():
    found = pairs_of_images("walk", walk(40))
    gaps = found.pairs[:, 1] - found.pairs[:, 0]
    assert set(gaps.tolist()) <= {1, 2, 3, 5, 7, 10, 15, 20, 25, 30}
    assert len(set(gaps.tolist())) > 4
    assert max(Counter(found.pairs.ravel().tolist()).values()) <= 2 * 12


def colmap_project(folder, form, *, depth=2.0, shared=20):
    """Images that see one wall with the poses of `walk`, and their model; images 0 to 5 see other points than 6 to 11.

    Images 5 and 6 have `shared` points in common, the others of the two halves none.
    """
    import cv2

    images, ordered = walk(12), []
    (folder / "images").mkdir(parents=True)
    positions = np.concatenate([image.world_from_cam.apply([[0.0, 0, depth]] * 40) for image in (images[0], images[6])])
    for k, posed in enumerate(images):
        cv2.imwrite(str(folder / "images" / posed.name), posed.read()[:, :, ::-1])
        first, last = (0, 40 + shared * (k == 5)) if k < 6 else (40, 80)
        seen = np.append(np.arange(first, last) + 7, NO_POINT)  # COLMAP's ids have gaps
        cam_from_world = posed.world_from_cam.inv()
        ordered.append(
            ColmapImage(
                number=k + 1, camera=1, name=posed.name,
                quaternion_wxyz=cam_from_world.rotation.as_quat(scalar_first=True),
                translation=cam_from_world.translation, pixels=np.ones((len(seen), 2)), points=seen,
            )
        )  # fmt: skip
    points = [
        ColmapPoint(
            number=k + 7,
            position=p,
            color=np.zeros(3, np.uint8),
            error_px=0.5,
            track=[(6 * (k // 40) + n, k % 40) for n in (1, 2)],
        )
        for k, p in enumerate(positions)
    ]
    ColmapModel([CAMERA], ordered, points).write(folder / "sparse" / "0")
    for path in (folder / "sparse" / "0").iterdir():
        if path.suffix != f".{form}":
            path.unlink()
    return SourceConfig(layout="posed", root=folder / "images", poses=folder)


@pytest.mark.parametrize("form", ["txt", "bin"])
def test_images_of_a_colmap_model_make_pairs_by_their_tracks(form, tmp_path):
    found = open_posed_pairs("walk", colmap_project(tmp_path, form))
    expected = [[i, j] for i in range(12) for j in range(i + 1, 12) if (i < 6) == (j < 6) or i == 5]
    assert found.pairs.tolist() == expected  # by their frusta alone all neighbors would be pairs
    np.testing.assert_allclose(found[0].second.world_from_cam, walk(2)[1].world_from_cam.as_matrix(), atol=1e-9)
    far = open_posed_pairs("walk", colmap_project(tmp_path / "far", form, depth=1000.0))
    assert found.has_direction.all()
    assert not far.has_direction.any()  # all baselines are short where the points are far


def test_a_colmap_model_that_pycolmap_writes_gives_the_same_pairs(tmp_path):
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed")
    ours = colmap_project(tmp_path, "txt", shared=0)
    own, theirs = tmp_path / "sparse" / "0", tmp_path / "theirs"
    theirs.mkdir()
    pycolmap.Reconstruction(str(own)).write_binary(str(theirs))
    again = open_posed_pairs("walk", SourceConfig(layout="posed", root=ours.root, poses=theirs))
    assert again.pairs.tolist() == open_posed_pairs("walk", ours).pairs.tolist()


def test_a_colmap_model_without_tracks_makes_pairs_by_gap_and_overlap(tmp_path):
    source = colmap_project(tmp_path, "txt")
    model = tmp_path / "sparse" / "0"
    lines = (model / "images.txt").read_text().splitlines()
    (model / "images.txt").write_text("".join(f"{line}\n" if k % 2 else "\n" for k, line in enumerate(lines))[1:])
    (model / "points3D.txt").unlink()
    found = open_posed_pairs("walk", source)
    assert found.pairs.tolist() == pairs_of_images("walk", walk(12)).pairs.tolist()


@pytest.mark.parametrize(
    ("file", "damage", "sentence"),
    [
        ("images.txt", lambda text: text.replace(" 7 ", " 7 8 ", 1), "expected the observations of an image"),
        ("images.txt", lambda text: text.replace(" 7 ", " seven ", 1), "expected the observations of an image"),
        ("points3D.txt", lambda text: "7 0.5 x 1\n", "expected POINT3D_ID X Y Z"),
        ("points3D.txt", lambda text: None, "points3D.bin: cannot be read"),
        ("points3D.bin", lambda data: data[:-3], "cut off"),
        ("points3D.bin", lambda data: data[:100], "cut off"),
        ("points3D.bin", lambda data: data + b"12345678", "cut off"),
    ],
)
def test_damaged_tracks_of_a_colmap_model_are_one_line(file, damage, sentence, tmp_path):
    path = tmp_path / "sparse" / "0" / file
    source = colmap_project(tmp_path, path.suffix[1:])
    damaged = damage(path.read_text() if path.suffix == ".txt" else path.read_bytes())
    path.unlink()
    if damaged is not None:
        path.write_text(damaged) if path.suffix == ".txt" else path.write_bytes(damaged)
    with pytest.raises(TrajectoryError, match=sentence):
        open_posed_pairs("walk", source)


# --- splits -------------------------------------------------------------------------------------------


def test_a_split_by_time_shares_no_image(map_folder):
    parts = split([pairs_of_map(map_folder)], "time", 0.3)
    [training], [held_out] = parts.training, parts.held_out
    assert training.pairs.max() == 6
    assert held_out.pairs.min() == 7
    assert (len(training), len(held_out)) == (21, 3)
    expect_apart([training], [held_out])


def test_a_split_by_sequence_holds_out_whole_sets():
    sets = [numbered(3, name) for name in ("a", "b", "c")]
    parts = split(sets, "sequence", 0.3)
    assert [part.name for part in parts.training] == ["a", "b"]
    assert [part.name for part in parts.held_out] == ["c"]
    with pytest.raises(TrainingError, match="one sequence cannot be split by sequence"):
        split(sets[:1], "sequence", 0.3)


def test_an_image_in_both_parts_is_refused(map_folder, tmp_path):
    """Two maps of one recording: their keyframes have the same bytes."""
    save_map(tmp_path / "again", small_map(keyframes=10, landmarks=20))
    with pytest.raises(TrainingError, match=r"keyframe \d+: an image of .*, to train on, and of .*, held out"):
        split([pairs_of_map(map_folder), pairs_of_map(tmp_path / "again")], "sequence", 0.5)
    source = {"layout": "map", "root": str(map_folder)}
    with pytest.raises(TrainingError, match="leave one of them out"):
        train(settings(data={"a": source}, held_out={"b": source}), tmp_path / "t")


def test_too_short_a_sequence_is_refused(map_folder):
    with pytest.raises(TrainingError, match="no pairs held out when the last 1 % of 10 images are held out"):
        split([pairs_of_map(map_folder)], "time", 0.01)


# --- images -------------------------------------------------------------------------------------------


def test_colors_change_independently_and_the_same_way_each_time(rng):
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    jitter = ColorJitter()
    changed = [jitter(image, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(changed[0], changed[1])
    assert not np.array_equal(changed[0], changed[2])
    assert changed[0].dtype == np.uint8
    assert np.abs(ColorJitter(0, 0, 0, 0)(image, rng).astype(int) - image).max() <= 3  # rounding of hues
    gray = np.full((4, 4, 3), 100, np.uint8)
    brightened = [int(ColorJitter(0.5, 0, 0, 0)(gray, np.random.default_rng(s))[0, 0, 0]) for s in range(200)]
    assert min(brightened) >= 50
    assert max(brightened) <= 150
    assert max(brightened) - min(brightened) > 90
    turned = ColorJitter(0, 0, 0, 0.1)(np.full((4, 4, 3), (200, 0, 0), np.uint8), np.random.default_rng(3))
    assert turned.max() >= 195  # the value stays


def portrait(view):
    """A view of an upright camera, by turning the image's array."""
    camera = Camera(width=36, height=48, fx=36.0, fy=36.0, cx=17.5, cy=23.5)
    return replace(view, camera=camera, read=lambda: np.ascontiguousarray(view.read().transpose(1, 0, 2)))


def test_portrait_and_landscape_images_train_in_one_batch(tmp_path):
    mixed = pair_set(8)
    views = [portrait(mixed.view(k)) if k % 3 == 0 else mixed.view(k) for k in range(16)]
    held_out = pair_set(4, seed=1, name="other")
    open_posed = lambda name, _: replace(mixed, view=lambda k: views[k]) if name == "box" else held_out  # noqa: E731
    result = train(settings(epochs=1, batch=8), tmp_path / "t", open_posed=open_posed)
    assert result.skipped == 0
    loader = PairLoader(Mixture({"box": open_posed("box", None)}, [Share("box")]), LoadingRule())
    sizes = {loader.load(Request((0, k), (48, 36), 0, k)).first.grid_size for k in range(8)}
    assert sizes == {(48, 36), (36, 48)}


def test_nearly_square_images_are_oriented_by_chance():
    base = pair_set(1)
    camera = Camera(width=48, height=46, fx=36.0, fy=36.0, cx=23.5, cy=22.5)
    square = lambda k: replace(base.view(k), camera=camera, read=lambda: np.zeros((46, 48, 3), np.uint8))  # noqa: E731
    loader = PairLoader(Mixture({"box": replace(base, view=square)}, [Share("box")]), LoadingRule())
    sizes = [loader.load(Request((0, 0), (48, 36), 0, k)).first.grid_size for k in range(40)]
    assert set(sizes) == {(48, 36), (36, 48)}
    assert sizes == [loader.load(Request((0, 0), (48, 36), 0, k)).first.grid_size for k in range(40)]


def test_a_broken_pair_is_replaced_by_the_next_and_named_once(caplog):
    base = pair_set(6)

    def view(k):
        if k in (4, 6):
            raise SequenceError(f"image {k} is cut off")
        return base.view(k)

    loader = PairLoader(Mixture({"box": replace(base, view=view)}, [Share("box")]), LoadingRule())
    loaded = [loader.load(Request((0, k), (48, 36), 0, k)).name for k in (1, 2, 3, 2, 4)]
    assert loaded == ["box 2 and box 3"] + ["box 8 and box 9"] * 4
    assert caplog.text.count("image 4 is cut off") == caplog.text.count("image 6 is cut off") == 1
    nothing = PairLoader(Mixture({"box": replace(base, view=lambda k: view(4))}, [Share("box")]), LoadingRule())
    with pytest.raises(TrainingError, match="6 pairs in a row cannot be used, the first: image 4 is cut off"):
        nothing.load(Request((0, 3), (48, 36), 0, 0))


def test_the_size_of_the_images_is_that_of_the_start_which_crops_them_least():
    mixture, config = Mixture({"box": pair_set(2)}, [Share("box")]), settings(resolutions=[])
    sizes = [image_sizes(config, Architecture(img_size=side), mixture) for side in (224, 512)]
    assert sizes == [[(224, 224)], [(512, 384)]]
    with pytest.raises(ConfigError, match="the start does not tell the size of its images"):
        image_sizes(config, Architecture(), mixture)
    with pytest.raises(ConfigError, match="48 x 36 are no multiples of the patch size 16"):
        image_sizes(settings(), Architecture(), mixture)
    assert image_side([(512, 384), (512, 288)]) == 512
    assert image_side([(48, 36)]) is None


def test_two_images_from_one_place_have_no_direction():
    base = pair_set(2)

    def same(k):
        return replace(base.view(k), world_from_cam=base.view(0 if k < 2 else k).world_from_cam)

    loader = PairLoader(Mixture({"box": replace(base, view=same)}, [Share("box")]), LoadingRule())
    assert [loader.load(Request((0, k), (48, 36), 0, k)).has_direction for k in range(2)] == [False, True]


# --- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "training").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_settings_load(path):
    config = read_config(path)
    assert checked_config(merged({}, json.loads(config.model_dump_json())), "again") == config
    assert dump_config(config)
    if path.name == "paper.yaml":
        assert len(config.data) == 7
        assert sum(share.count for share in parse_mixture(config.mix, list(config.data))) == 350_000


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["lr=0"], "lr: Input should be greater than 0"),
        (["learning_rate=1"], "learning_rate: unknown key"),
        (["data.a.layout=pictures", "data.a.root=."], "data.a.layout"),
        (["resolutions=[[32, 48]]"], "32 x 48: expected width >= height"),
        (["resolutions=[[50, 36]]"], "50 x 36: expected width >= height and multiples of 6"),
        (["cache=disk"], "tune: all freezes none"),
    ],
)
def test_settings_that_cannot_be_are_one_line(changes, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        checked_config(merged(json.loads(settings().model_dump_json()), parse_changes(changes)), "x.yaml")
    assert str(caught.value).startswith("x.yaml: ")
    assert "\n" not in str(caught.value)


def test_numbers_with_an_exponent_and_without_a_point_are_numbers():
    assert checked_config(parse_changes(["lr=1e-4"]), "test").lr == 1e-4


# --- cache --------------------------------------------------------------------------------------------


def cache_in(folder, **changes):
    return TokenCache(folder, **({"fingerprint": "f", "bound_bytes": 10**6, "dtype": "float16"} | changes))


def test_arrays_come_back_as_they_were_stored(tmp_path, rng):
    arrays = {f"key {k}": rng.standard_normal((5, k + 1)) for k in range(4)}
    cache = cache_in(tmp_path)
    stored = {key: cache.put(key, array) for key, array in arrays.items()}
    for opened in (cache, cache_in(tmp_path)):
        assert all(np.array_equal(opened.get(key), stored[key]) for key in arrays)
        assert opened.get("other") is None
        assert "key 1" in opened
    np.testing.assert_allclose(stored["key 3"], arrays["key 3"], rtol=1e-3, atol=1e-3)
    assert len(cache_in(tmp_path, fingerprint="of other weights")) == 0


def test_a_cache_keeps_within_its_bound_and_gives_the_same_values_without_room(tmp_path, caplog):
    cache = cache_in(tmp_path, bound_bytes=100)
    values = [cache.put(str(k), np.full(20, 1.0001 * k)) for k in range(5)]
    assert len(cache) == 2
    assert cache.used_bytes == 80
    assert (tmp_path / "data.bin").stat().st_size == 80
    assert caplog.text.count("the cache is full") == 1
    assert all(value.dtype == np.float16 for value in values)


def test_what_a_kill_left_half_written_is_not_read(tmp_path):
    cache = cache_in(tmp_path)
    for k in range(3):
        cache.put(str(k), np.full(20, float(k)))
    index = tmp_path / "index.jsonl"
    index.write_text(index.read_text()[:-7])
    opened = cache_in(tmp_path)
    assert len(opened) == 2
    opened.put("new", np.full(20, 9.0))
    assert np.array_equal(cache_in(tmp_path).get("new"), np.full(20, 9.0))
    (tmp_path / "data.bin").write_bytes((tmp_path / "data.bin").read_bytes()[:50])
    assert len(cache_in(tmp_path)) == 1


def test_a_full_disk_ends_the_caching_and_not_the_training(tmp_path, caplog):
    cache = cache_in(tmp_path)
    cache.put("small", np.ones(20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        cache.put("large", np.ones(5000))
        cache.put("small too", np.ones(20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "nothing more is cached (File too large)" in caplog.text
    assert len(cache) == 1
    assert np.array_equal(cache_in(tmp_path).get("small"), np.ones(20))


def test_values_beyond_half_precision_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="set cache_dtype: float32"):
        cache_in(tmp_path).put("key", np.array([1e6]))


def counted(reads):
    """The sets of the settings; `reads` counts how often each image is read."""
    base = opener()

    def open_posed(name, source):
        found = base(name, source)

        def view(k):
            of_set = found.view(k)
            return replace(of_set, read=lambda: (reads.update([of_set.name]), of_set.read())[1])

        return replace(found, view=view)

    return open_posed


@pytest.mark.parametrize("tune", ["decoder", "head"])
def test_with_a_cache_images_are_read_once_and_the_steps_are_the_same(tune, tmp_path):
    reads, curves = Counter(), []
    for cache in ("none", "disk"):
        config = settings(tune=tune, cache=cache, cache_dtype="float32", epochs=3, batch=1)
        train(config, tmp_path / cache, open_posed=counted(reads if cache == "disk" else Counter()))
        curves.append(losses_in(tmp_path / cache))
    assert np.abs(np.subtract(*curves)).max() < 1e-5
    assert len(reads) == 2 * (8 + 4)
    assert max(reads.values()) <= 2  # what comes next is read ahead, before the last of an epoch is cached
    assert sum(reads.values()) < 1.5 * len(reads)
    assert not (tmp_path / "disk" / "cache").exists()


def test_a_cache_holds_a_few_variants_of_each_image(tmp_path):
    reads = Counter()
    config = settings(tune="decoder", cache="disk", epochs=6, batch=1, jitter=True, jitter_variants=2)
    train(config, tmp_path / "t", open_posed=counted(reads))
    trained = {name: count for name, count in reads.items() if name.startswith("box")}
    assert len(trained) == 16
    assert 2 <= max(trained.values()) <= 4


# --- evaluation ---------------------------------------------------------------------------------------


def test_the_area_under_the_recall_curve():
    assert area_under_recall([0.0, 0.0], 5) == 1.0
    assert area_under_recall([6.0, 7.0], 5) == 0.0
    assert area_under_recall([1.0, 9.0], 5) == pytest.approx((0.5 * 1.0 * 0.5 + 4.0 * 0.5) / 5)
    assert area_under_recall([], 5) == 0.0


def test_an_evaluation_knows_what_a_guess_would_give(tmp_path):
    result = train(settings(epochs=1), tmp_path / "t", open_posed=opener(8, 16))
    held_out = pair_set(16, seed=1, name="other")
    relative = [
        relative_pose(p.first.world_from_cam, p.second.world_from_cam) for p in map(held_out.__getitem__, range(16))
    ]
    turned = np.degrees([rotation_angle(pose[:3, :3]) for pose in relative])
    aside = np.degrees([direction_angle(pose[:3, 3], [0, 0, 1]) for pose in relative])
    assert result.after["guess_rotation_deg"] == pytest.approx(np.median(turned), abs=1e-3)
    assert result.after["guess_direction_deg"] == pytest.approx(np.median(aside), abs=1e-3)

"""Of each public layout a miniature, drawn by the project's rasterizer, trains; what is broken is one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_training_loop import settings
from training_world import CAMERA, walk

from relocalizer.errors import TrainingError
from relocalizer.geometry import rotation_angle
from relocalizer.training.loss import relative_pose
from relocalizer.training.output_files import read_lines
from relocalizer.training.public_layouts import open_public
from relocalizer.training.session import train

COUNT = 16
LAYOUTS = ("co3d", "scannetpp", "arkitscenes", "blendedmvs", "megadepth", "dl3dv", "realestate10k")
PAIRS = np.array([[k, k + 1] for k in range(COUNT - 1)])


@pytest.fixture(scope="module")
def views():
    """(images as JPEG, poses (N, 4, 4))."""
    torch.set_num_threads(1)
    posed = walk(COUNT)
    images = [cv2.imencode(".jpg", cv2.cvtColor(p.read(), cv2.COLOR_RGB2BGR))[1].tobytes() for p in posed]
    return images, np.array([p.world_from_cam.as_matrix() for p in posed])


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_co3d(root, images, poses):
    for part, sequence in (("train", "11_22_33"), ("test", "44_55_66")):
        listed = {"apple": {sequence: list(range(1, COUNT + 1))}}
        (root / f"selected_seqs_{part}.json").write_text(json.dumps(listed))
        for k, (image, pose) in enumerate(zip(images, poses, strict=True), 1):
            path = root / "apple" / sequence / "images" / f"frame{k:06d}.jpg"
            put(path, image)
            np.savez(path.with_suffix(".npz"), camera_intrinsics=CAMERA.matrix, camera_pose=pose, maximum_depth=9.0)


def write_metadata(root, folder, images, poses):
    for k, image in enumerate(images):
        put(root / "scene0" / folder / f"{k:06d}.jpg", image)
    np.savez(
        root / "all_metadata.npz",
        scenes=["scene0"], sceneids=np.zeros(COUNT, int), images=[f"{k:06d}" for k in range(COUNT)],
        intrinsics=np.tile(CAMERA.matrix.astype(np.float32), (COUNT, 1, 1)), trajectories=poses.astype(np.float32),
        pairs=np.column_stack([PAIRS, np.full(len(PAIRS), 0.5)]), counts=[COUNT],
    )  # fmt: skip


def write_scannetpp(root, images, poses):
    write_metadata(root, "images", images, poses)


def write_arkitscenes(root, images, poses):
    for part in ("train", "test"):
        (root / part).mkdir()
        write_metadata(root / part, "vga_wide", images, poses)


def write_blendedmvs(root, images, poses):
    rows = []
    for low in (24301, 24300):  # the second one, a multiple of ten, is for testing
        folder = root / f"{7:08x}{low:016x}"
        for k, (image, pose) in enumerate(zip(images, poses, strict=True)):
            put(folder / f"{k:08d}.jpg", image)
            np.savez(
                folder / f"{k:08d}.npz", intrinsics=CAMERA.matrix, R_cam2world=pose[:3, :3], t_cam2world=pose[:3, 3]
            )
        rows += [(7, low, i, j, 0.5) for i, j in PAIRS]
    kinds = [("seq_high", "u8"), ("seq_low", "u8"), ("img1", "u4"), ("img2", "u4"), ("score", "f4")]
    np.save(root / "blendedmvs_pairs.npy", np.array(rows, kinds))


def write_megadepth(root, images, poses):
    scenes, names, rows = ["0001 0", "0015 1"], [], []
    for number, scene in enumerate(scenes):
        for k, (image, pose) in enumerate(zip(images, poses, strict=True)):
            path = root / scene.replace(" ", "/") / f"{number}{k:05d}_o.jpg"
            put(path, image)
            np.savez(path.with_suffix(".npz"), intrinsics=CAMERA.matrix, cam2world=pose)
            names.append(path.name)
        rows += [(number, number * COUNT + i, number * COUNT + j, 0.5) for i, j in PAIRS]
    kinds = [("scene_id", "i4"), ("im1_id", "i4"), ("im2_id", "i4"), ("score", "f4")]
    np.savez(root / "all_metadata.npz", scenes=scenes, images=names, pairs=np.array(rows, kinds))


def write_dl3dv(root, images, poses):
    opengl = poses @ np.diag([1.0, -1, -1, 1])
    for part in ("train", "test"):
        names = [f"frame_{k + 1:05d}.png" for k in range(COUNT)]
        for name, image in zip(names, images, strict=True):
            put(root / "1K" / part / "images_8" / name, image)
        rows = [(part, int(i), int(j), names[i], names[j], opengl[i], opengl[j], CAMERA.matrix) for i, j in PAIRS]
        (root / f"metadata_{part}.pkl").write_bytes(pickle.dumps(rows))


def write_realestate10k(root, images, poses):
    for part in ("train", "test"):
        for k, image in enumerate(images):
            put(root / "images" / part / f"{k}.jpg", image)
        w2c = np.linalg.inv(poses)
        np.savez(
            root / f"{part}_metadata_pairs.npz",
            img_pairs=[[f"{part}/{i}.jpg", f"{part}/{j}.jpg"] for i, j in PAIRS],
            camera_params=np.tile(CAMERA.matrix, (len(PAIRS), 2, 1, 1)), w2c=w2c[PAIRS],
        )  # fmt: skip


def write(layout, root, views):
    root.mkdir(parents=True, exist_ok=True)
    globals()[f"write_{layout}"](root, *views)
    return root


@pytest.fixture(scope="module")
def miniatures(views, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    return {layout: write(layout, folder / layout, views) for layout in LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_have_the_poses_of_the_world(layout, miniatures, views):
    _, poses = views
    found = open_public(layout, miniatures[layout], "train")
    assert found.has_direction.all()
    for index in range(0, len(found), 5):
        pair = found[index]
        i, j = (int("".join(c for c in Path(v.name).stem if c.isdigit())[-5:]) for v in (pair.first, pair.second))
        shift = 1 if layout in ("co3d", "dl3dv") else 0
        relative = relative_pose(pair.first.world_from_cam, pair.second.world_from_cam)
        expected = relative_pose(poses[i - shift], poses[j - shift])
        assert rotation_angle(relative[:3, :3].T @ expected[:3, :3]) < 1e-3
        np.testing.assert_allclose(relative[:3, 3], expected[:3, 3], atol=1e-5)
        assert pair.first.camera == CAMERA
        assert pair.first.read().shape == (CAMERA.height, CAMERA.width, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_miniature_trains_two_steps(layout, miniatures, tmp_path):
    source = {"layout": layout, "root": str(miniatures[layout])}
    held_out = {} if layout == "scannetpp" else {"test": source | {"split": "test"}}
    config = settings(data={"data": source}, held_out=held_out, mix="8 @ data", epochs=1, jitter=True)
    result = train(config, tmp_path / "t")
    assert (result.steps, result.skipped, result.broken) == (2, 0, 0)
    losses = [line["loss"] for line in read_lines(tmp_path / "t" / "log.jsonl") if "loss" in line]
    assert len(losses) == 2
    assert np.isfinite(losses).all()


def list_of(layout, root):
    """The file that lists the pairs of the training part."""
    return (
        root
        / {
            "co3d": "selected_seqs_train.json",
            "scannetpp": "all_metadata.npz",
            "arkitscenes": "train/all_metadata.npz",
            "blendedmvs": "blendedmvs_pairs.npy",
            "megadepth": "all_metadata.npz",
            "dl3dv": "metadata_train.pkl",
            "realestate10k": "train_metadata_pairs.npz",
        }[layout]
    )


def changed_npz(path, **changes):
    with np.load(path) as archive:
        np.savez(path, **{**archive, **changes})


def emptied(layout, path):
    if layout == "co3d":
        path.write_text('{"apple": {"11_22_33": []}}')
    elif layout == "dl3dv":
        path.write_bytes(pickle.dumps([]))
    elif layout == "blendedmvs":
        np.save(path, np.load(path)[:0])
    elif layout == "realestate10k":
        with np.load(path) as archive:
            empty = {name: archive[name][:0] for name in archive.files}
        np.savez(path, **empty)
    else:
        with np.load(path) as archive:
            none = archive["pairs"][:0]
        changed_npz(path, pairs=none)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("what", ["missing", "cut off", "empty"])
def test_a_broken_list_is_one_line_that_names_the_file(layout, what, views, tmp_path):
    root = write(layout, tmp_path / layout, views)
    path = list_of(layout, root)
    if what == "missing":
        path.unlink()
    elif what == "cut off":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        emptied(layout, path)
    with pytest.raises(TrainingError) as caught:
        open_public(layout, root, "train")
    message = str(caught.value)
    assert "\n" not in message
    assert ("no pairs" in message) if what == "empty" else (path.name in message)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_that_is_not_there_is_one_line(layout, tmp_path):
    with pytest.raises(TrainingError, match=f"no such folder; expected a preprocessed {layout}"):
        open_public(layout, tmp_path / "nothing", "train")


@pytest.mark.parametrize(
    ("layout", "changes", "sentence"),
    [
        ("scannetpp", {"trajectories": np.zeros((COUNT, 3, 4))}, "trajectories is 16 x 3 x 4 where 16 x 4 x 4"),
        ("scannetpp", {"pairs": np.array([[0, 99]])}, "names number 99 of 16"),
        ("arkitscenes", {"intrinsics": np.zeros((3, 3, 3))}, "intrinsics is 3 x 3 x 3 where 16 x 3 x 3"),
        ("megadepth", {"pairs": PAIRS}, "the pairs have no field scene_id"),
        ("realestate10k", {"w2c": np.zeros((4, 2, 4, 4))}, "w2c is 4 x 2 x 4 x 4 where 15 x 2 x 4 x 4"),
        ("scannetpp", {"images": np.array(["../../secret"] * COUNT)}, "which is outside of the folder"),
    ],
)
def test_arrays_of_a_wrong_shape_are_one_line(layout, changes, sentence, views, tmp_path):
    root = write(layout, tmp_path / layout, views)
    changed_npz(list_of(layout, root), **changes)
    with pytest.raises(TrainingError, match=sentence):
        open_public(layout, root, "train")


def spoil_first_view(layout, root, how):
    """Break the image or the pose of the first view of the first pair."""
    view = open_public(layout, root, "train").view(int(open_public(layout, root, "train").pairs[0, 0]))
    path, beside = Path(view.name), Path(view.name).with_suffix(".npz")
    if how == "missing image":
        path.unlink()
    elif how == "cut off image":
        path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    elif how == "wrong shape":
        with np.load(beside) as archive:
            poses = {k: v[:2] for k, v in archive.items() if k in ("camera_pose", "R_cam2world", "cam2world")}
        changed_npz(beside, **poses)
    elif layout in ("co3d", "blendedmvs", "megadepth"):
        with np.load(beside) as archive:
            nan = {k: v * np.nan for k, v in archive.items() if k in ("camera_pose", "R_cam2world", "cam2world")}
        changed_npz(beside, **nan)
    elif layout == "dl3dv":
        rows = pickle.loads(list_of(layout, root).read_bytes())
        rows[0][5][:] = np.nan
        list_of(layout, root).write_bytes(pickle.dumps(rows))
    else:
        name = "w2c" if layout == "realestate10k" else "trajectories"
        with np.load(list_of(layout, root)) as archive:
            poses = archive[name]
        poses.reshape(-1, 4, 4)[0] = np.nan
        changed_npz(list_of(layout, root), **{name: poses})


@pytest.mark.parametrize(
    ("layout", "how"),
    [
        *((layout, how) for layout in LAYOUTS for how in ("missing image", "cut off image", "NaN pose")),
        *((layout, "wrong shape") for layout in ("co3d", "blendedmvs", "megadepth")),
    ],
)
def test_a_broken_view_takes_only_its_pairs_along_and_is_named(layout, how, views, tmp_path, caplog):
    from relocalizer.training.pair_data import Mixture, Share
    from relocalizer.training.pair_loader import LoadingRule, PairLoader, Request

    root = write(layout, tmp_path / layout, views)
    spoil_first_view(layout, root, how)
    opened = open_public(layout, root, "train")
    loader = PairLoader(Mixture({"data": opened}, [Share("data")]), LoadingRule())
    pairs = [loader.load(Request((0, k), (48, 36), 0, k)) for k in range(len(opened))]
    assert len(pairs) == len(opened)
    assert 0 < len(loader.broken) < len(opened)
    assert all("\n" not in reason for reason in loader.broken.values())
    assert len(caplog.records) == len(loader.broken)


def test_a_matrix_of_a_wrong_shape_in_a_list_is_one_line(views, tmp_path):
    root = write("dl3dv", tmp_path / "dl3dv", views)
    rows = pickle.loads(list_of("dl3dv", root).read_bytes())
    rows[3] = (*rows[3][:6], np.eye(3), rows[3][7])
    list_of("dl3dv", root).write_bytes(pickle.dumps(rows))
    with pytest.raises(TrainingError, match=r"entry 3: a matrix of shape \(3, 3\); expected \(4, 4\)"):
        open_public("dl3dv", root, "train")
    list_of("dl3dv", root).write_bytes(pickle.dumps([row[:5] for row in rows]))
    with pytest.raises(TrainingError, match="entry 0: expected 8 values of a pair"):
        open_public("dl3dv", root, "train")

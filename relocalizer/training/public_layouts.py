"""Pairs of the seven public data sets that Reloc3r was trained on, in the layout of their published preprocessing.

Poses are camera to world with OpenCV's axes unless a reader says otherwise. Lists of pairs are read when a set is
opened; images, and poses that stand in a file of their own, when a pair is used. What is broken there takes only its
pair along.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.errors import CameraError, TrainingError
from relocalizer.geometry import FloatArray
from relocalizer.image_headers import image_size
from relocalizer.images import read_image
from relocalizer.restricted_pickle import DamagedPickleError, RefusedPickleError, load_restricted
from relocalizer.training.pair_data import PairSet, View

Arrays = dict[str, NDArray[Any]]

CO3D_GAPS, CO3D_MOVED, CO3D_SEED = range(5, 31, 5), 4, 777  # gaps of a hundred positions to a turn
DL3DV_COLUMNS = 8  # scene, i, j, file i, file j, pose i, pose j, K
MEGADEPTH_TEST = ("0015", "0022")  # scenes of MegaDepth1500
NO_BASELINE = 1e-3  # baseline of a pair without a direction, as a share of the median of its set


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """An image file with its intrinsics (3, 3) and pose world_from_cam (4, 4)."""

    path: Path
    intrinsics: FloatArray
    world_from_cam: FloatArray


def open_public(layout: str, root: Path, split: str) -> PairSet:
    """The pairs of a data set.

    Args:
        layout: co3d, scannetpp, arkitscenes, blendedmvs, megadepth, dl3dv or realestate10k.
        split: "train" or "test".

    Raises:
        TrainingError: the list of pairs is missing, damaged or empty; one line that names the file.
    """
    if not root.is_dir():
        raise TrainingError(f"{root}: no such folder; expected a preprocessed {layout}")
    return _READERS[layout](root, split)


# --- readers ------------------------------------------------------------------------------------------


def _co3d(root: Path, split: str) -> PairSet:
    """`selected_seqs_SPLIT.json`: {category: {sequence: [frame, ...]}}; an .npz beside each image."""
    path = root / f"selected_seqs_{split}.json"
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        sequences = [
            (f"{category}/{name}", [int(frame) for frame in frames])
            for category, of_category in sorted(listed.items())
            for name, frames in sorted(of_category.items())
        ]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise TrainingError(f"{path}: not a list of sequences ({error})") from None
    photos, pairs = list[Path](), list[tuple[int, int]]()
    rng = np.random.default_rng(CO3D_SEED)
    for name, frames in sequences:
        first = len(photos)
        photos += [_inside(root, f"{name}/images/frame{frame:06d}.jpg") for frame in frames]
        pairs += [(first + i, first + j) for i, j in _co3d_pairs(len(frames), split, rng)]
    return _pair_set(f"co3d {split}", photos, np.array(pairs), lambda k: _beside(photos[k], _co3d_camera))


def _co3d_pairs(count: int, split: str, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Pairs of positions in a sequence: gaps up to a third of a turn, each end moved; the test: ten by twos."""
    if split == "test":
        chosen = np.sort(rng.permutation(count)[:10]).tolist()
        return list(combinations(chosen, 2))
    found = [(i, i + gap) for gap in CO3D_GAPS for i in range(100 - gap)]
    moved = np.array(found) + rng.integers(-CO3D_MOVED, CO3D_MOVED + 1, (len(found), 2))
    clipped = np.unique(np.clip(moved, 0, max(count - 1, 0)), axis=0)
    return [(int(i), int(j)) for i, j in clipped if i != j]


def _co3d_camera(data: Arrays) -> tuple[FloatArray, FloatArray]:
    return data["camera_intrinsics"], data["camera_pose"]


def _scannetpp(root: Path, split: str) -> PairSet:
    """`all_metadata.npz` over all scenes; images in SCENE/images."""
    if split != "train":
        raise TrainingError(f"{root}: scannetpp has a training part alone; take another set as held_out")
    return _of_metadata("scannetpp", root, "images")


def _arkitscenes(root: Path, split: str) -> PairSet:
    """As scannetpp, in a folder per split; images in SCENE/vga_wide."""
    return _of_metadata(f"arkitscenes {split}", root / split, "vga_wide")


def _of_metadata(name: str, root: Path, folder: str) -> PairSet:
    path = root / "all_metadata.npz"
    data = _arrays(path, "scenes", "sceneids", "images", "intrinsics", "trajectories", "pairs")
    count = len(data["images"])
    _expect(path, data, sceneids=(count,), intrinsics=(count, 3, 3), trajectories=(count, 4, 4), pairs=(None, None))
    pairs = _numbers(path, data["pairs"][:, :2], count)
    scenes = _numbers(path, data["sceneids"], len(data["scenes"]))
    photos = [
        _inside(root, f"{data['scenes'][scene]}/{folder}/{_stem(image)}.jpg")
        for scene, image in zip(scenes.tolist(), data["images"].tolist(), strict=True)
    ]

    def photo(k: int) -> Photo:
        return Photo(photos[k], data["intrinsics"][k].astype(float), data["trajectories"][k].astype(float))

    return _pair_set(name, photos, pairs, photo, centers=data["trajectories"][:, :3, 3].astype(float))


def _blendedmvs(root: Path, split: str) -> PairSet:
    """`blendedmvs_pairs.npy`, structured; a folder per sequence, an .npz beside each image."""
    path = root / "blendedmvs_pairs.npy"
    table = _structured(path, _load(path), "seq_high", "seq_low", "img1", "img2")
    chosen = table[(table["seq_low"] % 10 > 0) == (split == "train")]
    names = [
        [
            _inside(root, f"{int(row['seq_high']):08x}{int(row['seq_low']):016x}/{int(row[key]):08d}.jpg")
            for row in chosen
        ]
        for key in ("img1", "img2")
    ]
    return _by_files(f"blendedmvs {split}", names, _blendedmvs_camera)


def _blendedmvs_camera(data: Arrays) -> tuple[FloatArray, FloatArray]:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = data["R_cam2world"], data["t_cam2world"].reshape(3)
    return data["intrinsics"], pose


def _megadepth(root: Path, split: str) -> PairSet:
    """`all_metadata.npz` with structured pairs; SCENE/SUB/IMAGE, an .npz beside each image."""
    path = root / "all_metadata.npz"
    data = _arrays(path, "scenes", "images", "pairs")
    table = _structured(path, data["pairs"], "scene_id", "im1_id", "im2_id")
    scenes = data["scenes"].tolist()
    of_pair = _numbers(path, table["scene_id"], len(scenes))
    is_test = np.array([str(scene).startswith(MEGADEPTH_TEST) for scene in scenes])
    table = table[is_test[of_pair] == (split == "test")]
    names = []
    for key in ("im1_id", "im2_id"):
        images = data["images"][_numbers(path, table[key], len(data["images"]))].tolist()
        folders = ["/".join(str(scenes[k]).split()) for k in table["scene_id"].tolist()]
        names.append([_inside(root, f"{a}/{_stem(b)}.jpg") for a, b in zip(folders, images, strict=True)])
    return _by_files(f"megadepth {split}", names, lambda found: (found["intrinsics"], found["cam2world"]))


def _pickled_list(path: Path) -> list[Any]:
    """The list in a pickle file, which may hold numbers, text and numeric arrays only."""
    try:
        with path.open("rb") as file:
            found = load_restricted(file)
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such file; expected the list of pairs") from None
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({error.strerror})") from None
    except RefusedPickleError as error:
        raise TrainingError(f"{path}: holds more than numbers, text and arrays ({error}) and is refused") from None
    except DamagedPickleError as error:
        raise TrainingError(f"{path}: not a whole pickle ({error})") from None
    if not isinstance(found, list):
        raise TrainingError(f"{path}: expected a list of pairs, got {type(found).__name__}")
    return found


def _dl3dv(root: Path, split: str) -> PairSet:
    """`metadata_SPLIT.pkl`, a list of (scene, i, j, file i, file j, pose i, pose j, K); poses with OpenGL's axes."""
    path = root / f"metadata_{split}.pkl"
    photos = list[Photo]()
    for number, row in enumerate(_pickled_list(path)):
        if not isinstance(row, list | tuple) or len(row) != DL3DV_COLUMNS:
            raise TrainingError(f"{path}: entry {number}: expected {DL3DV_COLUMNS} values of a pair")
        for file, pose in ((row[3], row[5]), (row[4], row[6])):
            matrix = _matrix(path, number, pose, (4, 4)).copy()
            matrix[:3, 1:3] *= -1  # OpenGL's cameras look along -z, with y up
            image = _inside(root, f"1K/{row[0]}/images_8/{PurePosixPath(str(file)).name}")
            photos.append(Photo(image, _matrix(path, number, row[7], (3, 3)), matrix))
    return _consecutive(f"dl3dv {split}", photos)


def _realestate10k(root: Path, split: str) -> PairSet:
    """`SPLIT_metadata_pairs.npz`; poses world to camera."""
    path = root / f"{split}_metadata_pairs.npz"
    data = _arrays(path, "img_pairs", "camera_params", "w2c")
    count = len(data["img_pairs"])
    _expect(path, data, img_pairs=(count, 2), camera_params=(count, 2, 3, 3), w2c=(count, 2, 4, 4))
    photos = []
    for names, cameras, poses in zip(data["img_pairs"].tolist(), data["camera_params"], data["w2c"], strict=True):
        for name, intrinsics, cam_from_world in zip(names, cameras, poses.astype(float), strict=True):
            photos.append(Photo(_inside(root, f"images/{name}"), intrinsics.astype(float), _inverse(cam_from_world)))
    return _consecutive(f"realestate10k {split}", photos)


_READERS: dict[str, Callable[[Path, str], PairSet]] = {
    "co3d": _co3d,
    "scannetpp": _scannetpp,
    "arkitscenes": _arkitscenes,
    "blendedmvs": _blendedmvs,
    "megadepth": _megadepth,
    "dl3dv": _dl3dv,
    "realestate10k": _realestate10k,
}


# --- sets of pairs --------------------------------------------------------------------------------------


def _pair_set(
    name: str,
    paths: list[Path],
    pairs: NDArray[Any],
    photo: Callable[[int], Photo],
    *,
    centers: FloatArray | None = None,
) -> PairSet:
    """A set of pairs of photos; with their centers, pairs without a baseline are known."""
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    known = np.ones(len(pairs), bool)
    if centers is not None and len(pairs):
        baselines = np.linalg.norm(centers[pairs[:, 0]] - centers[pairs[:, 1]], axis=1)
        finite = baselines[np.isfinite(baselines)]
        known = ~(baselines <= NO_BASELINE * np.median(finite if len(finite) else [0.0]))
    return PairSet(
        name=name, pairs=pairs, view=lambda k: _view(photo(k)), identity=lambda k: str(paths[k]), has_direction=known
    )


def _consecutive(name: str, photos: list[Photo]) -> PairSet:
    """A set whose photos 2k and 2k + 1 are a pair."""
    centers = np.array([photo.world_from_cam[:3, 3] for photo in photos]).reshape(-1, 3)
    pairs = np.arange(len(photos)).reshape(-1, 2)
    return _pair_set(name, [photo.path for photo in photos], pairs, lambda k: photos[k], centers=centers)


def _by_files(name: str, names: list[list[Path]], camera: Callable[[Arrays], tuple[FloatArray, FloatArray]]) -> PairSet:
    """A set of pairs of files, whose camera and pose stand in an .npz beside each."""
    paths = sorted({path for side in names for path in side})
    number = {path: k for k, path in enumerate(paths)}
    pairs = np.array([[number[a], number[b]] for a, b in zip(*names, strict=True)])
    return _pair_set(name, paths, pairs, lambda k: _beside(paths[k], camera))


def _beside(path: Path, camera: Callable[[Arrays], tuple[FloatArray, FloatArray]]) -> Photo:
    """A photo whose camera and pose stand in the .npz beside it."""
    beside = path.with_suffix(".npz")
    try:
        intrinsics, pose = (np.asarray(value, float) for value in camera(_arrays(beside)))
    except (KeyError, ValueError) as error:
        raise TrainingError(f"{beside}: expected a camera and a pose ({error})") from None
    return Photo(path, intrinsics, pose)


def _view(photo: Photo) -> View:
    size = image_size(photo.path)
    if size is None:
        raise TrainingError(f"{photo.path}: no image that can be read")
    K = photo.intrinsics
    if K.shape != (3, 3):
        raise TrainingError(f"{photo.path}: intrinsics of shape {K.shape}; expected (3, 3)")
    try:
        camera = Camera(
            width=size[0], height=size[1], fx=float(K[0, 0]), fy=float(K[1, 1]), cx=float(K[0, 2]), cy=float(K[1, 2])
        )
    except CameraError as error:
        raise TrainingError(f"{photo.path}: {error}") from None
    return View(
        name=str(photo.path),
        identity=str(photo.path),
        read=lambda: read_image(photo.path),
        camera=camera,
        world_from_cam=photo.world_from_cam,
    )


def _inverse(cam_from_world: FloatArray) -> FloatArray:
    """The inverse of a rigid pose (4, 4), which need not be finite."""
    rotation, translation = cam_from_world[:3, :3], cam_from_world[:3, 3]
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.T, -rotation.T @ translation
    return pose


# --- files --------------------------------------------------------------------------------------------


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such file; expected a preprocessed data set") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{path}: not an array file ({str(error).splitlines()[0]})") from None


def _arrays(path: Path, *needed: str) -> Arrays:
    """All arrays of an .npz file. Raises TrainingError when it is damaged, or one that is needed is missing."""
    with _load(path) as archive:
        missing = [name for name in needed if name not in archive]
        if missing:
            raise TrainingError(f"{path}: no {', no '.join(missing)} in it")
        try:
            return {name: archive[name] for name in (needed or archive.files)}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{path}: damaged ({str(error).splitlines()[0]})") from None


def _expect(path: Path, data: Arrays, **shapes: tuple[int | None, ...]) -> None:
    for name, shape in shapes.items():
        found = data[name].shape
        if len(found) != len(shape) or any(want not in (None, got) for want, got in zip(shape, found, strict=True)):
            wanted = " x ".join("any" if n is None else str(n) for n in shape)
            raise TrainingError(f"{path}: {name} is {' x '.join(map(str, found))} where {wanted} is expected")


def _structured(path: Path, table: Any, *fields: str) -> NDArray[Any]:
    names = getattr(getattr(table, "dtype", None), "names", None) or ()
    missing = [name for name in fields if name not in names]
    if missing:
        raise TrainingError(f"{path}: the pairs have no field {', '.join(missing)}")
    return np.asarray(table)


def _numbers(path: Path, values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Indices of `count` things. Raises TrainingError when one is out of range."""
    numbers = np.asarray(values).astype(np.int64)
    if numbers.size and (numbers.min() < 0 or numbers.max() >= count):
        raise TrainingError(f"{path}: names number {numbers.max()} of {count}")
    return numbers


def _matrix(path: Path, number: int, value: Any, shape: tuple[int, int]) -> FloatArray:
    try:
        found = np.asarray(value, float)
    except (ValueError, TypeError):
        found = np.zeros(0)
    if found.shape != shape:
        raise TrainingError(f"{path}: entry {number}: a matrix of shape {found.shape}; expected {shape}")
    return found


def _stem(name: object) -> str:
    text = str(name)
    return text.rpartition(".")[0] if text.lower().endswith((".jpg", ".jpeg", ".png")) else text


def _inside(root: Path, name: str) -> Path:
    """A file of the data set. Raises TrainingError when its name leads out of the folder."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        raise TrainingError(f"{root}: a list of its names {name!r}, which is outside of the folder")
    return root / pure

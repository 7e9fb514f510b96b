"""ScanNet1500: 1500 pairs of 100 test scenes, in the official layout, SuperGlue's list and glue-factory's.

Pairs: P.-E. Sarlin et al., "SuperGlue", 2020; the same in LoFTR's test.npz. As in Reloc3r's evaluation, the color image
is resized to 640x480 and used with the intrinsics of the depth camera.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from relocalizer.geometry import FloatArray
from relocalizer.image_headers import image_size
from slam.benchmarks.array_files import read_arrays
from slam.benchmarks.benchmark_error import BenchmarkError
from slam.benchmarks.pair_data import (
    Entry,
    ListedImage,
    ListedPair,
    PairListing,
    attempt,
    listing_of,
    resized_image_file,
    rigid_inverse,
    rigid_matrix,
    scaled_intrinsics,
)
from slam.benchmarks.pair_lists import PairLine, read_pair_list
from slam.input.text_rows import path_inside, read_matrix

SIZE = (640, 480)  # Width and height to which images are resized, pixels.
IMAGES = "scannet_test_1500"  # Folder of the scenes in the official layout.
LISTS = ("test.npz", "scannet_test_pairs_with_gt.txt", "scannet_sample_pairs_with_gt.txt", "pairs_calibrated.txt")
_FRAME = re.compile(r"(scene\d{4}_\d{2}).*?(\d+)(?:\.color)?\.\w+$")


def scannet1500(root: Path, pairs: Path | None) -> PairListing:
    """The pairs by scene.

    Args:
        pairs: the list; None takes the first of `LISTS` in the folder.

    Raises:
        BenchmarkError: there is no list, or it is not of any of the formats.
    """
    found = pairs or next((root / name for name in LISTS if (root / name).is_file()), None)
    if found is None:
        raise BenchmarkError(f"{root}: no list of pairs; expected one of {', '.join(LISTS)}, or --pairs FILE")
    lines = _npz_pairs(root, found) if found.suffix == ".npz" else _text_pairs(root, found)
    return listing_of(lines)


def _npz_pairs(root: Path, path: Path) -> Iterator[Entry]:
    """LoFTR's list: `name` (N, 4) with scene, sub-scene and two frames; `rel_pose` (N, 12), camera 1 to camera 2."""
    arrays = read_arrays(path)
    names, poses = arrays.get("name"), arrays.get("rel_pose")
    if not isinstance(names, np.ndarray) or names.ndim != 2 or names.shape[1] != 4:
        raise BenchmarkError(f"{path}: expected an array 'name' of shape (N, 4)")
    if names.dtype.kind not in "iuf":
        raise BenchmarkError(f"{path}: expected an array 'name' of whole numbers, got {names.dtype}")
    if poses is not None and np.shape(poses) != (len(names), 12):
        raise BenchmarkError(f"{path}: expected an array 'rel_pose' of shape ({len(names)}, 12)")
    intrinsics = _depth_intrinsics(root, path)
    for k, row in enumerate(names.astype(int).tolist()):
        yield attempt(
            partial(_npz_pair, root, f"{path}, pair {k}", row, None if poses is None else poses[k], intrinsics)
        )


def _npz_pair(
    root: Path, place: str, row: list[int], pose: FloatArray | None, intrinsics: dict[str, FloatArray]
) -> tuple[str, ListedPair]:
    scene, frames = f"scene{row[0]:04d}_{row[1]:02d}", row[2:]
    first, second = (_official_image(root, scene, frame, intrinsics) for frame in frames)
    truth = _from_pose_files(root, scene, frames)
    if truth is None:
        if pose is None:
            raise BenchmarkError(f"{place}: neither pose files of {scene} nor 'rel_pose' in the list")
        truth = rigid_inverse(rigid_matrix(pose, place))
    return scene, ListedPair(first=first, second=second, first_from_second=truth)


def _depth_intrinsics(root: Path, path: Path) -> dict[str, FloatArray]:
    """Intrinsics by scene of an intrinsics.npz beside the list; those of the scenes' folders precede them."""
    beside = path.with_name("intrinsics.npz")
    return read_arrays(beside) if beside.is_file() else {}


def _official_image(root: Path, scene: str, frame: int, intrinsics: dict[str, FloatArray]) -> ListedImage:
    folder = root / IMAGES / scene
    path = folder / "intrinsic" / "intrinsic_depth.txt"
    K = _intrinsics_of(path)
    place = f"intrinsics.npz, {scene}" if K is None else str(path)
    K = intrinsics.get(scene) if K is None else K
    if K is None:
        raise BenchmarkError(f"{folder}: no intrinsic/intrinsic_depth.txt, and no intrinsics.npz beside the list")
    if np.shape(K) not in ((3, 3), (4, 4)):
        raise BenchmarkError(f"{place}: expected a matrix of 3x3 or 4x4 numbers, got an array of shape {np.shape(K)}")
    return resized_image_file(folder / "color" / f"{frame}.jpg", f"{scene}/{frame}", SIZE, np.asarray(K)[:3, :3])


@lru_cache(maxsize=256)
def _intrinsics_of(path: Path) -> FloatArray | None:
    return read_matrix(path) if path.is_file() else None


def _from_pose_files(root: Path, scene: str, frames: list[int]) -> FloatArray | None:
    """The true pose as in the official evaluation; the list has the same in single precision. None without files."""
    paths = [root / IMAGES / scene / "pose" / f"{frame}.txt" for frame in frames]
    if not all(path.is_file() for path in paths):
        return None
    first, second = (rigid_matrix(read_matrix(path), str(path)) for path in paths)
    return rigid_inverse(first) @ second


def _text_pairs(root: Path, path: Path) -> Iterator[Entry]:
    for line in read_pair_list(path):
        yield line if isinstance(line, BenchmarkError) else attempt(partial(_text_pair, root, path, line))


def _text_pair(root: Path, path: Path, line: PairLine) -> tuple[str, ListedPair]:
    scene = _FRAME.search(line.names[0])
    first, second = (_listed_image(root, line, k) for k in (0, 1))
    pair = ListedPair(first=first, second=second, first_from_second=line.first_from_second)
    return scene[1] if scene else path.stem, pair


def _listed_image(root: Path, line: PairLine, k: int) -> ListedImage:
    """The image under its listed name, or at its place in the official layout; intrinsics are scaled to `SIZE`."""
    name, K = line.names[k], line.intrinsics[k]
    path = path_inside(root, name, line.place)
    parts = _FRAME.search(name)
    if not path.is_file() and parts:
        official = root / IMAGES / parts[1] / "color" / f"{int(parts[2])}.jpg"
        path = official if official.is_file() else path
    if K is None:
        raise BenchmarkError(f"{line.place}: expected a list with intrinsics")
    size = image_size(path)
    return resized_image_file(path, name, SIZE, K if size is None else scaled_intrinsics(K, size, SIZE))

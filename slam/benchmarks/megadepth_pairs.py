"""MegaDepth1500: 1500 pairs of the scenes 0015 and 0022, in the layouts of LoFTR, Reloc3r and glue-factory.

Pairs: J. Sun et al., "LoFTR", 2021. Images are used at their own size. All poses in the lists are camera from world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from relocalizer.geometry import FloatArray
from slam.benchmarks.array_files import read_arrays
from slam.benchmarks.benchmark_error import BenchmarkError
from slam.benchmarks.pair_data import (
    Entry,
    ListedImage,
    ListedPair,
    PairListing,
    attempt,
    attempt_list,
    image_file,
    listing_of,
    rigid_inverse,
    rigid_matrix,
)
from slam.input.text_rows import rows_of

LOFTR_LISTS = ("0015_0.1_0.3", "0015_0.3_0.5", "0022_0.1_0.3", "0022_0.3_0.5", "0022_0.5_0.7")
LOFTR_FOLDERS = ("", "megadepth_test_1500_scene_info", "scene_info")
META, OFFICIAL_PAIRS = "megadepth_meta_test.npz", "megadepth_test_pairs.txt"
VIEWS, PAIRS = "views.txt", "pairs.txt"
_VIEW_COLUMNS = 16  # Of a line of views.txt: name, R (9), t (3), camera model, width, height; then its parameters.


def megadepth1500(root: Path, pairs: Path | None) -> PairListing:
    """The pairs by list, or by scene.

    Args:
        pairs: one of LoFTR's lists; None takes all lists that are in the folder.

    Raises:
        BenchmarkError: no list is there, or one is not as published.
    """
    if pairs is not None:
        return listing_of(_loftr_pairs(root, pairs))
    if (root / OFFICIAL_PAIRS).is_file():
        return listing_of(_official_pairs(root))
    if (root / VIEWS).is_file():
        return listing_of(_glue_factory_pairs(root))
    lists = [root / folder / f"{name}.npz" for name in LOFTR_LISTS for folder in LOFTR_FOLDERS]
    found = [path for path in lists if path.is_file()]
    if not found:
        raise BenchmarkError(
            f"{root}: no list of pairs; expected {OFFICIAL_PAIRS} and {META}, {VIEWS} and {PAIRS}, "
            f"or LoFTR's {LOFTR_LISTS[0]}.npz and so on"
        )
    return listing_of(entry for path in found for entry in attempt_list(_loftr_pairs(root, path)))


def _loftr_pairs(root: Path, path: Path) -> Iterator[Entry]:
    """A pickled dictionary of `image_paths`, `intrinsics`, `poses` and `pair_infos` with ((i, j), overlap, ...)."""
    data = read_arrays(path)
    missing = {"image_paths", "intrinsics", "poses", "pair_infos"} - data.keys()
    if missing:
        raise BenchmarkError(f"{path}: no {', '.join(sorted(missing))} in it; expected a list of LoFTR")
    for number, entry in enumerate(data["pair_infos"]):
        yield attempt(partial(_loftr_pair, root, path, data, number, entry))


def _loftr_pair(root: Path, path: Path, data: dict[str, Any], number: int, entry: Any) -> tuple[str, ListedPair]:
    place = f"{path}, pair {number}"
    try:
        (i, j), overlap = entry[0], float(entry[1])
        views = [(str(data["image_paths"][k]), data["intrinsics"][k], data["poses"][k]) for k in (i, j)]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise BenchmarkError(f"{place}: expected ((i, j), overlap, ...) of listed images ({error})") from None
    return path.stem, _pair(root, place, views, overlap)


def _official_pairs(root: Path) -> Iterator[Entry]:
    meta = read_arrays(root / META)
    views = {name: partial(_meta_view, root, name, value) for name, value in meta.items()}
    for place, names in rows_of(root / OFFICIAL_PAIRS):
        yield attempt(partial(_named_pair, root, views, place, names))


def _named_pair(
    root: Path, views: Mapping[str, Callable[[], tuple[str, Any, Any]]], place: str, names: list[str]
) -> tuple[str, ListedPair]:
    if len(names) < 2:
        raise BenchmarkError(f"{place}: expected the names of two images")
    for name in names[:2]:
        if name not in views:
            raise BenchmarkError(f"{place}: {name} has no pose in the list of views")
    return _scene_of(names[0]), _pair(root, place, [views[name]() for name in names[:2]])


def _meta_view(root: Path, name: str, value: Any) -> tuple[str, Any, Any]:
    view = value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    if not isinstance(view, dict) or not {"intrinsic", "pose"} <= view.keys():
        raise BenchmarkError(f"{root / META}: expected 'intrinsic' and 'pose' of {name}")
    return name, view["intrinsic"], view["pose"]


def _glue_factory_pairs(root: Path) -> Iterator[Entry]:
    views = {fields[0]: partial(_view_of, place, fields) for place, fields in rows_of(root / VIEWS)}
    for place, names in rows_of(root / PAIRS):
        yield attempt(partial(_named_pair, root, views, place, names))


def _view_of(place: str, fields: list[str]) -> tuple[str, Any, Any]:
    """Of a line: name, R (9) and t (3) of cam_from_world, camera model, width, height, parameters."""
    try:
        numbers = np.array([float(field) for field in fields[1:13]])
        parameters = [float(field) for field in fields[_VIEW_COLUMNS:]]
        fx, fy, cx, cy = parameters[:4] if len(parameters) > 3 else [parameters[0], *parameters[:3]]
    except (ValueError, IndexError):
        raise BenchmarkError(f"{place}: expected 'name R t model width height parameters'") from None
    pose = np.column_stack([numbers[:9].reshape(3, 3), numbers[9:]])
    K = np.array([[fx, 0.0, cx - 0.5], [0.0, fy, cy - 0.5], [0.0, 0.0, 1.0]])  # COLMAP's first pixel is at 0.5
    return f"images/{fields[0]}", K, pose


def _scene_of(name: str) -> str:
    return next((part for part in Path(name).parts if part.isdecimal()), "pairs")


def _pair(root: Path, place: str, views: list[tuple[str, Any, Any]], overlap: float | None = None) -> ListedPair:
    """A pair of views (name, intrinsics, cam_from_world)."""
    images: list[ListedImage] = []
    poses: list[FloatArray] = []
    for name, K, pose in views:
        if pose is None or np.shape(K) != (3, 3):
            raise BenchmarkError(f"{place}: {name} has no pose or no intrinsics")
        images.append(image_file(root, name, place, np.asarray(K, dtype=np.float64)))
        poses.append(rigid_matrix(pose, place))
    truth = poses[0] @ rigid_inverse(poses[1])
    return ListedPair(first=images[0], second=images[1], first_from_second=truth, overlap=overlap)

"""CO3Dv2 in ten views: all 45 pairs of ten images of each test sequence, scored per category.

Protocol: Wang et al., "PoseDiffusion", 2023. The data set's own layout: `CATEGORY/frame_annotations.jgz` with the
image, its size and the PyTorch3D camera of each frame, and the images below the root. Which ten images is fixed by
Pi3's map (positions in the sequence), or drawn here with a generator seeded by the sequence's name.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from relocalizer.geometry import FloatArray
from relocalizer.images import Image, read_image
from slam.benchmarks.benchmark_error import BenchmarkError
from slam.benchmarks.pair_data import ListedImage, ListedPair, PairListing, all_pairs, rigid_inverse, rigid_matrix
from slam.benchmarks.torch_chunks import read_index
from slam.input.text_rows import path_inside

ANNOTATIONS, SEQUENCES = "frame_annotations.jgz", "sequence_annotations.jgz"
POSITIONS = "CO3Dv2_relpose_seq-id-map_seed42.json"
VIEWS, LEAST_FRAMES = 10, 50  # Images of a sequence that are related; images that a drawn sequence must have.
# RelPose's split: the categories of which sequences are seen in training, and on which the published rows are.
SEEN = (
    "apple", "backpack", "banana", "baseballbat", "baseballglove", "bench", "bicycle", "bottle", "bowl", "broccoli",
    "cake", "car", "carrot", "cellphone", "chair", "cup", "donut", "hairdryer", "handbag", "hydrant", "keyboard",
    "laptop", "microwave", "motorcycle", "mouse", "orange", "parkingmeter", "pizza", "plant", "stopsign", "teddybear",
    "toaster", "toilet", "toybus", "toyplane", "toytrain", "toytruck", "tv", "umbrella", "vase", "wineglass",
)  # fmt: skip
# PyTorch3D's camera has x left, y up and row vectors.
_OPENCV_FROM_PYTORCH3D = np.diag([-1.0, -1.0, 1.0])


def co3d(root: Path, pairs: Path | None) -> PairListing:
    """The pairs of each sequence, as items `CATEGORY-SEQUENCE`.

    Args:
        pairs: positions of the ten images by sequence; None takes `POSITIONS` in the folder, if it is there.

    Raises:
        BenchmarkError: there are no annotations, or the positions cannot be read.
    """
    categories = [name for name in SEEN if (root / name / ANNOTATIONS).is_file()]
    if not categories:
        raise BenchmarkError(f"{root}: no CATEGORY/{ANNOTATIONS} of the {len(SEEN)} seen categories")
    fixed = pairs or (root / POSITIONS if (root / POSITIONS).is_file() else None)
    positions = None if fixed is None else read_index(fixed)
    items: dict[str, Callable[[], Sequence[ListedPair]]] = {}
    faults = []
    for category in categories:
        try:
            sequences = _used_sequences(root / category, positions)
        except BenchmarkError as error:
            faults.append(str(error))
            continue
        for sequence in sequences:
            items[f"{category}-{sequence}"] = partial(_pairs, root, category, sequence, positions)
    return PairListing(items, tuple(faults))


def _used_sequences(folder: Path, positions: Mapping[str, Any] | None) -> list[str]:
    """Those with positions, or without any those that are long enough.

    The annotations of all frames of a category are large; those of its sequences have the names too.
    """
    if positions is None:
        return [name for name, frames in _sequences(folder / ANNOTATIONS).items() if len(frames) >= LEAST_FRAMES]
    named = folder / (SEQUENCES if (folder / SEQUENCES).is_file() else ANNOTATIONS)
    names = dict.fromkeys(str(entry["sequence_name"]) for entry in _entries(named))
    return [name for name in names if name in positions]


def _entries(path: Path) -> list[dict[str, Any]]:
    """The entries of an annotation file, each of which names its sequence."""
    try:
        entries = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise BenchmarkError(f"{path}: cannot be read ({error})") from None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "sequence_name" in e for e in entries):
        raise BenchmarkError(f"{path}: expected a list of entries with 'sequence_name'")
    return entries


@lru_cache(maxsize=2)
def _sequences(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Frame annotations by sequence, in order of frame number."""
    sequences: dict[str, list[dict[str, Any]]] = {}
    for frame in _entries(path):
        sequences.setdefault(str(frame["sequence_name"]), []).append(frame)
    try:
        return {name: sorted(own, key=lambda f: int(f["frame_number"])) for name, own in sequences.items()}
    except (ValueError, KeyError, TypeError):
        raise BenchmarkError(f"{path}: expected a 'frame_number' of each frame") from None


def _pairs(root: Path, category: str, sequence: str, positions: Mapping[str, Any] | None) -> Sequence[ListedPair]:
    frames = _sequences(root / category / ANNOTATIONS).get(sequence, [])
    chosen = drawn_positions(sequence, len(frames)) if positions is None else positions[sequence]
    if not isinstance(chosen, list) or len(chosen) != VIEWS:
        raise BenchmarkError(f"{sequence}: expected {VIEWS} positions of images in the sequence")
    if not all(isinstance(k, int) and 0 <= k < len(frames) for k in chosen):
        raise BenchmarkError(f"{sequence}: positions beyond the {len(frames)} images of the sequence")
    views = [_view(root, frames[k]) for k in chosen]
    return all_pairs([image for image, _ in views], [pose for _, pose in views])


def drawn_positions(sequence: str, frames: int) -> list[int]:
    """Ten positions in a sequence, without repetition, the same at every call."""
    rng = np.random.default_rng(zlib.crc32(sequence.encode()))
    return sorted(int(k) for k in rng.choice(frames, VIEWS, replace=False))


def _view(root: Path, frame: Mapping[str, Any]) -> tuple[ListedImage, FloatArray]:
    """The image, cropped about its principal point, and its pose."""
    place = f"{frame.get('sequence_name')}, frame {frame.get('frame_number')}"
    try:
        name, (height, width) = str(frame["image"]["path"]), frame["image"]["size"]
        viewpoint = frame["viewpoint"]
        K = _intrinsics(viewpoint, int(width), int(height))
        # x_cam = x_world R + T in PyTorch3D: its R is the transpose of ours.
        rotation = _OPENCV_FROM_PYTORCH3D @ np.array(viewpoint["R"], dtype=np.float64).T
        translation = _OPENCV_FROM_PYTORCH3D @ np.array(viewpoint["T"], dtype=np.float64)
        left, top, right, bottom = _crop(K, int(width), int(height))
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(f"{place}: expected image and viewpoint as in CO3Dv2 ({error})") from None
    pose = rigid_inverse(rigid_matrix(np.column_stack([rotation, translation]), place))
    cropped = K - np.array([[0.0, 0.0, left], [0.0, 0.0, top], [0.0, 0.0, 0.0]])
    read = partial(_read_cropped, path_inside(root, name, place), (left, top, right, bottom))
    return ListedImage(name=name, read=read, intrinsics=cropped), pose


def _intrinsics(viewpoint: Mapping[str, Any], width: int, height: int) -> FloatArray:
    """OpenCV's intrinsics (3, 3) of a PyTorch3D camera in normalized device coordinates.

    `ndc_isotropic` divides by half of the shorter side, `ndc_norm_image_bounds` by half of each side.
    """
    half = np.array([width, height]) / 2.0
    kind = viewpoint.get("intrinsics_format", "ndc_norm_image_bounds")
    if kind not in ("ndc_norm_image_bounds", "ndc_isotropic"):
        raise ValueError(f"intrinsics_format {kind!r}")
    unit = half if kind == "ndc_norm_image_bounds" else np.full(2, half.min())
    focal = np.array(viewpoint["focal_length"], dtype=np.float64) * unit
    center = half - np.array(viewpoint["principal_point"], dtype=np.float64) * unit - 0.5
    return np.array([[focal[0], 0.0, center[0]], [0.0, focal[1], center[1]], [0.0, 0.0, 1.0]])


def _crop(K: FloatArray, width: int, height: int) -> tuple[int, int, int, int]:
    """The largest window (left, top, right, bottom) whose middle is the principal point."""
    x, y = float(K[0, 2]) + 0.5, float(K[1, 2]) + 0.5
    half_x, half_y = min(x, width - x), min(y, height - y)
    if not min(half_x, half_y) >= 8:
        raise ValueError("the principal point is at the border of the image")
    return round(x - half_x), round(y - half_y), round(x + half_x), round(y + half_y)


def _read_cropped(path: Path, window: tuple[int, int, int, int]) -> Image:
    left, top, right, bottom = window
    return np.ascontiguousarray(read_image(path)[top:bottom, left:right])

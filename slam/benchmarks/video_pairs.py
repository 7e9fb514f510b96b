"""RealEstate10K and ACID: two views as in NoPoSplat, ten views as in PoseDiffusion, VGGT and Pi3.

Two views: the pairs of NoPoSplat's evaluation index (Ye et al., 2024) with an overlap of 5 to 80 %. Ten views: all 45
pairs of ten images of each sequence, whose positions in the sequence Pi3's map fixes (Wang et al., 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from slam.benchmarks.benchmark_error import BenchmarkError
from slam.benchmarks.pair_data import ListedPair, PairListing, all_pairs, rigid_inverse
from slam.benchmarks.torch_chunks import INDEX, ChunkScene, chunk_folder, read_index, read_scene

OVERLAPS = (0.05, 0.8)  # Range of the overlaps that are scored.
TWO_VIEW_INDEX = {"re10k": "evaluation_index_re10k.json", "acid": "evaluation_index_acid.json"}
TEN_VIEW_MAP = "Re10K_relpose_seq-id-map_seed42.json"
VIEWS = 10


def two_views(suite: str, root: Path, pairs: Path | None) -> PairListing:
    """One pair of each scene of the evaluation index of `suite`, re10k or acid."""
    index = read_index(pairs or root / TWO_VIEW_INDEX[suite])
    folder = chunk_folder(root)
    chunks = read_index(folder / INDEX)
    items: dict[str, Callable[[], Sequence[ListedPair]]] = {}
    faults = []
    for key in _in_order_of_chunks(index, chunks):
        entry = index[key]
        if entry is None:
            continue
        try:
            first, second = map(int, entry["context"])
            overlap = float(entry["overlap"])
        except (TypeError, KeyError, ValueError, OverflowError):
            faults.append(f"{key}: expected null, or 'context' with two images and 'overlap'")
            continue
        if OVERLAPS[0] <= overlap <= OVERLAPS[1]:
            items[key] = partial(_context_pair, folder, chunks, key, (first, second), overlap)
    return PairListing(items, tuple(faults))


def ten_views(root: Path, pairs: Path | None) -> PairListing:
    """All 45 pairs of ten images of each sequence of RealEstate10K in Pi3's map."""
    positions = read_index(pairs or root / TEN_VIEW_MAP)
    folder = chunk_folder(root)
    chunks = read_index(folder / INDEX)
    items = {
        key: partial(_ten_view_pairs, folder, chunks, key, positions[key])
        for key in _in_order_of_chunks(positions, chunks)
    }
    return PairListing(items)


def _in_order_of_chunks(listed: dict[str, Any], chunks: dict[str, Any]) -> list[str]:
    return sorted(listed, key=lambda key: (str(chunks.get(key, "")), key))


def _context_pair(
    folder: Path, chunks: dict[str, Any], key: str, images: tuple[int, int], overlap: float
) -> Sequence[ListedPair]:
    scene = read_scene(folder, chunks, key)
    first, second = (scene.image(k) for k in images)
    truth = rigid_inverse(scene.world_from_cam(images[0])) @ scene.world_from_cam(images[1])
    return [ListedPair(first=first, second=second, first_from_second=truth, overlap=overlap)]


def _ten_view_pairs(folder: Path, chunks: dict[str, Any], key: str, positions: Any) -> Sequence[ListedPair]:
    is_list = isinstance(positions, list) and all(isinstance(k, int) for k in positions)
    if not is_list or len(positions) != VIEWS:
        raise BenchmarkError(f"{key}: expected {VIEWS} positions of images in the sequence")
    scene: ChunkScene = read_scene(folder, chunks, key)
    images = [scene.image(k) for k in positions]
    return all_pairs(images, [scene.world_from_cam(k) for k in positions])

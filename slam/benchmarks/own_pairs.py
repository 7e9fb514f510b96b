"""A list of one's own image pairs, in any of the text formats of `pair_lists`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from relocalizer.geometry import FloatArray
from slam.benchmarks.benchmark_error import BenchmarkError
from slam.benchmarks.pair_data import Entry, ListedPair, PairListing, attempt, image_file, listing_of
from slam.benchmarks.pair_lists import PairLine, read_pair_list
from slam.input.rectification import UnsizedCalibration, read_calibration

LIST, CAMERA = "pairs.txt", "camera.yaml"


def own_pairs(root: Path, pairs: Path | None) -> PairListing:
    """The pairs of a list, whose names are relative to the folder.

    Intrinsics are those of the list, else of a camera.yaml in the folder, which must have no distortion.

    Args:
        pairs: the list; None is `pairs.txt` in the folder.

    Raises:
        BenchmarkError, SequenceError: there is no list.
    """
    path = pairs or root / LIST
    K = _shared_intrinsics(root / CAMERA)
    return listing_of(_entry(root, path, line, K) for line in read_pair_list(path))


def _entry(root: Path, path: Path, line: PairLine | BenchmarkError, K: FloatArray | None) -> Entry:
    return line if isinstance(line, BenchmarkError) else attempt(partial(_pair, root, path, line, K))


def _pair(root: Path, path: Path, line: PairLine, K: FloatArray | None) -> tuple[str, ListedPair]:
    first, second = (
        image_file(root, name, line.place, K if own is None else own)
        for name, own in zip(line.names, line.intrinsics, strict=True)
    )
    return path.stem, ListedPair(first=first, second=second, first_from_second=line.first_from_second)


def _shared_intrinsics(path: Path) -> FloatArray | None:
    if not path.is_file():
        return None
    calibration = read_calibration(path)
    if isinstance(calibration, UnsizedCalibration):
        raise BenchmarkError(f"{path}: expected a camera with the size of its images")
    if any(calibration.camera.distortion):
        raise BenchmarkError(f"{path}: a camera with distortion; pairs are taken as they are, so undistort the images")
    return calibration.camera.matrix

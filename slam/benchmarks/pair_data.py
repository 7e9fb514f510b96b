"""Image pairs with the true relative pose, as all pair benchmarks give them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from relocalizer.camera import Camera
from relocalizer.errors import UserError
from relocalizer.geometry import FloatArray, nearest_rotation
from relocalizer.images import Image, read_image
from relocalizer.interfaces import CalibratedImage
from slam.benchmarks.benchmark_error import BenchmarkError
from slam.input.text_rows import path_inside

ITEM_PAIRS = 50  # Largest number of pairs of one item, whose images are encoded together.
_ROTATION_TOLERANCE = 1e-2  # Deviation from a rotation that rounding in published lists explains.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ListedImage:
    """An image of a list.

    Attributes:
        name: unique within its item.
        read: returns the image, RGB (H, W, 3).
        intrinsics: (3, 3) of the image as it is read; None if unknown.
    """

    name: str
    read: Callable[[], Image]
    intrinsics: FloatArray | None = None

    def load(self) -> CalibratedImage:
        """The image and its camera. Raises UserError if it cannot be read or its camera is not valid."""
        image = self.read()
        if self.intrinsics is None:
            return CalibratedImage(image)
        K = self.intrinsics
        height, width = image.shape[:2]
        return CalibratedImage(
            image, Camera(width=width, height=height, fx=K[0, 0], fy=K[1, 1], cx=K[0, 2], cy=K[1, 2])
        )


def camera_of_matrix(K: FloatArray, width: int, height: int) -> Camera:
    """The pinhole camera with intrinsics K (3, 3)."""
    return Camera(width=width, height=height, fx=K[0, 0], fy=K[1, 1], cx=K[0, 2], cy=K[1, 2])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ListedPair:
    """Two images and the true pose (4, 4) of the second camera in the first one.

    Attributes:
        overlap: of the two images, as the list gives it; None if it does not.
    """

    first: ListedImage
    second: ListedImage
    first_from_second: FloatArray
    overlap: float | None = None

    @property
    def name(self) -> str:
        return f"{self.first.name} {self.second.name}"


Entry = tuple[str, ListedPair] | UserError  # A pair with its group, or what is wrong with its line.


@dataclass(frozen=True, slots=True, eq=False)
class PairListing:
    """The pairs of each item, made when they are needed, and one sentence for each entry that is not usable."""

    items: Mapping[str, Callable[[], Sequence[ListedPair]]]
    faults: tuple[str, ...] = ()


def listing_of(entries: Iterable[Entry]) -> PairListing:
    """Items of at most `ITEM_PAIRS` pairs: a group each, or numbered parts of it."""
    groups: dict[str, list[ListedPair]] = {}
    faults: list[str] = []
    for entry in entries:
        if isinstance(entry, UserError):
            faults.append(str(entry))
        else:
            groups.setdefault(entry[0], []).append(entry[1])
    items: dict[str, Callable[[], Sequence[ListedPair]]] = {}
    for name, pairs in groups.items():
        parts = [pairs[start : start + ITEM_PAIRS] for start in range(0, len(pairs), ITEM_PAIRS)]
        for number, part in enumerate(parts):
            items[name if len(parts) == 1 else f"{name}-{number:03d}"] = partial(_listed, part)
    return PairListing(items, tuple(dict.fromkeys(faults)))


def attempt_list(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries of one of several lists; what is wrong with the whole list is an entry too."""
    try:
        yield from entries
    except UserError as error:
        yield error


def attempt(make: Callable[[], tuple[str, ListedPair]]) -> Entry:
    """The entry that a function makes, or the UserError that it raises."""
    try:
        return make()
    except UserError as error:
        return error


def _listed(pairs: Sequence[ListedPair]) -> Sequence[ListedPair]:
    return pairs


def image_file(root: Path, name: str, place: str, intrinsics: FloatArray | None = None) -> ListedImage:
    """An image file below `root`. Raises SequenceError if the name leads out of it."""
    path = path_inside(root, name, place)
    return ListedImage(name=name, read=partial(read_image, path), intrinsics=intrinsics)


def resized_image_file(path: Path, name: str, size: tuple[int, int], intrinsics: FloatArray) -> ListedImage:
    """An image file that is resized to (width, height) bilinearly when it is read; `intrinsics` are of that size."""
    return ListedImage(name=name, read=partial(_read_resized, path, size), intrinsics=intrinsics)


def _read_resized(path: Path, size: tuple[int, int]) -> Image:
    image = read_image(path)
    if image.shape[1::-1] == size:
        return image
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def scaled_intrinsics(intrinsics: FloatArray, size: tuple[int, int], target: tuple[int, int]) -> FloatArray:
    """Intrinsics (3, 3) of an image of `size` (width, height) after it is resized to `target`."""
    sx, sy = target[0] / size[0], target[1] / size[1]
    scaled = np.array(intrinsics, dtype=np.float64)
    scaled[0, 0], scaled[1, 1] = scaled[0, 0] * sx, scaled[1, 1] * sy
    scaled[0, 2], scaled[1, 2] = (scaled[0, 2] + 0.5) * sx - 0.5, (scaled[1, 2] + 0.5) * sy - 0.5
    return scaled


def rigid_matrix(values: FloatArray, place: str) -> FloatArray:
    """A rigid transform (4, 4) of its 12 or 16 numbers, or of an array (3, 4) or (4, 4).

    Raises:
        BenchmarkError: a number is not finite, or the rotation is none.
    """
    rows = np.asarray(values, dtype=np.float64).reshape(-1)
    if rows.size not in (12, 16):
        raise BenchmarkError(f"{place}: expected a pose of 12 or 16 numbers, got {rows.size}")
    if not np.isfinite(rows).all():
        raise BenchmarkError(f"{place}: a pose with NaN or infinity in it")
    matrix = np.vstack([rows[:12].reshape(3, 4), [0.0, 0.0, 0.0, 1.0]])
    rotation = nearest_rotation(matrix[:3, :3])
    if np.abs(rotation - matrix[:3, :3]).max() > _ROTATION_TOLERANCE:
        raise BenchmarkError(f"{place}: the pose has no rotation in it; expected an orthonormal matrix")
    matrix[:3, :3] = rotation
    return matrix


def rigid_inverse(a_from_b: FloatArray) -> FloatArray:
    """b_from_a of a rigid matrix (4, 4)."""
    inverse = np.eye(4)
    inverse[:3, :3] = a_from_b[:3, :3].T
    inverse[:3, 3] = -a_from_b[:3, :3].T @ a_from_b[:3, 3]
    return inverse


def all_pairs(images: Sequence[ListedImage], world_from_cam: Sequence[FloatArray]) -> list[ListedPair]:
    """All N (N - 1) / 2 pairs of N posed images."""
    return [
        ListedPair(
            first=images[i],
            second=images[j],
            first_from_second=rigid_inverse(world_from_cam[i]) @ world_from_cam[j],
        )
        for i in range(len(images))
        for j in range(i + 1, len(images))
    ]

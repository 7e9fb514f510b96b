"""Sizes of the images of a sequence, read from their headers before a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import SequenceError
from relocalizer.gray_levels import GrayLevels
from relocalizer.image_headers import image_size
from relocalizer.images import read_values
from relocalizer.unfetched import leads_nowhere, why_unfetched

Size = tuple[int, int]  # Width and height, pixels.
LEVEL_IMAGES = 16  # Number of images from which the range of images of more than 8 bits is determined.
_NAMED = 2  # Maximum number of examples in a message.


@dataclass(frozen=True, slots=True, eq=False)
class ImageSizes:
    """Image files and their sizes.

    Attributes:
        paths: the image files.
        sizes: upright size of each image; None where a file is missing or its header has no size.
    """

    paths: tuple[Path, ...]
    sizes: tuple[Size | None, ...]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> ImageSizes:
        return cls(tuple(paths), tuple(image_size(path) for path in paths))

    @property
    def most_common(self) -> Size | None:
        """The most common size, the first one if several are equally common; None if no size is known."""
        counts = self._counts()
        return counts.most_common(1)[0][0] if counts else None

    def first(self, size: Size | None) -> Path:
        return self.paths[self.sizes.index(size)]

    def alike(self, size: Size | None) -> list[Path]:
        """The images of a size; for None, those of unknown size."""
        return [path for path, own in zip(self.paths, self.sizes, strict=True) if own == size]

    def of_more_than_half(self, name: str) -> Size | None:
        """The size of more than half of the images of known size; None if no size is known.

        Raises:
            SequenceError: there is no such size.
        """
        counts, size = self._counts(), self.most_common
        if size is None or 2 * counts[size] > counts.total():
            return size
        kinds = [
            f"{count} images are {in_words(kind)} (first: {self.first(kind).name})" for kind, count in counts.items()
        ]
        raise SequenceError(
            f"{name}: {', '.join(kinds[:_NAMED])}{', ...' * (len(kinds) > _NAMED)}; a sequence needs images of one "
            "size, so leave those of one size in the folder, or choose them with --start and --max-frames"
        )

    def others(self, size: Size | None) -> dict[Path, Size]:
        """The images with another, known size."""
        known = zip(self.paths, self.sizes, strict=True)
        return {path: own for path, own in known if own is not None and own != size}

    def notes(self, size: Size | None) -> list[str]:
        """Remarks about images of another size than `size`, and about files that are only pointers to images."""
        notes, others = [], self.others(size)
        if size is not None and others:
            named = ", ".join([f"{path.name}: {in_words(own)}" for path, own in others.items()][:_NAMED])
            more = ", ..." * (len(others) > _NAMED)
            notes.append(f"{len(others)} of another size than {in_words(size)}, left out ({named}{more})")
        pointers = [path for path in self.alike(None) if not leads_nowhere(path)]
        for reason, count in Counter(filter(None, map(why_unfetched, pointers))).items():
            notes.append(f"{count} of them not fetched ({reason})")
        return notes

    def _counts(self) -> Counter[Size]:
        return Counter(size for size in self.sizes if size is not None)


def in_words(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def first_readable(paths: Sequence[Path]) -> NDArray[Any]:
    """The values of the first image that can be decoded; its header may state another size.

    Raises:
        SequenceError: there is none.
    """
    reason = ""
    for path in paths:
        try:
            return read_values(path)
        except SequenceError as error:
            reason = reason or str(error)
    raise SequenceError(f"none of {len(paths)} images can be read; the first: {reason}")


def common_levels(paths: Sequence[Path], first: NDArray[Any]) -> GrayLevels | None:
    """The range of images of more than 8 bits, from some of them, evenly spread; None for images of 8 bits.

    `first` is the first of the images.
    """
    if first.dtype == np.uint8:
        return None
    values = []
    for path in paths[:: max(1, len(paths) // LEVEL_IMAGES)]:
        with suppress(SequenceError):  # who reads them reports it
            values.append(read_values(path))
    return GrayLevels.of(values)

"""Sizes of the images of a sequence, read from their headers before a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import SequenceError
from relocalizer.gray_levels import GrayLevels
from relocalizer.image_headers import TURNED, image_size, orientation
from relocalizer.images import read_values
from relocalizer.unfetched import leads_nowhere, why_unfetched

Size = tuple[int, int]  # Width and height, pixels.
LEVEL_IMAGES = 16  # Number of images from which the range of images of more than 8 bits is determined.
_NAMED = 2  # Maximum number of examples in a message.
# Number of quarter turns clockwise that make an image with an orientation tag upright (TIFF 6.0, tag 274).
_CLOCKWISE_TURNS = {1: 0, 6: 1, 3: 2, 8: 3}


@dataclass(frozen=True, slots=True, eq=False)
class ImageSizes:
    """Image files and their sizes.

    Attributes:
        paths: the image files.
        sizes: size of each image as it is read; None where a file is missing or its header has no size.
        quarter_turns: images that are turned once more after they are read upright, and by how many quarter turns
            counterclockwise, as in `numpy.rot90`.
    """

    paths: tuple[Path, ...]
    sizes: tuple[Size | None, ...]
    quarter_turns: Mapping[Path, int] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Sequence[Path]) -> ImageSizes:
        return cls(tuple(paths), tuple(image_size(path) for path in paths))

    def turned_alike(self) -> ImageSizes:
        """The sizes when portrait and landscape images of one camera are all turned in the way in which most are.

        Their upright sizes are each other's transpose, and their orientation tags say how the camera was held, so they
        have the same size, and the same intrinsics, as the sensor recorded them. Images without a tag stay as they are.
        """
        size = self.most_common
        others = [] if size is None else self.alike((size[1], size[0]))
        if size is None or not others or size[0] == size[1]:
            return self
        usual, _ = Counter(orientation(path) for path in self.alike(size)).most_common(1)[0]
        if usual is None:
            return self
        tags = {path: orientation(path) for path in others}
        turns = {
            path: (_CLOCKWISE_TURNS[tag] - _CLOCKWISE_TURNS[usual]) % 4
            for path, tag in tags.items()
            if tag is not None and (tag in TURNED) != (usual in TURNED)
        }
        sizes = tuple(size if path in turns else own for path, own in zip(self.paths, self.sizes, strict=True))
        return replace(self, sizes=sizes, quarter_turns=turns)

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
        """Remarks about images of another size than `size`, turned ones, and files that are only pointers to images."""
        notes, others = [], self.others(size)
        if size is not None and others:
            named = ", ".join([f"{path.name}: {in_words(own)}" for path, own in others.items()][:_NAMED])
            more = ", ..." * (len(others) > _NAMED)
            notes.append(f"{len(others)} of another size than {in_words(size)}, left out ({named}{more})")
        if size is not None and self.quarter_turns:
            first, more = next(iter(self.quarter_turns)), ", ..." * (len(self.quarter_turns) > 1)
            notes.append(
                f"{len(self.quarter_turns)} of {in_words((size[1], size[0]))} turned to {in_words(size)}, the way the "
                f"camera was held for the others ({first.name}{more})"
            )
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

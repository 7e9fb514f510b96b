"""Training data: views with poses, and sets of pairs of them, opened lazily and mixed by weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.errors import TrainingError
from relocalizer.geometry import FloatArray
from relocalizer.images import Image

Ids = NDArray[np.int64]

ORDER_SEED = 777  # added to the epoch, as in the published code
_TERM = re.compile(r"(?:(\d[\d_]*)\s*([@*])\s*)?([A-Za-z][\w.-]*)")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class View:
    """An image with a pose.

    Attributes:
        name: the file, for messages.
        identity: the same for the same image; two sets that share one overlap.
        read: returns the image, RGB (H, W, 3).
        camera: its pinhole camera.
        world_from_cam: (4, 4) float64; the world is shared by the views of a pair.
    """

    name: str
    identity: str
    read: Callable[[], Image]
    camera: Camera
    world_from_cam: FloatArray


class Pair(NamedTuple):
    """Two views; `has_direction` is False where the baseline is too short to tell its direction."""

    first: View
    second: View
    has_direction: bool

    @property
    def name(self) -> str:
        return f"{self.first.name} and {self.second.name}"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PairSet:
    """P pairs of a set of views.

    Attributes:
        pairs: (P, 2) view numbers.
        view: returns a view by its number; may raise a `UserError` for a broken one, which is then left out.
        identity: returns the identity of a view without reading it.
        has_direction: (P,) bool.
    """

    name: str
    pairs: Ids
    view: Callable[[int], View]
    identity: Callable[[int], str]
    has_direction: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if len(self.pairs) == 0:
            raise TrainingError(f"{self.name}: no pairs of images to train on")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        i, j = (int(k) for k in self.pairs[index])
        return Pair(self.view(i), self.view(j), bool(self.has_direction[index]))

    def identities(self) -> Iterator[tuple[str, int]]:
        """Identity and number of each view among the pairs."""
        return ((self.identity(k), k) for k in np.unique(self.pairs).tolist())


@dataclass(frozen=True, slots=True)
class Share:
    """A set's part of a mixture: exactly `count` pairs in each epoch, or all of them `times` over."""

    name: str
    count: int | None = None
    times: int = 1


def parse_mixture(text: str, names: Sequence[str]) -> list[Share]:
    """A mixture as "50_000 @ co3d + 2 * scannetpp + arkitscenes"; an empty text is all sets once.

    Raises:
        TrainingError: not of that form, or a name that is not among `names`.
    """
    if not text.strip():
        return [Share(name) for name in names]
    shares = []
    for term in text.split("+"):
        found = _TERM.fullmatch(term.strip())
        if found is None:
            raise TrainingError(f"mix: {term.strip()!r}: expected NAME, N @ NAME or N * NAME, joined by +")
        number, sign, name = found.groups()
        if name not in names:
            raise TrainingError(f"mix: {name!r} is not among the data ({', '.join(names)})")
        if number is not None and int(number) < 1:
            raise TrainingError(f"mix: {term.strip()!r}: the number must be at least 1")
        count = int(number) if sign == "@" else None
        shares.append(Share(name, count, int(number) if sign == "*" else 1))
    return shares


class Mixture:
    """Sets of pairs, of each of which an epoch takes its share."""

    def __init__(self, sets: Mapping[str, PairSet], shares: Sequence[Share]) -> None:
        self._parts = [(sets[share.name], share) for share in shares]

    def __len__(self) -> int:
        """Pairs in an epoch."""
        return sum(share.count or share.times * len(part) for part, share in self._parts)

    @property
    def sets(self) -> list[PairSet]:
        return [part for part, _ in self._parts]

    def epoch_items(self, epoch: int) -> Ids:
        """(n, 2) part and pair of every item of an epoch: of N @ D the first N of a permutation, repeated if short."""
        items = [np.zeros((0, 2), np.int64)]
        for number, (part, share) in enumerate(self._parts):
            chosen = np.tile(np.arange(len(part)), share.times)
            if share.count is not None:
                order = np.random.default_rng(epoch + ORDER_SEED).permutation(len(part))
                chosen = np.resize(order, share.count)
            items.append(np.stack([np.full(len(chosen), number), chosen], axis=1))
        return np.concatenate(items)

    def pair(self, item: Sequence[int]) -> Pair:
        return self._parts[int(item[0])][0][int(item[1])]


class Batch(NamedTuple):
    """Items of one optimizer step, (B, 2) as of `Mixture.epoch_items`, and the number of their resolution."""

    items: Ids
    resolution: int


def epoch_batches(mixture: Mixture, epoch: int, batch: int, resolutions: int) -> list[Batch]:
    """All batches of an epoch, the same in every process: shuffled, the last incomplete one dropped.

    One resolution is drawn for each batch. A process takes its part of every batch, so that any number of processes
    takes the same steps.

    Raises:
        TrainingError: there are fewer pairs than a batch holds.
    """
    items = mixture.epoch_items(epoch)
    if len(items) < batch:
        raise TrainingError(
            f"an epoch has {len(items)} pairs, fewer than a batch of {batch}; make the batch smaller or draw more pairs"
        )
    rng = np.random.default_rng(epoch + ORDER_SEED)
    order = rng.permutation(len(items))[: len(items) // batch * batch].reshape(-1, batch)
    chosen = rng.integers(0, resolutions, len(order))
    return [Batch(items[rows], int(size)) for rows, size in zip(order, chosen, strict=True)]


def expect_apart(training: Sequence[PairSet], held_out: Sequence[PairSet]) -> None:
    """Refuse an image that is both trained on and evaluated on.

    Raises:
        TrainingError: names the image and the two sets.
    """
    known = {identity: part for part in held_out for identity, _ in part.identities()}
    for part in training:
        for identity, number in part.identities():
            if identity in known:
                raise TrainingError(
                    f"{part.view(number).name}: an image of {part.name}, to train on, and of {known[identity].name}, "
                    "held out; leave one of them out, or split by sequence"
                )

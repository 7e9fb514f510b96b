"""Reading of pairs: preprocessing, color jitter, and reading ahead in threads. The same pairs at any number of threads.

All randomness is derived from the seed, the epoch and the position in it, or, with a cache, from the image and its
variant, so nothing has to be stored to continue where a training was interrupted.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import CameraError, SequenceError, TrainingError, UserError
from relocalizer.geometry import FloatArray
from relocalizer.predictors.preprocessing import NEARLY_SQUARE, fitted_size, network_input, prepare_calibrated
from relocalizer.training.color_jitter import ColorJitter
from relocalizer.training.pair_data import Mixture, Pair, View

PLAIN = -1  # variant of an image without jitter
UNCACHED = -2  # variant of an image that is jittered anew each time
MOST_BROKEN = 32  # broken pairs in a row after which the data are refused
ROTATION_TOLERANCE = 1e-3  # largest deviation of a pose's rotation from orthonormality
ROUNDING = 1e-12  # baseline that is none, as a share of the distance from the origin
BATCHES_AHEAD = 3

_log = logging.getLogger(__name__)


class Request(NamedTuple):
    """A pair to be read: its item, the target size (width, height), and its place in the training."""

    item: tuple[int, int]
    size: tuple[int, int]
    epoch: int
    position: int


@dataclass(frozen=True, slots=True, eq=False)
class LoadedView:
    """A view at the network's size.

    Attributes:
        key: names the image, its size and its jitter; empty if it is never the same again.
        grid_size: (width, height), pixels.
        pixels: (3, H, W) float32 in [-1, 1]; None if what is computed from them is cached under `key`.
    """

    key: str
    grid_size: tuple[int, int]
    pixels: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, eq=False)
class LoadedPair:
    """A pair ready for the network, and its poses (4, 4)."""

    name: str
    first: LoadedView
    second: LoadedView
    world_from_1: FloatArray
    world_from_2: FloatArray
    has_direction: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingRule:
    """How views are read.

    Attributes:
        jitter: changes of color, None for none.
        variants: number of fixed jitters of a view, so that what is computed from it can be cached; 0: new each time.
        seed: of jitters.
    """

    jitter: ColorJitter | None = None
    variants: int = 0
    seed: int = 0


class PairLoader:
    """Reads pairs of a mixture. A broken pair is named once, and the next one of its set takes its place."""

    def __init__(
        self,
        mixture: Mixture,
        rule: LoadingRule,
        needs_pixels: Callable[[str, str], tuple[bool, bool]] = lambda first, second: (True, True),
    ) -> None:
        """`needs_pixels(first, second)`: whether each of two views with these keys must be read."""
        self._mixture, self._rule, self._needs_pixels = mixture, rule, needs_pixels
        self.broken: dict[tuple[int, int], str] = {}

    def load(self, request: Request) -> LoadedPair:
        """The pair, or the next one of the same set that is not broken.

        Raises:
            TrainingError: too many pairs in a row are broken.
        """
        part, first = request.item
        count = len(self._mixture.sets[part])
        for step in range(min(MOST_BROKEN, count)):
            item = (part, (first + step) % count)
            found = self.load_or_none(request._replace(item=item))
            if found is not None:
                return found
        raise TrainingError(
            f"{self._mixture.sets[part].name}: {min(MOST_BROKEN, count)} pairs in a row cannot be used, "
            f"the first: {self.broken[request.item]}"
        )

    def load_or_none(self, request: Request) -> LoadedPair | None:
        """The pair; None if it is broken."""
        if request.item in self.broken:
            return None
        try:
            return self._loaded(self._mixture.pair(request.item), request)
        except UserError as error:
            self.broken[request.item] = str(error)
            _log.warning("a pair is left out: %s", error)
            return None

    def _loaded(self, pair: Pair, request: Request) -> LoadedPair:
        for view in (pair.first, pair.second):
            expect_pose(view)
        ways = [self._way(view, request, side) for side, view in enumerate((pair.first, pair.second))]
        needed = self._needs_pixels(ways[0][0], ways[1][0])
        views = [
            LoadedView(key, fitted_size(view.camera, size), self._pixels(view, size, rng) if is_needed else None)
            for view, (key, size, rng), is_needed in zip((pair.first, pair.second), ways, needed, strict=True)
        ]
        one, two = pair.first.world_from_cam, pair.second.world_from_cam
        baseline = float(np.linalg.norm(one[:3, 3] - two[:3, 3]))
        moved = baseline > ROUNDING * float(np.linalg.norm(one[:3, 3]))
        return LoadedPair(pair.name, views[0], views[1], one, two, pair.has_direction and moved)

    def _way(self, view: View, request: Request, side: int) -> tuple[str, tuple[int, int], np.random.Generator | None]:
        """(key, target size, generator of the jitter) of a view."""
        draw = np.random.default_rng([self._rule.seed, request.epoch, request.position, side])
        size = request.size
        ratio = view.camera.height / view.camera.width
        if size[0] != size[1] and 1 / NEARLY_SQUARE < ratio < NEARLY_SQUARE and draw.integers(2):
            size = size[::-1]  # a nearly square image becomes portrait or landscape by chance
        if self._rule.jitter is None:
            return f"{view.identity} {size} {PLAIN}", size, None
        if not self._rule.variants:
            return "", size, draw
        variant = int(draw.integers(self._rule.variants))
        digest = hashlib.sha256(f"{self._rule.seed} {view.identity} {variant}".encode()).digest()
        return f"{view.identity} {size} {variant}", size, np.random.default_rng(list(digest))

    def _pixels(self, view: View, size: tuple[int, int], rng: np.random.Generator | None) -> NDArray[np.float32]:
        try:
            prepared = prepare_calibrated(view.read(), view.camera, size).pixels
        except (SequenceError, CameraError) as error:
            raise TrainingError(f"{view.name}: {error}") from None
        if rng is not None and self._rule.jitter is not None:
            prepared = self._rule.jitter(prepared, rng)
        return network_input(prepared)


def expect_pose(view: View) -> None:
    """Refuse a pose that is not finite or not rigid. Raises TrainingError."""
    pose = view.world_from_cam
    if pose.shape != (4, 4):
        raise TrainingError(f"{view.name}: a pose of shape {pose.shape}; expected (4, 4)")
    if not np.isfinite(pose).all():
        raise TrainingError(f"{view.name}: a pose with NaN or infinity")
    rotation = pose[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        raise TrainingError(f"{view.name}: a pose that is no rotation and translation")


class ReadAhead:
    """Batches of requests, read by threads while the network computes; measures the time spent waiting."""

    def __init__(self, loader: PairLoader, workers: int) -> None:
        self._loader, self._workers = loader, workers
        self.waited_s = 0.0

    def __call__(self, batches: Iterable[Sequence[Request]]) -> Iterator[list[LoadedPair]]:
        pending: deque[list[Future[LoadedPair]]] = deque()
        with ThreadPoolExecutor(self._workers) as threads:
            try:
                for requests in batches:
                    pending.append([threads.submit(self._loader.load, request) for request in requests])
                    if len(pending) > BATCHES_AHEAD:
                        yield self._wait_for(pending.popleft())
                while pending:
                    yield self._wait_for(pending.popleft())
            finally:
                threads.shutdown(wait=True, cancel_futures=True)

    def _wait_for(self, futures: Sequence[Future[LoadedPair]]) -> list[LoadedPair]:
        started = time.perf_counter()
        pairs = [future.result() for future in futures]
        self.waited_s += time.perf_counter() - started
        return pairs

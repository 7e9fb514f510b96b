"""Place recognition: one vector a picture (VLAD of its local features), and FAISS to find similar ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import faiss
import numpy as np
from numpy.typing import NDArray

from relocalizer.features import LocalFeatures
from relocalizer.interfaces import Candidate


class FaissRetriever:
    """Exact search by inner product: no training, removable, the same answer every time."""

    def __init__(self, dimension: int | None = None) -> None:
        """`dimension` of the descriptors; None takes it from the first one added."""
        self._index: faiss.IndexIDMap2 | None = None
        self._keys: set[int] = set()
        if dimension is not None:
            self._open(dimension)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: int) -> bool:
        return key in self._keys

    @property
    def dimension(self) -> int | None:
        """Length of the descriptors, None before the first one."""
        return None if self._index is None else int(self._index.d)

    def add(self, key: int, descriptor: NDArray[np.float32]) -> None:
        """Remember a unit vector (D,) under a key not used before.

        Raises:
            ValueError: the key is taken or negative, or the descriptor no unit vector of the right length.
        """
        if key in self._keys:
            raise ValueError(f"FaissRetriever: key {key} is there already")
        if key < 0:
            raise ValueError(f"FaissRetriever: keys are 0 or more, got {key}")
        index = self._index if self._index is not None else self._open(np.asarray(descriptor).size)
        row = self._row(descriptor)
        index.add_with_ids(row, np.array([key], dtype=np.int64))
        self._keys.add(key)

    def remove(self, key: int) -> None:
        """Forget a key.

        Raises:
            KeyError: the key is not there.
        """
        if key not in self._keys or self._index is None:
            raise KeyError(f"FaissRetriever: key {key} is not there")
        self._index.remove_ids(faiss.IDSelectorBatch(np.array([key], dtype=np.int64)))
        self._keys.discard(key)

    def query(self, descriptor: NDArray[np.float32], k: int, exclude: frozenset[int] = frozenset()) -> list[Candidate]:
        """At most k candidates, most similar first (ties: smaller key first), none of them in `exclude`.

        Raises:
            ValueError: the descriptor is not a unit vector of the right length.
        """
        if self._index is None:
            return []
        row = self._row(descriptor)
        # Asking for the excluded ones on top gives exactly the k best of the others.
        wanted = min(k + len(exclude & self._keys), len(self._keys))
        if wanted <= 0:
            return []
        faiss.omp_set_num_threads(1)  # per thread, and more than one only waits for its barriers at this size
        similarities, keys = self._index.search(row, wanted)
        found = [
            Candidate(int(key), float(s))
            for key, s in zip(keys[0], similarities[0], strict=True)
            if int(key) not in exclude
        ]
        return sorted(found, key=lambda candidate: (-candidate.similarity, candidate.key))[:k]

    def _open(self, dimension: int) -> faiss.IndexIDMap2:
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
        return self._index

    def _row(self, descriptor: NDArray[np.float32]) -> NDArray[np.float32]:
        row = np.ascontiguousarray(descriptor, dtype=np.float32)
        assert self._index is not None
        if row.shape != (self._index.d,):
            raise ValueError(f"FaissRetriever: expected a descriptor of shape ({self._index.d},), got {row.shape}")
        length = float(np.linalg.norm(row))
        if not abs(length - 1.0) < 1e-3:
            raise ValueError(f"FaissRetriever: expected a unit vector, got length {length:.4g}")
        return row[None]


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """What local descriptors look like in general.

    Attributes:
        mean: (128,) of RootSIFT descriptors.
        axes: (128, D) their D strongest principal directions.
        words: (W, D) centres of their clusters along these.
    """

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    words: NDArray[np.float32]

    def __post_init__(self) -> None:
        fits = self.axes.ndim == 2 and self.words.ndim == 2 and self.mean.shape == self.axes.shape[:1]
        if not (fits and self.axes.shape[1] == self.words.shape[1] and len(self.words)):
            raise ValueError(
                f"Vocabulary: expected mean (N,), axes (N, D), words (W, D), got {self.mean.shape}, "
                f"{self.axes.shape}, {self.words.shape}"
            )

    def reduce(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Descriptors (N, 128) along the axes, (N, D)."""
        return np.asarray((descriptors - self.mean) @ self.axes, dtype=np.float32)


class Vlad:
    """A picture's vector from its local features: how they lie around the words of a vocabulary.

    Jegou et al., "Aggregating local descriptors into a compact image representation", 2010, on reduced
    descriptors, with a signed square root and per-word normalisation (Arandjelovic and Zisserman,
    "All about VLAD", 2013).
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._half_norms = 0.5 * (vocabulary.words**2).sum(axis=1)

    @property
    def dimension(self) -> int:
        return self._vocabulary.words.size

    def describe(self, features: LocalFeatures) -> NDArray[np.float32]:
        """A unit vector (dimension,) float32; the same one for all pictures without any feature."""
        if not len(features):
            return _unit(np.ones(self.dimension, dtype=np.float32))
        words = self._vocabulary.words
        reduced = self._vocabulary.reduce(features.descriptors)
        # The nearest word: |d - w|^2 is smallest where d.w - |w|^2 / 2 is largest.
        nearest = (reduced @ words.T - self._half_norms).argmax(axis=1)
        member = np.zeros((len(words), len(reduced)), dtype=np.float32)
        member[nearest, np.arange(len(reduced))] = 1.0
        sums = member @ (reduced - words[nearest])
        sums = np.sign(sums) * np.sqrt(np.abs(sums))
        sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.float32(1e-12))
        return _unit(sums.ravel())


def train_vocabulary(
    descriptors: Sequence[NDArray[np.float32]], *, words: int, dimensions: int, seed: int
) -> Vocabulary:
    """Principal directions and cluster centres of the descriptors (N, 128) of many pictures.

    Raises:
        ValueError: fewer descriptors than words.
    """
    gathered = np.concatenate(list(descriptors)).astype(np.float32)
    if len(gathered) < words:
        raise ValueError(f"train_vocabulary: {len(gathered)} descriptors for {words} words")
    mean = gathered.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov((gathered - mean).T))
    axes = np.asarray(directions[:, ::-1][:, :dimensions], dtype=np.float32)
    faiss.omp_set_num_threads(1)
    kmeans = faiss.Kmeans(dimensions, words, niter=25, seed=seed, min_points_per_centroid=1)
    kmeans.train(np.ascontiguousarray((gathered - mean) @ axes))
    return Vocabulary(mean, axes, np.array(kmeans.centroids, dtype=np.float32))


@cache
def shipped_vlad() -> Vlad:
    """The VLAD of the vocabulary that comes with the package (docs/experiments.md: what it was trained on)."""
    with (files("relocalizer") / "vocabulary.npz").open("rb") as file, np.load(file, allow_pickle=False) as data:
        return Vlad(Vocabulary(*(data[name].astype(np.float32) for name in ("mean", "axes", "words"))))


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), dtype=np.float32)

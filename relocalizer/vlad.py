"""VLAD place descriptors over a vocabulary of local descriptors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from relocalizer.features import LocalFeatures


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """Visual vocabulary: principal axes and cluster centers of local descriptors.

    Attributes:
        mean: (128,) mean of RootSIFT descriptors.
        axes: (128, D) their D strongest principal directions.
        words: (W, D) cluster centers in the coordinates of these axes.
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
        """Coordinates (N, D) of descriptors (N, 128) along the axes."""
        return np.asarray((descriptors - self.mean) @ self.axes, dtype=np.float32)


class Vlad:
    """VLAD descriptor of an image: sums of the residuals of its local features to the words of a vocabulary.

    Jegou et al., "Aggregating local descriptors into a compact image representation", 2010, on reduced
    descriptors, with a signed square root and per-word normalization (Arandjelovic and Zisserman,
    "All about VLAD", 2013).
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._half_norms = 0.5 * (vocabulary.words**2).sum(axis=1)

    @property
    def dimension(self) -> int:
        return self._vocabulary.words.size

    def describe(self, features: LocalFeatures) -> NDArray[np.float32]:
        """A unit vector (dimension,) float32; a constant vector for images without features."""
        if not len(features):
            return _unit(np.ones(self.dimension, dtype=np.float32))
        words = self._vocabulary.words
        reduced = self._vocabulary.reduce(features.descriptors)
        # The nearest word maximizes d.w - |w|^2 / 2, which minimizes |d - w|^2.
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
    """Principal directions and cluster centers of the descriptors (N, 128) of many images.

    Raises:
        ValueError: fewer descriptors than words.
    """
    gathered = np.concatenate(list(descriptors)).astype(np.float32)
    if len(gathered) < words:
        raise ValueError(f"train_vocabulary: {len(gathered)} descriptors for {words} words")
    mean = gathered.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov((gathered - mean).T))
    axes = np.asarray(directions[:, ::-1][:, :dimensions], dtype=np.float32)
    import faiss  # only a new vocabulary needs it

    faiss.omp_set_num_threads(1)
    kmeans = faiss.Kmeans(dimensions, words, niter=25, seed=seed, min_points_per_centroid=1)
    kmeans.train(np.ascontiguousarray((gathered - mean) @ axes))
    return Vocabulary(mean, axes, np.array(kmeans.centroids, dtype=np.float32))


@cache
def shipped_vlad() -> Vlad:
    """The VLAD with the vocabulary of the package (its training data: docs/experiments.md)."""
    with (files("relocalizer") / "vocabulary.npz").open("rb") as file, np.load(file, allow_pickle=False) as data:
        return Vlad(Vocabulary(*(data[name].astype(np.float32) for name in ("mean", "axes", "words"))))


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), dtype=np.float32)

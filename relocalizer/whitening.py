"""Descriptors of places with what all places have in common taken out, so that what tells them apart decides.

Jegou and Chum, "Negative evidences and co-occurences in image retrieval: the benefit of PCA and whitening", ECCV 2012:
centred, turned to their principal directions, and scaled there to equal variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from relocalizer.geometry import FloatArray, frozen_array

LEAST_SHARE = 1e-4  # directions with less than this share of the strongest one's variance are noise


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """A change of descriptors, fitted on those of a map.

    Attributes:
        mean: (D,) of the descriptors it was fitted on.
        axes: (D, K), their principal directions, each divided by the standard deviation along it.
    """

    mean: FloatArray
    axes: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", frozen_array("Whitening.mean", self.mean, (None,)))
        object.__setattr__(self, "axes", frozen_array("Whitening.axes", self.axes, (len(self.mean), None)))

    @staticmethod
    def fit(descriptors: ArrayLike, dimensions: int = 256) -> Whitening:
        """From descriptors (N, D); at most `dimensions` directions, and none that holds next to no variance.

        Raises:
            ValueError: no two of them differ.
        """
        given = np.asarray(descriptors, dtype=np.float64)
        mean = given.mean(axis=0) if len(given) else given
        _, deviation, directions = np.linalg.svd(given - mean, full_matrices=False)
        deviation /= np.sqrt(max(len(given) - 1, 1))
        if not deviation.any():
            raise ValueError(f"Whitening: {len(given)} descriptors, of which no two differ")
        kept = int((deviation[:dimensions] ** 2 > LEAST_SHARE * deviation[0] ** 2).sum())
        # A direction and its opposite are the same axis: the larger entry is made positive, so that bytes repeat.
        chosen = directions[:kept]
        signs = np.sign(chosen[np.arange(kept), np.abs(chosen).argmax(axis=1)])
        return Whitening(mean, (signs[:, None] * chosen / deviation[:kept, None]).T)

    def apply(self, descriptors: ArrayLike) -> NDArray[np.float32]:
        """Unit vectors (..., K) of descriptors (..., D). One that equals the mean tells nothing; it looks like none."""
        along = (np.asarray(descriptors, dtype=np.float64) - self.mean) @ self.axes
        length = np.linalg.norm(along, axis=-1, keepdims=True)
        nothing = np.full(self.axes.shape[1], self.axes.shape[1] ** -0.5)
        return np.where(length > 0, along / np.where(length > 0, length, 1.0), nothing).astype(np.float32)

"""Protocols of the pair predictor and of the retriever, and the values they exchange.

A pair of images has **no metric baseline**: `PairEstimate` has a rotation and a unit direction, never a
distance. Only `relocalizer.scale` estimates baseline lengths, from landmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from relocalizer.camera import Camera
from relocalizer.features import LocalFeatures
from relocalizer.geometry import FloatArray, frozen_array
from relocalizer.images import Image

# Minimum confidence of a reliable pair estimate. Above it the geometric predictor was right on all measured pairs.
CONFIDENT = 0.9


def is_confident(estimate: PairEstimate | NoEstimate) -> bool:
    """Whether the pair has an estimate and it is reliable, see `PairEstimate.is_confident`."""
    return isinstance(estimate, PairEstimate) and estimate.is_confident


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedImage:
    """An image and the pinhole camera that took it, if known.

    Attributes:
        image: RGB uint8 (H, W, 3).
        features: local features of the image, if they are already extracted; a predictor then reuses them.
        mask: (H, W); features are extracted only where it is nonzero.
    """

    image: Image
    camera: Camera | None = None
    features: LocalFeatures | None = None
    mask: NDArray[np.uint8] | None = None


class Encoded(Protocol):
    """A predictor's encoding of one image. Opaque; only the predictor that made it can read it."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PairEstimate:
    """Relative pose of camera j in camera i, without the baseline length.

    Attributes:
        i_from_j_rotation: (3, 3).
        i_from_j_direction: unit (3,), direction from camera i to camera j, in i's axes; None when it is
            unobservable (pure rotation, or a planar scene).
        confidence: in [0, 1].
        rotation_sigma_rad: standard deviation of the rotation per axis.
        direction_sigma_rad: standard deviation of the direction; pi when it is unknown.
        inliers: number of matches consistent with the estimate; 0 for a predictor without matches.
        direction_unknown: reason why the direction is None.
    """

    i_from_j_rotation: FloatArray
    i_from_j_direction: FloatArray | None
    confidence: float
    rotation_sigma_rad: float
    direction_sigma_rad: float
    inliers: int = 0
    direction_unknown: str = ""

    def __post_init__(self) -> None:
        R = frozen_array("PairEstimate.i_from_j_rotation", self.i_from_j_rotation, (3, 3))
        if not np.allclose(R @ R.T, np.eye(3), atol=1e-6) or np.linalg.det(R) < 0:
            raise ValueError("PairEstimate.i_from_j_rotation: not a rotation")
        object.__setattr__(self, "i_from_j_rotation", R)
        if self.i_from_j_direction is None:
            if not self.direction_unknown:
                raise ValueError("PairEstimate: no direction and no reason for it in direction_unknown")
        else:
            d = frozen_array("PairEstimate.i_from_j_direction", self.i_from_j_direction, (3,))
            if abs(np.linalg.norm(d) - 1.0) > 1e-6:
                raise ValueError("PairEstimate.i_from_j_direction: not a unit vector")
            object.__setattr__(self, "i_from_j_direction", d)
        if not 0.0 <= self.confidence <= 1.0:
            raise ValueError(f"PairEstimate.confidence: expected 0 to 1, got {self.confidence}")
        if not (self.rotation_sigma_rad > 0 and self.direction_sigma_rad > 0):
            raise ValueError("PairEstimate: sigmas must be positive")

    @property
    def is_confident(self) -> bool:
        """Whether the direction is known and the confidence is at least CONFIDENT."""
        return self.i_from_j_direction is not None and self.confidence >= CONFIDENT

    def reversed(self) -> PairEstimate:
        """The same estimate as j_from_i."""
        R, d = self.i_from_j_rotation, self.i_from_j_direction
        return replace(self, i_from_j_rotation=R.T, i_from_j_direction=None if d is None else -R.T @ d)


@dataclass(frozen=True, slots=True)
class NoEstimate:
    """The relative pose of a pair could not be estimated; `reason` is a sentence with the value and the threshold."""

    reason: str


class PosePredictor(Protocol):
    """Relative pose predictor for image pairs. `encode` is called once per image, `relate` once per batch of pairs."""

    name: str

    def encode(self, views: Sequence[CalibratedImage]) -> list[Encoded]:
        """The encoding of each image."""
        ...

    def relate(self, pairs: Sequence[tuple[Encoded, Encoded]]) -> list[PairEstimate | NoEstimate]:
        """For each pair (i, j): the pose of camera j in camera i."""
        ...

    def describe(self, encoded: Encoded) -> NDArray[np.float32]:
        """The place descriptor, a unit vector (D,); descriptors of similar places have a large inner product."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A retrieved key and the similarity of its descriptor to the query (inner product, 1 = identical)."""

    key: int
    similarity: float


class Retriever(Protocol):
    """Database of place descriptors, searched by similarity."""

    def add(self, key: int, descriptor: NDArray[np.float32]) -> None:
        """Add a unit vector (D,) under an unused key. It may be stored without a copy, so it must not change later."""
        ...

    def remove(self, key: int) -> None:
        """Remove an existing key."""
        ...

    def query(self, descriptor: NDArray[np.float32], k: int, exclude: frozenset[int]) -> list[Candidate]:
        """At most k candidates, most similar first, none of them in `exclude`."""
        ...

"""The seams: what a pair predictor and a retriever promise, and the values that pass through them.

A pair of images has **no length**: `PairEstimate` carries a rotation and a unit direction, never a
distance. The one place where a length is decided is `relocalizer.scale`, which turns it into an `Edge`.
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

CONFIDENT = 0.9  # of a pair estimate; above it the geometric predictor was right on all pairs measured


def is_confident(estimate: PairEstimate | NoEstimate) -> bool:
    """Whether an estimate leaves little doubt, its direction included."""
    return (
        isinstance(estimate, PairEstimate)
        and estimate.i_from_j_direction is not None
        and estimate.confidence >= CONFIDENT
    )


@dataclass(frozen=True, slots=True, eq=False)
class CalibratedImage:
    """An image, RGB uint8 (H, W, 3), and the pinhole camera that took it, if known."""

    image: Image
    camera: Camera | None = None
    features: LocalFeatures | None = None  # when somebody has them already, so that they are found once
    mask: NDArray[np.uint8] | None = None  # (H, W), features only where it is not zero


class Encoded(Protocol):
    """What a predictor remembers of an image. Opaque to everyone but the predictor that made it."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PairEstimate:
    """Pose of camera j seen from camera i, without its length.

    Attributes:
        i_from_j_rotation: (3, 3).
        i_from_j_direction: unit (3,), where camera j lies seen from camera i, in i's axes; or None when the
            pair does not tell (it only rotated, or it saw one plane), and then `direction_unknown` says why.
        confidence: in [0, 1].
        rotation_sigma_rad: standard deviation of the rotation per axis.
        direction_sigma_rad: standard deviation of the direction; pi when it is unknown.
        inliers: matches that agree with the estimate; 0 for a predictor that uses none.
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

    def reversed(self) -> PairEstimate:
        """The same evidence as j_from_i."""
        R, d = self.i_from_j_rotation, self.i_from_j_direction
        return replace(self, i_from_j_rotation=R.T, i_from_j_direction=None if d is None else -R.T @ d)


@dataclass(frozen=True, slots=True)
class NoEstimate:
    """The predictor could not relate the pair; `reason` is a sentence with the number and the threshold."""

    reason: str


class PosePredictor(Protocol):
    """Two-view geometry. `encode` once per image, `relate` as often as wanted."""

    name: str

    def encode(self, views: Sequence[CalibratedImage]) -> list[Encoded]:
        """What to remember of each image."""
        ...

    def relate(self, pairs: Sequence[tuple[Encoded, Encoded]]) -> list[PairEstimate | NoEstimate]:
        """For each (i, j): the pose of camera j seen from camera i."""
        ...

    def describe(self, encoded: Encoded) -> NDArray[np.float32]:
        """A unit vector (D,) for place recognition: similar places have a large inner product."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A remembered key and how similar its place looks (inner product, 1 = same)."""

    key: int
    similarity: float


class Retriever(Protocol):
    """Remembers descriptors by key and finds the similar ones."""

    def add(self, key: int, descriptor: NDArray[np.float32]) -> None:
        """Remember a unit vector (D,) under a key not used before; it may be kept as it is, so it must not change."""
        ...

    def remove(self, key: int) -> None:
        """Forget a key that is there."""
        ...

    def query(self, descriptor: NDArray[np.float32], k: int, exclude: frozenset[int]) -> list[Candidate]:
        """At most k candidates, most similar first, none of them in `exclude`."""
        ...

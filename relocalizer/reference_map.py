"""A map at rest: keyframes with poses, what each saw, the landmarks they share. Arrays only, so that it can be saved.

`slam run` makes one, `map from-poses` makes one from pictures whose poses are known; the relocalizer reads either.
`relocalizer.map_folder` writes it to disk and reads it back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relocalizer.features import LocalFeatures
from relocalizer.geometry import FloatArray, Similarity
from relocalizer.images import Camera, Image

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Provenance:
    """Where a map comes from: who related its pictures, and in which units it is.

    Attributes:
        predictor: name of the pair predictor, such as 'geometric' or 'reloc3r-512'.
        weights_sha256: of the network's weights; empty for a predictor without weights.
        descriptor: what the place descriptors are, such as 'vlad' or 'reloc3r-512-gem'; two maps are searched
            together only when this is equal.
        units: 'map units', or 'metres' when something anchored the scale.
        features: settings the local features were detected with.
    """

    predictor: str
    descriptor: str
    weights_sha256: str = ""
    units: str = "map units"
    features: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class KeyframeTable:
    """N keyframes in order of id.

    Attributes:
        ids, frame_indices, timestamps_ns: (N,) int64.
        camera: (N,) int64, row of each one's camera in `ReferenceMap.cameras`.
        segment: (N,) int64; keyframes of one segment share a world, segments know nothing of each other.
        rotations: (N, 3, 3) world_from_keyframe; translations: (N, 3) map units; scales: (N,) map units a keyframe unit.
        descriptors: (N, D) float32 unit rows, for place recognition.
    """

    ids: Ids
    frame_indices: Ids
    timestamps_ns: Ids
    camera: Ids
    segment: Ids
    rotations: FloatArray
    translations: FloatArray
    scales: FloatArray
    descriptors: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def world_from_keyframe(self, row: int) -> Similarity:
        return Similarity(self.rotations[row], self.translations[row], float(self.scales[row]))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FeatureTable:
    """Local features of all keyframes, one after the other; row k of the keyframes owns offsets[k]:offsets[k + 1].

    Attributes:
        offsets: (N + 1,) int64.
        pixels: (F, 2) float32. scales: (F,) float32.
        descriptors: (F, 128) uint8, RootSIFT times 256 (see `quantised`).
        landmark: (F,) int64, id of the track the feature lies on, -1 for none; a track may have no place (yet).
    """

    offsets: Ids
    pixels: NDArray[np.float32]
    scales: NDArray[np.float32]
    descriptors: NDArray[np.uint8]
    landmark: Ids

    def of(self, row: int) -> LocalFeatures:
        part = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        return LocalFeatures(self.pixels[part], restored(self.descriptors[part]), self.scales[part])

    def landmarks_of(self, row: int) -> Ids:
        """Track id (n,) of each feature of a keyframe, -1 for none."""
        return self.landmark[int(self.offsets[row]) : int(self.offsets[row + 1])]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ObservationTable:
    """Which keyframe saw which track at which pixel; row k of the keyframes owns offsets[k]:offsets[k + 1]."""

    offsets: Ids
    landmark: Ids
    pixels: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LandmarkTable:
    """M tracks with a place, in order of id.

    Attributes:
        ids: (M,). anchor: (M,) keyframe id whose units and axes the point is in.
        points_in_anchor: (M, 3). inverse_depth_sigma: (M,) of 1 / depth in the anchor.
        descriptors: (M, 128) uint8, quantised RootSIFT. colours: (M, 3) uint8 RGB.
    """

    ids: Ids
    anchor: Ids
    points_in_anchor: FloatArray
    inverse_depth_sigma: FloatArray
    descriptors: NDArray[np.uint8]
    colours: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EdgeTable:
    """E measured similarities i_from_j between keyframes, i < j, with seven sigmas each (rotation, translation, log
    scale); `is_loop` (E,) bool tells loops from odometry, `inliers` (E,) counts the observations behind each."""

    i: Ids
    j: Ids
    rotations: FloatArray
    translations: FloatArray
    scales: FloatArray
    sigmas: FloatArray
    is_loop: NDArray[np.bool_]
    inliers: Ids


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FrameTable:
    """T frames that hang off keyframes: index, time, keyframe id, and keyframe_from_frame in the keyframe's units."""

    indices: Ids
    timestamps_ns: Ids
    keyframe: Ids
    rotations: FloatArray
    translations: FloatArray


@dataclass(frozen=True, eq=False, kw_only=True)
class ReferenceMap:
    """Everything a map remembers. Poses are world_from_keyframe; `picture(row)` reads a keyframe's picture (RGB).

    A map from posed pictures has one segment, no edges and no frames.
    """

    provenance: Provenance
    cameras: tuple[Camera, ...]
    keyframes: KeyframeTable
    features: FeatureTable
    observations: ObservationTable
    landmarks: LandmarkTable
    edges: EdgeTable
    frames: FrameTable
    picture: Callable[[int], Image]

    @cached_property
    def row_of(self) -> dict[int, int]:
        """Row of each keyframe id."""
        return {int(k): row for row, k in enumerate(self.keyframes.ids)}

    def camera_of(self, row: int) -> Camera:
        return self.cameras[int(self.keyframes.camera[row])]

    @cached_property
    def points_world(self) -> FloatArray:
        """Landmarks (M, 3) in the world of their anchor's segment, map units."""
        rows = np.array([self.row_of[int(a)] for a in self.landmarks.anchor], dtype=np.int64)
        local = self.landmarks.points_in_anchor * self.keyframes.scales[rows][:, None]
        turned = np.einsum("nij,nj->ni", self.keyframes.rotations[rows].reshape(-1, 3, 3), local)
        return np.asarray(turned + self.keyframes.translations[rows].reshape(-1, 3))


def quantised(descriptors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """RootSIFT rows (N, 128) in a quarter of the space: entries are at most 1, and a 256th is far below their noise."""
    return np.minimum(np.rint(descriptors * 256.0), 255).astype(np.uint8)


def restored(descriptors: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Unit rows (N, 128) from quantised ones; quantising them again gives the same bytes unless a row is zero."""
    rows = descriptors.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

"""A map at rest: keyframes with poses, what each saw, the landmarks they share. Arrays only, so that it can be saved.

`slam run` makes one, `map from-poses` makes one from images whose poses are known; the relocalizer reads either.
`relocalizer.maps.map_format` writes it to disk and reads it back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from relocalizer.camera import Camera
from relocalizer.config import FeaturesConfig
from relocalizer.errors import MapError
from relocalizer.features import LocalFeatures
from relocalizer.geometry import FloatArray, Similarity
from relocalizer.images import Image
from relocalizer.interfaces import CalibratedImage, Encoded, PosePredictor

Ids = NDArray[np.int64]

UNITS = ("map units", "meters")
MAX_KEYFRAME_ID = 10**9  # far beyond use, and twice of it still fits into 32 bits
MAX_ID = 10**12  # of frames and segments
MAX_COORDINATE = 1e12
ROTATION_TOLERANCE = 1e-4  # products of many rotations drift a little


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Provenance:
    """Where a map comes from: who related its images, and in which units it is.

    Attributes:
        predictor: name of the pair predictor, such as 'geometric' or 'reloc3r-512'.
        weights_sha256: of the network's weights; empty for a predictor without weights.
        descriptor: what the place descriptors are, such as 'vlad' or 'reloc3r-512-gem'; two maps are searched
            together only when this is equal.
        units: 'map units', or 'meters' when something anchored the scale of a segment.
        unanchored: segments of a map in meters whose lengths are map units of their own, as nothing ties them to one
            that was anchored; rising. `ReferenceMap.units_of` says it of each segment.
        scale_source: where meters come from, in words; empty for map units, and in metric maps of before it was noted.
        features: settings the local features were detected with.
    """

    predictor: str
    descriptor: str
    weights_sha256: str = ""
    units: str = "map units"
    scale_source: str = ""
    unanchored: tuple[int, ...] = ()
    features: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class KeyframeTable:
    """N keyframes in order of id.

    Attributes:
        ids, frame_indices, timestamps_ns: (N,) int64.
        camera: (N,) int64, row of each one's camera in `ReferenceMap.cameras`.
        segment: (N,) int64; keyframes of one segment share a world, segments know nothing of each other.
        rotations: (N, 3, 3) world_from_keyframe; translations: (N, 3) map units; scales: (N,) map units a
            keyframe unit.
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
        descriptors: (F, 128) uint8, RootSIFT times 256 (see `quantized`).
        landmark: (F,) int64, id of the track the feature lies on, -1 for none; a track may have no place (yet).

    A map on disk should hold the features that lie on a track; the others find nothing and cost as much.
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
        descriptors: (M, 128) uint8, quantized RootSIFT. colors: (M, 3) uint8 RGB.
    """

    ids: Ids
    anchor: Ids
    points_in_anchor: FloatArray
    inverse_depth_sigma: FloatArray
    descriptors: NDArray[np.uint8]
    colors: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EdgeTable:
    """E measured similarities i_from_j between keyframes, i < j, with seven sigmas each (rotation, translation, log
    scale); `is_loop` (E,) bool tells loops from odometry, `inliers` (E,) counts the observations behind each.

    Attributes:
        shares: (E,) above 0 to 1, what of the evidence is an edge's own when others are made of it too.
        weights: (E,) 0 to 1, how far an edge is believed.
    """

    i: Ids
    j: Ids
    rotations: FloatArray
    translations: FloatArray
    scales: FloatArray
    sigmas: FloatArray
    is_loop: NDArray[np.bool_]
    inliers: Ids
    shares: FloatArray
    weights: FloatArray

    @staticmethod
    def none() -> EdgeTable:
        ids, numbers = np.zeros(0, np.int64), np.zeros(0)
        return EdgeTable(
            i=ids,
            j=ids,
            rotations=np.zeros((0, 3, 3)),
            translations=np.zeros((0, 3)),
            scales=numbers,
            sigmas=np.zeros((0, 7)),
            is_loop=np.zeros(0, bool),
            inliers=ids,
            shares=numbers,
            weights=numbers,
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FrameTable:
    """T frames that hang off keyframes: index, time, keyframe id, and keyframe_from_frame in the keyframe's units."""

    indices: Ids
    timestamps_ns: Ids
    keyframe: Ids
    rotations: FloatArray
    translations: FloatArray

    @staticmethod
    def none() -> FrameTable:
        ids = np.zeros(0, np.int64)
        return FrameTable(
            indices=ids, timestamps_ns=ids, keyframe=ids, rotations=np.zeros((0, 3, 3)), translations=np.zeros((0, 3))
        )


@dataclass(frozen=True, slots=True)
class Session:
    """A run whose frames share a clock: its keyframes have ids from `first_keyframe` on, its frames rows from
    `first_frame` on, both up to those of the session after it.

    Time need not grow with the ids: a frame can become a keyframe when the run ends, long after it came.
    """

    first_keyframe: int
    first_frame: int


@dataclass(frozen=True, eq=False, kw_only=True)
class ReferenceMap:
    """Everything a map remembers. Poses are world_from_keyframe; `image(row)` reads a keyframe's image (RGB).

    A map from posed images has one session, one segment, no edges and no frames.
    """

    provenance: Provenance
    cameras: tuple[Camera, ...]
    keyframes: KeyframeTable
    features: FeatureTable
    observations: ObservationTable
    landmarks: LandmarkTable
    edges: EdgeTable
    frames: FrameTable
    image: Callable[[int], Image]
    sessions: tuple[Session, ...] = (Session(0, 0),)

    @cached_property
    def session_of_keyframe(self) -> Ids:
        """Number (N,) of each keyframe's session."""
        starts = np.array([session.first_keyframe for session in self.sessions], dtype=np.int64)
        return np.searchsorted(starts, self.keyframes.ids, side="right").astype(np.int64) - 1

    @cached_property
    def session_of_frame(self) -> Ids:
        """Number (T,) of each frame's session."""
        starts = np.array([session.first_frame for session in self.sessions], dtype=np.int64)
        rows = np.arange(len(self.frames.indices))
        return np.searchsorted(starts, rows, side="right").astype(np.int64) - 1

    @cached_property
    def row_of(self) -> dict[int, int]:
        """Row of each keyframe id."""
        return {int(k): row for row, k in enumerate(self.keyframes.ids)}

    def units_of(self, segment: int) -> str:
        """'meters' or 'map units': what a length of 1 is in the world of a segment."""
        return "map units" if segment in self.provenance.unanchored else self.provenance.units

    def camera_of(self, row: int) -> Camera:
        return self.cameras[int(self.keyframes.camera[row])]

    @cached_property
    def points_world(self) -> FloatArray:
        """Landmarks (M, 3) in the world of their anchor's segment, map units."""
        rows = np.array([self.row_of[int(a)] for a in self.landmarks.anchor], dtype=np.int64)
        local = self.landmarks.points_in_anchor * self.keyframes.scales[rows][:, None]
        turned = np.einsum("nij,nj->ni", self.keyframes.rotations[rows].reshape(-1, 3, 3), local)
        return np.asarray(turned + self.keyframes.translations[rows].reshape(-1, 3))


def quantized(descriptors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """RootSIFT rows (N, 128) in a quarter of the space: entries are at most 1, and a 256th is far below their noise."""
    return np.asarray(np.clip(np.rint(descriptors * 256.0), 0, 255), dtype=np.uint8)


def restored(descriptors: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Unit rows (N, 128) from quantized ones; quantizing them again moves entries by one at most."""
    rows = descriptors.astype(np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)


@runtime_checkable
class RestoresEncoding(Protocol):
    """A pair predictor that can take up a remembered image without computing everything again."""

    def restore_encoding(
        self,
        features: LocalFeatures,
        camera: Camera,
        descriptor: NDArray[np.float32],
        image: Callable[[], Image],
    ) -> Encoded:
        """What `encode` would remember of an image, from what a map holds of it; `image()` reads it."""
        ...


def restore_encoding(predictor: PosePredictor, reference_map: ReferenceMap, row: int) -> Encoded:
    """What the predictor remembers of a keyframe, made again from the map.

    Predictors that are not `Recalls` encode the keyframe's image anew.

    Raises:
        MapError: the image was needed and cannot be read.
    """
    features, camera = reference_map.features.of(row), reference_map.camera_of(row)
    if isinstance(predictor, RestoresEncoding):
        descriptor = reference_map.keyframes.descriptors[row]
        return predictor.restore_encoding(features, camera, descriptor, lambda: reference_map.image(row))
    [encoded] = predictor.encode([CalibratedImage(reference_map.image(row), camera, features)])
    return encoded


def provenance_of(predictor: PosePredictor, features: dict[str, Any]) -> Provenance:
    """Where a map of this predictor comes from, with the settings its local features are detected with."""
    return Provenance(
        predictor=predictor.name,
        descriptor=str(getattr(predictor, "descriptor", predictor.name)),
        weights_sha256=str(getattr(predictor, "weights_sha256", "")),
        features=dict(features),
    )


def features_of(provenance: Provenance) -> FeaturesConfig:
    """Settings the map's local features were detected with; an image's must be comparable with them.

    Raises:
        MapError: they are none that this version knows.
    """
    known = {key: value for key, value in provenance.features.items() if key in FeaturesConfig.model_fields}
    try:
        return FeaturesConfig(**known)
    except ValidationError as error:
        names = ", ".join(str(problem["loc"][0]) for problem in error.errors())
        raise MapError(
            f"map: made with settings of features that cannot be ({names}); make the map anew with this version"
        ) from None


def check_predictor(provenance: Provenance, predictor: PosePredictor) -> None:
    """Refuse a predictor that cannot read a map: another one, other weights, or other place descriptors.

    Raises:
        MapError: says what differs and which option makes it equal.
    """
    own = provenance_of(predictor, {})
    if own.predictor != provenance.predictor or own.descriptor != provenance.descriptor:
        raise MapError(
            f"map: made by predictor {provenance.predictor} with {provenance.descriptor} descriptors, this is "
            f"{own.predictor} with {own.descriptor}; add --predictor {provenance.predictor}, or make the map anew"
        )
    if provenance.weights_sha256 and own.weights_sha256 and own.weights_sha256 != provenance.weights_sha256:
        raise MapError(
            f"map: made with the weights {provenance.weights_sha256[:12]}..., these are {own.weights_sha256[:12]}...; "
            "give those with --weights, or make the map anew"
        )

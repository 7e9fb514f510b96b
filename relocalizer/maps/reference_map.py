"""Reference map: keyframes with poses, their observations, and landmarks, as arrays that can be saved.

`slam run` builds one by SLAM, `map from-poses` from images with known poses; the relocalizer reads both.
`map_writer` saves it and `map_reader` loads it.
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
MAX_KEYFRAME_ID = 10**9  # upper bound of keyframe ids; twice this value fits into 32 bits
MAX_ID = 10**12  # upper bound of frame indices and segment numbers
ROTATION_TOLERANCE = 1e-4  # tolerance of orthonormality; products of many rotations drift


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Provenance:
    """Origin of a map: the predictor and its settings, and the units.

    Attributes:
        predictor: name of the pair predictor, such as 'geometric' or 'reloc3r-512'.
        weights_sha256: checksum of the network's weights; empty for a predictor without weights.
        descriptor: type of the place descriptors, such as 'vlad' or 'reloc3r-512-gem'; only maps of the same type can
            be searched together.
        units: 'map units', or 'meters' when a segment has metric scale.
        unanchored: segments of a map in meters that have no metric scale and hence their own map units, ascending.
            `ReferenceMap.units_of` gives the units of each segment.
        scale_source: description of the source of metric scale; empty for map units, and in old metric maps.
        features: settings of the local feature extraction.
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
        camera: (N,) int64, row of the keyframe's camera in `ReferenceMap.cameras`.
        segment: (N,) int64; the keyframes of one segment share a world, those of different segments do not.
        rotations: (N, 3, 3) world_from_keyframe; translations: (N, 3) map units; scales: (N,) map units per
            keyframe unit.
        descriptors: (N, D) float32 unit rows, place descriptors.
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
    """Local features of all keyframes, concatenated; keyframe row k has the rows offsets[k]:offsets[k + 1].

    Attributes:
        offsets: (N + 1,) int64.
        pixels: (F, 2) float32. scales: (F,) float32.
        descriptors: (F, 128) uint8, RootSIFT times 256 (see `quantized`).
        landmark: (F,) int64, id of the feature's track, -1 for none; a track may be untriangulated.

    A map on disk should only contain features with a track; those without one are of no use for matching.
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
    """Observations of tracks in keyframes; keyframe row k has the rows offsets[k]:offsets[k + 1]."""

    offsets: Ids
    landmark: Ids
    pixels: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LandmarkTable:
    """M triangulated tracks, in order of id.

    Attributes:
        ids: (M,). anchor: (M,) id of the host keyframe.
        points_in_anchor: (M, 3) in the host keyframe's axes and units.
        inverse_depth_sigma: (M,) standard deviation of 1 / depth in the host keyframe.
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
    """E measured similarities i_from_j between keyframes, i < j.

    Attributes:
        sigmas: (E, 7) standard deviations of rotation, translation and log scale.
        is_loop: (E,) whether the edge is a loop closure rather than odometry.
        inliers: (E,) number of observations behind the edge.
        shares: (E,) in (0, 1], fraction of the information attributed to the edge when several edges are derived from
            the same observations.
        weights: (E,) in [0, 1], robust weight of the edge.
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
    """T frames relative to their reference keyframe: index, time, keyframe id, and keyframe_from_frame in its units."""

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
    """A run whose frames share a clock.

    Its keyframe ids start at `first_keyframe` and its frame rows at `first_frame`, both up to the next session.
    Time need not increase with the ids: a frame can become a keyframe at the end of the run.
    """

    first_keyframe: int
    first_frame: int


@dataclass(frozen=True, eq=False, kw_only=True)
class ReferenceMap:
    """All data of a map. Poses are world_from_keyframe; `image(row)` reads a keyframe's image (RGB).

    `image_names` has the name of the image file of each keyframe, empty where it has none; it is () if none has one.

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
    image_names: tuple[str, ...] = ()

    @cached_property
    def session_of_keyframe(self) -> Ids:
        """Session number (N,) of each keyframe."""
        starts = np.array([session.first_keyframe for session in self.sessions], dtype=np.int64)
        return np.searchsorted(starts, self.keyframes.ids, side="right").astype(np.int64) - 1

    @cached_property
    def session_of_frame(self) -> Ids:
        """Session number (T,) of each frame."""
        starts = np.array([session.first_frame for session in self.sessions], dtype=np.int64)
        rows = np.arange(len(self.frames.indices))
        return np.searchsorted(starts, rows, side="right").astype(np.int64) - 1

    @cached_property
    def row_of(self) -> dict[int, int]:
        """Row of each keyframe id."""
        return {int(k): row for row, k in enumerate(self.keyframes.ids)}

    def image_name(self, row: int) -> str:
        """Name of the image file of a keyframe; empty if it is not known."""
        return self.image_names[row] if self.image_names else ""

    def units_of(self, segment: int) -> str:
        """Units of a segment's world, 'meters' or 'map units'."""
        return "map units" if segment in self.provenance.unanchored else self.provenance.units

    def camera_of(self, row: int) -> Camera:
        return self.cameras[int(self.keyframes.camera[row])]

    @cached_property
    def points_world(self) -> FloatArray:
        """Landmark positions (M, 3) in the world of their segment, map units."""
        rows = np.array([self.row_of[int(a)] for a in self.landmarks.anchor], dtype=np.int64)
        local = self.landmarks.points_in_anchor * self.keyframes.scales[rows][:, None]
        rotated = np.einsum("nij,nj->ni", self.keyframes.rotations[rows].reshape(-1, 3, 3), local)
        return np.asarray(rotated + self.keyframes.translations[rows].reshape(-1, 3))

    @cached_property
    def depth_sigmas_world(self) -> FloatArray:
        """Displacement (M, 3) of each landmark by one sigma along its anchor's ray, in the world, map units."""
        table, keyframes = self.landmarks, self.keyframes
        rows = np.array([self.row_of[int(a)] for a in table.anchor], dtype=np.int64)
        # With inverse depth w, dz = z^2 dw, and the point moves by the fraction dz / z of its coordinates.
        local = table.points_in_anchor * (table.points_in_anchor[:, 2] * table.inverse_depth_sigma)[:, None]
        rotated = np.einsum("nij,nj->ni", keyframes.rotations[rows].reshape(-1, 3, 3), local)
        return np.asarray(rotated * keyframes.scales[rows][:, None])


def quantized(descriptors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """RootSIFT rows (N, 128) as bytes; entries are at most 1, and a quantization step of 1/256 is far below noise."""
    return np.asarray(np.clip(np.rint(descriptors * 256.0), 0, 255), dtype=np.uint8)


def restored(descriptors: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Unit rows (N, 128) from quantized ones; quantizing them again changes entries by at most 1."""
    rows = descriptors.astype(np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)


@runtime_checkable
class RestoresEncoding(Protocol):
    """A pair predictor that can restore an image's encoding from a map without recomputing all of it."""

    def restore_encoding(
        self,
        features: LocalFeatures,
        camera: Camera,
        descriptor: NDArray[np.float32],
        image: Callable[[], Image],
    ) -> Encoded:
        """The encoding of an image from its data in a map; `image()` reads the image itself."""
        ...


def restore_encoding(predictor: PosePredictor, reference_map: ReferenceMap, row: int) -> Encoded:
    """The predictor's encoding of a keyframe, restored from the map.

    Predictors that are not `RestoresEncoding` encode the keyframe's image again.

    Raises:
        MapError: the image is needed and cannot be read.
    """
    features, camera = reference_map.features.of(row), reference_map.camera_of(row)
    if isinstance(predictor, RestoresEncoding):
        descriptor = reference_map.keyframes.descriptors[row]
        return predictor.restore_encoding(features, camera, descriptor, lambda: reference_map.image(row))
    [encoded] = predictor.encode([CalibratedImage(reference_map.image(row), camera, features)])
    return encoded


def provenance_of(predictor: PosePredictor, features: dict[str, Any]) -> Provenance:
    """Provenance of a map built with a predictor and the given settings of local feature extraction."""
    return Provenance(
        predictor=predictor.name,
        descriptor=str(getattr(predictor, "descriptor", predictor.name)),
        weights_sha256=str(getattr(predictor, "weights_sha256", "")),
        features=dict(features),
    )


def features_of(provenance: Provenance) -> FeaturesConfig:
    """Settings of the map's local feature extraction; an image's features must be comparable with the map's.

    Raises:
        MapError: the settings are invalid in this version.
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
    """Reject a predictor that does not fit a map: another predictor, other weights, or other place descriptors.

    Raises:
        MapError: states the difference and the option that resolves it.
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

"""Features of posed images, and their matches under known poses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform

from relocalizer.camera import Camera
from relocalizer.config import FeaturesConfig, PosedImagesConfig
from relocalizer.errors import MapError, SequenceError
from relocalizer.features import detect_features, match_features
from relocalizer.geometry import FloatArray, rotation_matrix, skew, translation_of
from relocalizer.images import Image, to_gray
from relocalizer.interfaces import CalibratedImage, PosePredictor
from relocalizer.maps.reference_map import Ids, quantized, restored

# Growth of the similarity ranks at which an image is matched: near ones give long tracks, far ones parallax.
RANK_GROWTH = 1.5
_CACHED_IMAGES = 128  # number of images whose restored descriptors are cached

Progress = Callable[[str, int, int], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PosedImage:
    """An image, read on demand, and its pose.

    Attributes:
        name: name of the image in messages.
        read: returns the undistorted image, RGB (H, W, 3).
        camera: the pinhole camera of the undistorted image.
        world_from_cam: its pose; the map has the same world and units.
        landmarks: ids of the landmarks that it sees, sorted; None where the source has none.
        mask: (H, W); features are extracted only where it is nonzero.
    """

    name: str
    read: Callable[[], Image]
    camera: Camera
    world_from_cam: RigidTransform
    timestamp_ns: int = 0
    mask: NDArray[np.uint8] | None = None
    landmarks: Ids | None = None


def expect_two(images: Sequence[PosedImage], unreadable: Sequence[str]) -> None:
    if len(images) < 2:
        why = f" ({len(unreadable)} cannot be read; the first: {unreadable[0]})" if unreadable else ""
        raise MapError(f"a map needs at least two images from different poses, got {len(images)}{why}")


# --- features ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ExtractedFeatures:
    """Features of all images, concatenated; image k has the rows offsets[k]:offsets[k + 1].

    Attributes:
        offsets: (N + 1,). pixels: (F, 2). scales: (F,).
        descriptors: (F, 128), quantized RootSIFT. colors: (F, 3) RGB.
        places: (N, D) place descriptors of the images.
    """

    offsets: Ids
    pixels: NDArray[np.float32]
    scales: NDArray[np.float32]
    descriptors: NDArray[np.uint8]
    colors: NDArray[np.uint8]
    places: NDArray[np.float32]

    @property
    def image_of(self) -> Ids:
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def pixels_of(self, k: int) -> NDArray[np.float32]:
        return self.pixels[int(self.offsets[k]) : int(self.offsets[k + 1])]

    def descriptors_of(self, k: int) -> NDArray[np.float32]:
        return restored(self.descriptors[int(self.offsets[k]) : int(self.offsets[k + 1])])


@dataclass(frozen=True, slots=True, eq=False)
class ImageFeatures:
    """Features of one image, as in `ExtractedFeatures`, and its place descriptor (D,)."""

    pixels: NDArray[np.float32]
    scales: NDArray[np.float32]
    descriptors: NDArray[np.uint8]
    colors: NDArray[np.uint8]
    place: NDArray[np.float32]


def extract(posed: PosedImage, predictor: PosePredictor, config: FeaturesConfig) -> ImageFeatures | SequenceError:
    """Read an image and extract its features; the error if it cannot be read. The pixels are not kept."""
    try:
        image = posed.read()
    except SequenceError as error:
        return error
    features = detect_features(to_gray(image), config, posed.mask)
    [encoded] = predictor.encode([CalibratedImage(image, posed.camera, features)])
    return ImageFeatures(
        pixels=features.pixels,
        scales=features.scales,
        descriptors=quantized(features.descriptors),
        colors=_colors(image, features.pixels),
        place=predictor.describe(encoded),
    )


def joined(
    images: Sequence[PosedImage], extracted: Sequence[ImageFeatures | SequenceError]
) -> tuple[list[PosedImage], ExtractedFeatures]:
    """The images that could be read, and their features.

    Raises:
        MapError: fewer than two images could be read.
    """
    both = list(zip(images, extracted, strict=True))
    readable = [(posed, found) for posed, found in both if isinstance(found, ImageFeatures)]
    unreadable = [str(found) for _, found in both if isinstance(found, SequenceError)]
    expect_two([posed for posed, _ in readable], unreadable)
    if unreadable:
        _log.warning("%d images cannot be read and are left out; the first: %s", len(unreadable), unreadable[0])
    features = [found for _, found in readable]
    return [posed for posed, _ in readable], ExtractedFeatures(
        offsets=np.concatenate([[0], np.cumsum([len(f.pixels) for f in features])]).astype(np.int64),
        pixels=np.concatenate([f.pixels for f in features]),
        scales=np.concatenate([f.scales for f in features]),
        descriptors=np.concatenate([f.descriptors for f in features]),
        colors=np.concatenate([f.colors for f in features]),
        places=np.array([f.place for f in features], dtype=np.float32),
    )


def _colors(image: Image, pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    x, y = np.rint(pixels).astype(np.int64).reshape(-1, 2).T
    return np.asarray(image[np.clip(y, 0, image.shape[0] - 1), np.clip(x, 0, image.shape[1] - 1)])


# --- image pairs and their matches -------------------------------------------------------------------


def choose_pairs(
    places: NDArray[np.float32], poses: Sequence[RigidTransform], config: PosedImagesConfig
) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, to be matched, in order: similar place descriptors and similar viewing directions.

    Each image is paired with images at growing ranks of similarity (1, 2, 3, 5, 8, ...), so that it gets near and far
    partners in a dense video, independent of the unit of length and the frame rate.
    """
    axes = np.array([rotation_matrix(pose)[:, 2] for pose in poses])
    cosine = float(np.cos(np.radians(config.max_angle_deg)))
    ranks = np.unique(np.floor(RANK_GROWTH ** np.arange(config.partners)).astype(np.int64))
    ranks = np.arange(config.partners) if len(poses) <= 2 * config.partners else ranks - 1
    pairs: set[tuple[int, int]] = set()
    for i in range(len(poses)):
        similarity = places @ places[i]
        similarity[i] = -np.inf
        similarity[axes @ axes[i] < cosine] = -np.inf
        order = np.argsort(-similarity, kind="stable")
        order = order[np.isfinite(similarity[order])]
        pairs.update((min(i, j), max(i, j)) for j in order[ranks[ranks < len(order)]].tolist())
    return sorted(pairs)


def match_all(
    images: Sequence[PosedImage],
    features: ExtractedFeatures,
    pairs: Sequence[tuple[int, int]],
    config: PosedImagesConfig,
    report: Progress,
) -> NDArray[np.int64]:
    """Matches (L, 2) that are consistent with the poses, as rows of the features of all images."""
    descriptors = lru_cache(maxsize=_CACHED_IMAGES)(features.descriptors_of)
    links = [np.zeros((0, 2), np.int64)]
    for done, (i, j) in enumerate(pairs):
        found = match_features(descriptors(i), descriptors(j), ratio=config.match_ratio)
        pixels_i, pixels_j = features.pixels_of(i)[found[:, 0]], features.pixels_of(j)[found[:, 1]]
        consistent = found[epipolar_px(images[i], images[j], pixels_i, pixels_j) < config.epipolar_px]
        if len(consistent) >= config.min_matches:
            links.append(consistent + np.array([features.offsets[i], features.offsets[j]]))
        report("pairs", done + 1, len(pairs))
    return np.concatenate(links)


def epipolar_px(
    i: PosedImage, j: PosedImage, pixels_i: NDArray[np.float32], pixels_j: NDArray[np.float32]
) -> FloatArray:
    """The larger distance (N,) of each match from its two epipolar lines under the poses, pixels.

    Images from the same position have no epipolar lines; for them it is the reprojection error under the rotation.
    """
    i_from_j = i.world_from_cam.inv() * j.world_from_cam
    R, t = rotation_matrix(i_from_j), translation_of(i_from_j)
    x_i = np.column_stack([i.camera.normalized(pixels_i), np.ones(len(pixels_i))])
    x_j = np.column_stack([j.camera.normalized(pixels_j), np.ones(len(pixels_j))])
    distance = float(np.linalg.norm(t))
    if distance == 0:
        rotated = x_j @ R.T
        return np.asarray(np.linalg.norm(i.camera.project(rotated) - pixels_i, axis=1))
    E = skew(t / distance) @ R
    line_i, line_j = x_j @ E.T, x_i @ E
    algebraic = np.abs((x_i * line_i).sum(axis=1))
    in_i = algebraic / np.maximum(np.linalg.norm(line_i[:, :2], axis=1), 1e-12) * i.camera.mean_focal
    in_j = algebraic / np.maximum(np.linalg.norm(line_j[:, :2], axis=1), 1e-12) * j.camera.mean_focal
    return np.asarray(np.maximum(in_i, in_j))

"""A map from images whose poses are known: no SLAM, only features, matches and triangulation under those poses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.transform import RigidTransform

from relocalizer.config import FeaturesConfig, PosedImagesConfig
from relocalizer.errors import MapError, SequenceError
from relocalizer.features import DESCRIPTOR_SIZE, LocalFeatures, detect_features, match_features
from relocalizer.geometry import FloatArray, rotation_matrix, skew, translation_of
from relocalizer.images import Camera, Image, to_gray
from relocalizer.interfaces import CalibratedImage, PosePredictor
from relocalizer.maps.reference_map import (
    EdgeTable,
    FeatureTable,
    FrameTable,
    Ids,
    KeyframeTable,
    LandmarkTable,
    ObservationTable,
    ReferenceMap,
    provenance_of,
    quantized,
    restored,
)

# An image is matched to the ones it resembles at these ranks: some near, for long tracks, some far, for parallax.
RANK_GROWTH = 1.5
_CACHED_IMAGES = 128
_ROUNDS = 8

SCALE_SOURCE = "the poses the images came with"

Progress = Callable[[str, int, int], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PosedImage:
    """An image, read when it is needed, and where it was taken.

    Attributes:
        name: for messages.
        read: gives it as RGB (H, W, 3), undistorted.
        camera: the pinhole camera of what `read` gives.
        world_from_cam: its pose; the map is in this world and its unit.
        mask: (H, W), features only where it is not zero.
    """

    name: str
    read: Callable[[], Image]
    camera: Camera
    world_from_cam: RigidTransform
    timestamp_ns: int = 0
    mask: NDArray[np.uint8] | None = None


def map_from_poses(
    images: Sequence[PosedImage],
    predictor: PosePredictor,
    *,
    config: PosedImagesConfig | None = None,
    features: FeaturesConfig | None = None,
    units: str = "meters",
    on_progress: Progress | None = None,
) -> ReferenceMap:
    """A map whose keyframes are the images, or those of them that `config` does not thin out.

    Images that look alike and look the same way are matched, matches that the poses forbid are dropped, and
    what is left is joined to tracks and triangulated. The poses themselves are believed and not changed.

    Args:
        predictor: describes the places; the map can be searched with it alone.
        features: settings of the local features that become landmarks.
        units: of the poses, 'meters' or 'map units'.
        on_progress: called with (what, how many are done, of how many).

    Raises:
        MapError: fewer than two images that can be read. The others are left out, and a warning is logged.
    """
    config, features = config or PosedImagesConfig(), features or FeaturesConfig()
    kept = thinned(images, config)
    _expect_two(kept, [])
    report = on_progress or (lambda what, done, total: None)
    kept, seen = _look(kept, predictor, features, report)
    pairs = choose_pairs(seen.places, [p.world_from_cam for p in kept], config)
    links = _match_all(kept, seen, pairs, config, report)
    tracks = _tracks(seen, links)
    landmarks = _triangulate_tracks(kept, seen, tracks, config)
    features_on_landmarks = _feature_table(seen, landmarks)
    scale_source = SCALE_SOURCE if units == "meters" else ""
    provenance = replace(provenance_of(predictor, features.model_dump()), units=units, scale_source=scale_source)
    cameras = tuple(dict.fromkeys(p.camera for p in kept))
    return ReferenceMap(
        provenance=provenance,
        cameras=cameras,
        keyframes=_keyframe_table(images, kept, cameras, seen),
        features=features_on_landmarks,
        observations=_observation_table(features_on_landmarks),
        landmarks=_landmark_table(kept, seen, landmarks),
        edges=EdgeTable.none(),
        frames=FrameTable.none(),
        image=lambda row: kept[row].read(),
    )


def _expect_two(images: Sequence[PosedImage], unreadable: Sequence[str]) -> None:
    if len(images) < 2:
        why = f" ({len(unreadable)} cannot be read; the first: {unreadable[0]})" if unreadable else ""
        raise MapError(f"a map needs at least two images from different poses, got {len(images)}{why}")


def thinned(images: Sequence[PosedImage], config: PosedImagesConfig) -> list[PosedImage]:
    """The images in order, but for those nearer to a kept one, and less turned from it, than `config` asks for."""
    if config.min_distance <= 0:
        return list(images)
    kept: list[PosedImage] = []
    centers, axes = np.zeros((0, 3)), np.zeros((0, 3))
    cosine = float(np.cos(np.radians(config.min_angle_deg)))
    for image in images:
        center, axis = translation_of(image.world_from_cam), rotation_matrix(image.world_from_cam)[:, 2]
        near = np.linalg.norm(centers - center, axis=1) <= config.min_distance
        if not (near & (axes @ axis >= cosine)).any():
            kept.append(image)
            centers, axes = np.vstack([centers, center]), np.vstack([axes, axis])
    return kept


# --- what each image shows --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Features of all images, one after the other; image k owns offsets[k]:offsets[k + 1]."""

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


def _look(
    images: Sequence[PosedImage], predictor: PosePredictor, config: FeaturesConfig, report: Progress
) -> tuple[list[PosedImage], _Seen]:
    """Read every image once; its features and its place descriptor are all that stays in memory.

    With them go the images that can be read.
    """
    readable: list[PosedImage] = []
    unreadable: list[str] = []
    found: list[LocalFeatures] = []
    coarse: list[NDArray[np.uint8]] = []
    colors: list[NDArray[np.uint8]] = []
    places: list[NDArray[np.float32]] = []
    for k, posed in enumerate(images):
        try:
            image = posed.read()
        except SequenceError as error:
            unreadable.append(str(error))
            continue
        readable.append(posed)
        features = detect_features(to_gray(image), config, posed.mask)
        [encoded] = predictor.encode([CalibratedImage(image, posed.camera, features)])
        places.append(predictor.describe(encoded))
        coarse.append(quantized(features.descriptors))
        colors.append(_colors(image, features.pixels))
        found.append(replace(features, descriptors=np.zeros((0, DESCRIPTOR_SIZE), np.float32)))
        report("images", k + 1, len(images))
    _expect_two(readable, unreadable)
    if unreadable:
        _log.warning("%d images cannot be read and are left out; the first: %s", len(unreadable), unreadable[0])
    return readable, _Seen(
        offsets=np.concatenate([[0], np.cumsum([len(f) for f in found])]).astype(np.int64),
        pixels=np.concatenate([f.pixels for f in found]),
        scales=np.concatenate([f.scales for f in found]),
        descriptors=np.concatenate(coarse),
        colors=np.concatenate(colors),
        places=np.array(places, dtype=np.float32),
    )


def _colors(image: Image, pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    x, y = np.rint(pixels).astype(np.int64).reshape(-1, 2).T
    return np.asarray(image[np.clip(y, 0, image.shape[0] - 1), np.clip(x, 0, image.shape[1] - 1)])


# --- which images to match, and their matches --------------------------------------------------------


def choose_pairs(
    places: NDArray[np.float32], poses: Sequence[RigidTransform], config: PosedImagesConfig
) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, worth matching, in order: alike in looks, and turned apart by less than a limit.

    Each image takes those it resembles at growing ranks (1, 2, 3, 5, 8, ...), so that a dense video gives it
    near ones and far ones, whatever its unit of length and its frame rate.
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


def _match_all(
    images: Sequence[PosedImage],
    seen: _Seen,
    pairs: Sequence[tuple[int, int]],
    config: PosedImagesConfig,
    report: Progress,
) -> NDArray[np.int64]:
    """(L, 2) numbers of features, over all images, that match and that the poses allow to be one point."""
    descriptors = lru_cache(maxsize=_CACHED_IMAGES)(seen.descriptors_of)
    links = [np.zeros((0, 2), np.int64)]
    for done, (i, j) in enumerate(pairs):
        found = match_features(descriptors(i), descriptors(j), ratio=config.match_ratio)
        off = epipolar_px(images[i], images[j], seen.pixels_of(i)[found[:, 0]], seen.pixels_of(j)[found[:, 1]])
        allowed = found[off < config.epipolar_px]
        if len(allowed) >= config.min_matches:
            links.append(allowed + np.array([seen.offsets[i], seen.offsets[j]]))
        report("pairs", done + 1, len(pairs))
    return np.concatenate(links)


def epipolar_px(
    i: PosedImage, j: PosedImage, pixels_i: NDArray[np.float32], pixels_j: NDArray[np.float32]
) -> FloatArray:
    """(N,) the larger distance of each match from its epipolar lines under the poses, pixels.

    Images from one place have no epipolar lines; there it is the distance from where turning moves the point.
    """
    i_from_j = i.world_from_cam.inv() * j.world_from_cam
    R, t = rotation_matrix(i_from_j), translation_of(i_from_j)
    x_i = np.column_stack([i.camera.normalized(pixels_i), np.ones(len(pixels_i))])
    x_j = np.column_stack([j.camera.normalized(pixels_j), np.ones(len(pixels_j))])
    distance = float(np.linalg.norm(t))
    if distance == 0:
        turned = x_j @ R.T
        return np.asarray(np.linalg.norm(i.camera.project(turned) - pixels_i, axis=1))
    E = skew(t / distance) @ R
    line_i, line_j = x_j @ E.T, x_i @ E
    apart = np.abs((x_i * line_i).sum(axis=1))
    in_i = apart / np.maximum(np.linalg.norm(line_i[:, :2], axis=1), 1e-12) * i.camera.mean_focal
    in_j = apart / np.maximum(np.linalg.norm(line_j[:, :2], axis=1), 1e-12) * j.camera.mean_focal
    return np.asarray(np.maximum(in_i, in_j))


# --- tracks and landmarks -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Tracks:
    """Observations in order of track: `feature` (O,) and the `track` (O,) of each, numbered from 0."""

    feature: Ids
    track: Ids

    @property
    def count(self) -> int:
        return int(self.track[-1]) + 1 if len(self.track) else 0

    def where(self, keep: NDArray[np.bool_]) -> _Tracks:
        """These observations alone, tracks numbered anew."""
        _, track = np.unique(self.track[keep], return_inverse=True)
        return _Tracks(self.feature[keep], track.astype(np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class _Landmarks:
    """Tracks with a place: points (M, 3) in the world, and each one's largest angle between rays."""

    tracks: _Tracks
    points: FloatArray
    parallax_rad: FloatArray


def _tracks(seen: _Seen, links: NDArray[np.int64]) -> _Tracks:
    """Features that matches join are one track."""
    total = len(seen.pixels)
    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(total, total))
    _, component = connected_components(graph.tocsr(), directed=False)
    feature = np.unique(links)
    order = np.argsort(component[feature], kind="stable")
    _, track = np.unique(component[feature[order]], return_inverse=True)
    return _Tracks(feature[order], track.astype(np.int64))


def _triangulate_tracks(
    images: Sequence[PosedImage], seen: _Seen, tracks: _Tracks, config: PosedImagesConfig
) -> _Landmarks:
    """Points of the tracks under the poses; observations that contradict them go, then tracks with too little left."""
    eyes = _Eyes.of(images, seen)
    points = np.zeros((0, 3))
    for strict in (False, True, True):
        points = eyes.meet(tracks, robust=not strict)
        error = eyes.errors_px(tracks, points)
        keep = (error < config.max_error_px) & _best_in_image(tracks, eyes.image[tracks.feature], error)
        tracks, points = _with_observers(tracks, keep, points, config.min_observers)
    parallax = eyes.parallax(tracks, points)
    enough = parallax >= np.radians(config.min_parallax_deg)
    return _Landmarks(tracks.where(enough[tracks.track]), points[enough], parallax[enough])


def _with_observers(
    tracks: _Tracks, keep: NDArray[np.bool_], points: FloatArray, least: int
) -> tuple[_Tracks, FloatArray]:
    """The kept observations of the tracks that have at least `least` of them."""
    counts = np.bincount(tracks.track[keep], minlength=tracks.count)
    return tracks.where(keep & (counts[tracks.track] >= least)), points[counts >= least]


def _best_in_image(tracks: _Tracks, image: Ids, error: FloatArray) -> NDArray[np.bool_]:
    """Of the observations of one track in one image the one with the least error: a point is seen once."""
    order = np.lexsort((error, image, tracks.track))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(tracks.track[order]) != 0) | (np.diff(image[order]) != 0)
    best = np.zeros(len(order), bool)
    best[order[first]] = True
    return best


@dataclass(frozen=True, slots=True, eq=False)
class _Eyes:
    """Rays of all features in the world: `image` (F,), `rays` (F, 3) unit, and the images' poses and cameras."""

    image: Ids
    pixels: FloatArray
    rays: FloatArray
    centers: FloatArray
    cam_from_world: FloatArray
    intrinsics: FloatArray

    @staticmethod
    def of(images: Sequence[PosedImage], seen: _Seen) -> _Eyes:
        image = seen.image_of
        rotations = np.array([rotation_matrix(p.world_from_cam) for p in images])
        intrinsics = np.array([[p.camera.fx, p.camera.fy, p.camera.cx, p.camera.cy] for p in images])
        own = intrinsics[image]
        local = np.column_stack([(seen.pixels - own[:, 2:]) / own[:, :2], np.ones(len(image))])
        rays = np.einsum("nij,nj->ni", rotations[image], local)
        return _Eyes(
            image=image,
            pixels=seen.pixels.astype(np.float64),
            rays=rays / np.linalg.norm(rays, axis=1, keepdims=True),
            centers=np.array([translation_of(p.world_from_cam) for p in images]),
            cam_from_world=rotations.transpose(0, 2, 1),
            intrinsics=intrinsics,
        )

    def meet(self, tracks: _Tracks, *, robust: bool) -> FloatArray:
        """The point (N, 3) nearest to the rays of each track, in angle; robustly, as matches may be wrong."""
        rays, centers = self.rays[tracks.feature], self.centers[self.image[tracks.feature]]
        across = np.eye(3) - rays[:, :, None] * rays[:, None, :]
        along = np.einsum("nij,nj->ni", across, centers)
        weight = np.ones(len(rays))
        points: FloatArray = np.zeros((tracks.count, 3))
        sigma = 2.0 / self.intrinsics[:, :2].mean()  # two pixels: where doubt about a match begins
        for _ in range(_ROUNDS):
            A = _sums(weight[:, None, None] * across, tracks)
            b = _sums(weight[:, None] * along, tracks)
            A += 1e-12 * np.trace(A, axis1=1, axis2=2)[:, None, None] * np.eye(3)
            points = np.asarray(np.linalg.solve(A, b[:, :, None])[:, :, 0], dtype=np.float64)
            sight = points[tracks.track] - centers
            distance = np.maximum(np.linalg.norm(sight, axis=1), 1e-12)
            angle = np.linalg.norm(np.cross(sight, rays), axis=1) / distance
            doubt = 1.0 + (angle / sigma) ** 2 if robust else 1.0
            weight = 1.0 / (distance**2 * doubt)
        return points

    def errors_px(self, tracks: _Tracks, points: FloatArray) -> FloatArray:
        """(O,) how far each observation lies from its track's point; infinite behind the camera."""
        image = self.image[tracks.feature]
        local = np.einsum("nij,nj->ni", self.cam_from_world[image], points[tracks.track] - self.centers[image])
        front = local[:, 2] > 1e-9
        own = self.intrinsics[image]
        projected = local[:, :2] / np.where(front, local[:, 2], 1.0)[:, None] * own[:, :2] + own[:, 2:]
        return np.where(front, np.linalg.norm(projected - self.pixels[tracks.feature], axis=1), np.inf)

    def parallax(self, tracks: _Tracks, points: FloatArray) -> FloatArray:
        """(N,) the largest angle at each point between its first ray and another, radians."""
        sight = points[tracks.track] - self.centers[self.image[tracks.feature]]
        sight /= np.maximum(np.linalg.norm(sight, axis=1, keepdims=True), 1e-12)
        first = sight[np.searchsorted(tracks.track, np.arange(tracks.count))]
        angle = np.arcsin(np.minimum(np.linalg.norm(np.cross(sight, first[tracks.track]), axis=1), 1.0))
        largest = np.zeros(tracks.count)
        np.maximum.at(largest, tracks.track, angle)
        return largest


def _sums(values: FloatArray, tracks: _Tracks) -> FloatArray:
    """Values (O, ...) added up by track; observations are in order of track."""
    if not len(values):
        return np.zeros((0, *values.shape[1:]))
    starts = np.searchsorted(tracks.track, np.arange(tracks.count))
    return np.asarray(np.add.reduceat(values, starts, axis=0))


# --- tables -------------------------------------------------------------------------------------------


def _keyframe_table(
    images: Sequence[PosedImage], kept: Sequence[PosedImage], cameras: tuple[Camera, ...], seen: _Seen
) -> KeyframeTable:
    place = {id(image): k for k, image in enumerate(images)}
    count = len(kept)
    return KeyframeTable(
        ids=np.arange(count),
        frame_indices=np.array([place[id(p)] for p in kept], dtype=np.int64),
        timestamps_ns=np.array([p.timestamp_ns for p in kept], dtype=np.int64),
        camera=np.array([cameras.index(p.camera) for p in kept], dtype=np.int64),
        segment=np.zeros(count, np.int64),
        rotations=np.array([rotation_matrix(p.world_from_cam) for p in kept]),
        translations=np.array([translation_of(p.world_from_cam) for p in kept]),
        scales=np.ones(count),
        descriptors=seen.places,
    )


def _feature_table(seen: _Seen, landmarks: _Landmarks) -> FeatureTable:
    """The features that lie on a landmark, in order of image; the others find nothing and cost as much."""
    order = np.argsort(landmarks.tracks.feature, kind="stable")
    feature = landmarks.tracks.feature[order]
    return FeatureTable(
        offsets=np.searchsorted(feature, seen.offsets).astype(np.int64),
        pixels=seen.pixels[feature],
        scales=seen.scales[feature],
        descriptors=seen.descriptors[feature],
        landmark=landmarks.tracks.track[order],
    )


def _observation_table(features: FeatureTable) -> ObservationTable:
    """Every feature that was kept sees its landmark."""
    return ObservationTable(offsets=features.offsets, landmark=features.landmark, pixels=features.pixels)


def _landmark_table(images: Sequence[PosedImage], seen: _Seen, landmarks: _Landmarks) -> LandmarkTable:
    tracks, points = landmarks.tracks, landmarks.points
    first = tracks.feature[np.searchsorted(tracks.track, np.arange(tracks.count))]
    anchor = seen.image_of[first]
    rotations = np.array([rotation_matrix(p.world_from_cam) for p in images])
    centers = np.array([translation_of(p.world_from_cam) for p in images])
    focal = np.array([p.camera.mean_focal for p in images])
    local = np.einsum("nji,nj->ni", rotations[anchor], points - centers[anchor])
    # An error of a pixel in a ray shifts inverse depth by that angle / (depth * parallax).
    sigma = 1.0 / focal[anchor] / np.maximum(local[:, 2] * landmarks.parallax_rad, 1e-9)
    return LandmarkTable(
        ids=np.arange(tracks.count),
        anchor=anchor.astype(np.int64),
        points_in_anchor=local,
        inverse_depth_sigma=sigma,
        descriptors=seen.descriptors[first],
        colors=seen.colors[first],
    )

"""Multi-view triangulation of tracks under known poses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from relocalizer.config import PosedImagesConfig
from relocalizer.geometry import FloatArray, rotation_matrix, translation_of
from relocalizer.maps.image_matching import ExtractedFeatures, PosedImage
from relocalizer.maps.reference_map import Ids

_ROUNDS = 8  # number of reweighted least-squares iterations


# --- tracks and landmarks -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Tracks:
    """Observations sorted by track: feature row `feature` (O,) and number `track` (O,) of each, counted from 0."""

    feature: Ids
    track: Ids

    @property
    def count(self) -> int:
        return int(self.track[-1]) + 1 if len(self.track) else 0

    def where(self, keep: NDArray[np.bool_]) -> _Tracks:
        """Subset of the observations, with renumbered tracks."""
        _, track = np.unique(self.track[keep], return_inverse=True)
        return _Tracks(self.feature[keep], track.astype(np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Landmarks:
    """Triangulated tracks: points (M, 3) in the world, and the largest angle between rays of each, radians."""

    tracks: _Tracks
    points: FloatArray
    parallax_rad: FloatArray


def tracks_of(features: ExtractedFeatures, links: NDArray[np.int64]) -> _Tracks:
    """Tracks: the connected components of features under the matches `links` (L, 2)."""
    total = len(features.pixels)
    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(total, total))
    _, component = connected_components(graph.tocsr(), directed=False)
    feature = np.unique(links)
    order = np.argsort(component[feature], kind="stable")
    _, track = np.unique(component[feature[order]], return_inverse=True)
    return _Tracks(feature[order], track.astype(np.int64))


def triangulate_tracks(
    images: Sequence[PosedImage], features: ExtractedFeatures, tracks: _Tracks, config: PosedImagesConfig
) -> Landmarks:
    """Triangulate the tracks under the poses; outlier observations are removed, then tracks with too few observers."""
    rays = _Rays.of(images, features)
    points = np.zeros((0, 3))
    for robust in (True, False, False):
        points = rays.intersect(tracks, robust=robust)
        error = rays.errors_px(tracks, points)
        keep = (error < config.max_error_px) & _best_in_image(tracks, rays.image[tracks.feature], error)
        tracks, points = _with_observers(tracks, keep, points, config.min_observers)
    parallax = rays.parallax(tracks, points)
    enough = parallax >= np.radians(config.min_parallax_deg)
    return Landmarks(tracks.where(enough[tracks.track]), points[enough], parallax[enough])


def _with_observers(
    tracks: _Tracks, keep: NDArray[np.bool_], points: FloatArray, min_observers: int
) -> tuple[_Tracks, FloatArray]:
    """The kept observations of the tracks that have at least `min_observers` of them, and the tracks' points."""
    counts = np.bincount(tracks.track[keep], minlength=tracks.count)
    return tracks.where(keep & (counts[tracks.track] >= min_observers)), points[counts >= min_observers]


def _best_in_image(tracks: _Tracks, image: Ids, error: FloatArray) -> NDArray[np.bool_]:
    """Mask (O,) of the observation with the least error per track and image: an image shows a point only once."""
    order = np.lexsort((error, image, tracks.track))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(tracks.track[order]) != 0) | (np.diff(image[order]) != 0)
    best = np.zeros(len(order), bool)
    best[order[first]] = True
    return best


@dataclass(frozen=True, slots=True, eq=False)
class _Rays:
    """Unit rays (F, 3) of all features in the world, with the `image` (F,) of each, and the poses and cameras."""

    image: Ids
    pixels: FloatArray
    rays: FloatArray
    centers: FloatArray
    cam_from_world: FloatArray
    intrinsics: FloatArray

    @staticmethod
    def of(images: Sequence[PosedImage], features: ExtractedFeatures) -> _Rays:
        image = features.image_of
        rotations = np.array([rotation_matrix(p.world_from_cam) for p in images])
        intrinsics = np.array([[p.camera.fx, p.camera.fy, p.camera.cx, p.camera.cy] for p in images])
        own = intrinsics[image]
        local = np.column_stack([(features.pixels - own[:, 2:]) / own[:, :2], np.ones(len(image))])
        rays = np.einsum("nij,nj->ni", rotations[image], local)
        return _Rays(
            image=image,
            pixels=features.pixels.astype(np.float64),
            rays=rays / np.linalg.norm(rays, axis=1, keepdims=True),
            centers=np.array([translation_of(p.world_from_cam) for p in images]),
            cam_from_world=rotations.transpose(0, 2, 1),
            intrinsics=intrinsics,
        )

    def intersect(self, tracks: _Tracks, *, robust: bool) -> FloatArray:
        """Points (N, 3) that minimize the angles to the rays of each track, with a robust kernel against outliers."""
        rays, centers = self.rays[tracks.feature], self.centers[self.image[tracks.feature]]
        across = np.eye(3) - rays[:, :, None] * rays[:, None, :]
        along = np.einsum("nij,nj->ni", across, centers)
        weight = np.ones(len(rays))
        points: FloatArray = np.zeros((tracks.count, 3))
        sigma = 2.0 / self.intrinsics[:, :2].mean()  # width of the robust kernel: two pixels
        for _ in range(_ROUNDS):
            A = _sums(weight[:, None, None] * across, tracks)
            b = _sums(weight[:, None] * along, tracks)
            A += 1e-12 * np.trace(A, axis1=1, axis2=2)[:, None, None] * np.eye(3)
            points = np.asarray(np.linalg.solve(A, b[:, :, None])[:, :, 0], dtype=np.float64)
            to_point = points[tracks.track] - centers
            distance = np.maximum(np.linalg.norm(to_point, axis=1), 1e-12)
            angle = np.linalg.norm(np.cross(to_point, rays), axis=1) / distance
            kernel = 1.0 + (angle / sigma) ** 2 if robust else 1.0
            weight = 1.0 / (distance**2 * kernel)
        return points

    def errors_px(self, tracks: _Tracks, points: FloatArray) -> FloatArray:
        """Reprojection errors (O,) of the observations, pixels; infinite behind the camera."""
        image = self.image[tracks.feature]
        local = np.einsum("nij,nj->ni", self.cam_from_world[image], points[tracks.track] - self.centers[image])
        front = local[:, 2] > 1e-9
        own = self.intrinsics[image]
        projected = local[:, :2] / np.where(front, local[:, 2], 1.0)[:, None] * own[:, :2] + own[:, 2:]
        return np.where(front, np.linalg.norm(projected - self.pixels[tracks.feature], axis=1), np.inf)

    def parallax(self, tracks: _Tracks, points: FloatArray) -> FloatArray:
        """Largest angle (N,) at each point between its first ray and another ray, radians."""
        to_point = points[tracks.track] - self.centers[self.image[tracks.feature]]
        to_point /= np.maximum(np.linalg.norm(to_point, axis=1, keepdims=True), 1e-12)
        first = to_point[np.searchsorted(tracks.track, np.arange(tracks.count))]
        angle = np.arcsin(np.minimum(np.linalg.norm(np.cross(to_point, first[tracks.track]), axis=1), 1.0))
        largest = np.zeros(tracks.count)
        np.maximum.at(largest, tracks.track, angle)
        return largest


def _sums(values: FloatArray, tracks: _Tracks) -> FloatArray:
    """Sums of values (O, ...) per track; observations are sorted by track."""
    if not len(values):
        return np.zeros((0, *values.shape[1:]))
    starts = np.searchsorted(tracks.track, np.arange(tracks.count))
    return np.asarray(np.add.reduceat(values, starts, axis=0))

"""A map from images whose poses are known: no SLAM, only features, matches and triangulation under those poses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from relocalizer.camera import Camera
from relocalizer.config import FeaturesConfig, PosedImagesConfig
from relocalizer.geometry import rotation_matrix, translation_of
from relocalizer.interfaces import PosePredictor
from relocalizer.maps.image_matching import PosedImage, Progress, Seen, choose_pairs, expect_two, look, match_all
from relocalizer.maps.multi_view_triangulation import Landmarks, tracks_of, triangulate_tracks
from relocalizer.maps.reference_map import (
    EdgeTable,
    FeatureTable,
    FrameTable,
    KeyframeTable,
    LandmarkTable,
    ObservationTable,
    ReferenceMap,
    provenance_of,
)

SCALE_SOURCE = "the poses the images came with"


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
    expect_two(kept, [])
    report = on_progress or (lambda what, done, total: None)
    kept, seen = look(kept, predictor, features, report)
    pairs = choose_pairs(seen.places, [p.world_from_cam for p in kept], config)
    links = match_all(kept, seen, pairs, config, report)
    tracks = tracks_of(seen, links)
    landmarks = triangulate_tracks(kept, seen, tracks, config)
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


# --- tables -------------------------------------------------------------------------------------------


def _keyframe_table(
    images: Sequence[PosedImage], kept: Sequence[PosedImage], cameras: tuple[Camera, ...], seen: Seen
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


def _feature_table(seen: Seen, landmarks: Landmarks) -> FeatureTable:
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


def _landmark_table(images: Sequence[PosedImage], seen: Seen, landmarks: Landmarks) -> LandmarkTable:
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

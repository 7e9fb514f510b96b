"""Reference map from images with known poses: features, matches and triangulation under these poses, without SLAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from relocalizer.camera import Camera
from relocalizer.config import FeaturesConfig, PosedImagesConfig
from relocalizer.errors import SequenceError
from relocalizer.geometry import rotation_matrix, translation_of
from relocalizer.interfaces import PosePredictor
from relocalizer.maps.image_matching import (
    ExtractedFeatures,
    ImageFeatures,
    PosedImage,
    Progress,
    choose_pairs,
    expect_two,
    extract,
    joined,
    match_all,
)
from relocalizer.maps.multi_view_triangulation import Landmarks, tracks_of, triangulate_tracks
from relocalizer.maps.reference_map import (
    EdgeTable,
    FeatureTable,
    FrameTable,
    KeyframeTable,
    LandmarkTable,
    ObservationTable,
    Provenance,
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
    """Build a map whose keyframes are the images, or the subset that remains after thinning by `config`.

    Similar images with similar viewing directions are matched, matches inconsistent with the poses are removed, and the
    remaining ones are joined to tracks and triangulated. The poses are not changed.

    Args:
        predictor: computes the place descriptors; the map can only be searched with the same predictor.
        features: settings of the local feature extraction.
        units: units of the poses, 'meters' or 'map units'.
        on_progress: called with (stage, number done, total number).

    Raises:
        MapError: fewer than two images can be read. Unreadable images are left out with a logged warning.
    """
    config, features = config or PosedImagesConfig(), features or FeaturesConfig()
    kept = thinned(images, config)
    expect_two(kept, [])
    report = on_progress or (lambda what, done, total: None)
    found = []
    for k, posed in enumerate(kept):
        found.append(extract(posed, predictor, features))
        report("images", k + 1, len(kept))
    provenance = posed_provenance(predictor, features, units)
    return map_from_features(images, kept, found, provenance=provenance, config=config, on_progress=report)


def posed_provenance(predictor: PosePredictor, features: FeaturesConfig, units: str) -> Provenance:
    """Provenance of a map from images with known poses, in 'meters' or 'map units'."""
    scale_source = SCALE_SOURCE if units == "meters" else ""
    return replace(provenance_of(predictor, features.model_dump()), units=units, scale_source=scale_source)


def map_from_features(
    images: Sequence[PosedImage],
    kept: Sequence[PosedImage],
    extracted: Sequence[ImageFeatures | SequenceError],
    *,
    provenance: Provenance,
    config: PosedImagesConfig,
    on_progress: Progress,
) -> ReferenceMap:
    """Build a map from features that were extracted before, for example in several processes.

    Args:
        kept: those of the images that become keyframes, as by `thinned`.
        extracted: of each of them, by `extract`.

    Raises:
        MapError: as `map_from_poses`.
    """
    readable, features = joined(kept, extracted)
    pairs = choose_pairs(features.places, [p.world_from_cam for p in readable], config)
    tracks = tracks_of(features, match_all(readable, features, pairs, config, on_progress))
    landmarks = triangulate_tracks(readable, features, tracks, config)
    features_on_landmarks = _feature_table(features, landmarks)
    cameras = tuple(dict.fromkeys(p.camera for p in readable))
    return ReferenceMap(
        provenance=provenance,
        cameras=cameras,
        keyframes=_keyframe_table(images, readable, cameras, features),
        features=features_on_landmarks,
        observations=_observation_table(features_on_landmarks),
        landmarks=_landmark_table(readable, features, landmarks),
        edges=EdgeTable.none(),
        frames=FrameTable.none(),
        image=lambda row: readable[row].read(),
        image_names=tuple(posed.name for posed in readable),
    )


def thinned(images: Sequence[PosedImage], config: PosedImagesConfig) -> list[PosedImage]:
    """The images in order, without those within `min_distance` and `min_angle_deg` of a kept image."""
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
    images: Sequence[PosedImage], kept: Sequence[PosedImage], cameras: tuple[Camera, ...], extracted: ExtractedFeatures
) -> KeyframeTable:
    index_of = {id(image): k for k, image in enumerate(images)}
    count = len(kept)
    return KeyframeTable(
        ids=np.arange(count),
        frame_indices=np.array([index_of[id(p)] for p in kept], dtype=np.int64),
        timestamps_ns=np.array([p.timestamp_ns for p in kept], dtype=np.int64),
        camera=np.array([cameras.index(p.camera) for p in kept], dtype=np.int64),
        segment=np.zeros(count, np.int64),
        rotations=np.array([rotation_matrix(p.world_from_cam) for p in kept]),
        translations=np.array([translation_of(p.world_from_cam) for p in kept]),
        scales=np.ones(count),
        descriptors=extracted.places,
    )


def _feature_table(extracted: ExtractedFeatures, landmarks: Landmarks) -> FeatureTable:
    """The features with a landmark, in order of image; features without one are of no use for matching."""
    order = np.argsort(landmarks.tracks.feature, kind="stable")
    feature = landmarks.tracks.feature[order]
    return FeatureTable(
        offsets=np.searchsorted(feature, extracted.offsets).astype(np.int64),
        pixels=extracted.pixels[feature],
        scales=extracted.scales[feature],
        descriptors=extracted.descriptors[feature],
        landmark=landmarks.tracks.track[order],
    )


def _observation_table(features: FeatureTable) -> ObservationTable:
    """One observation per kept feature."""
    return ObservationTable(offsets=features.offsets, landmark=features.landmark, pixels=features.pixels)


def _landmark_table(images: Sequence[PosedImage], extracted: ExtractedFeatures, landmarks: Landmarks) -> LandmarkTable:
    tracks, points = landmarks.tracks, landmarks.points
    first = tracks.feature[np.searchsorted(tracks.track, np.arange(tracks.count))]
    anchor = extracted.image_of[first]
    rotations = np.array([rotation_matrix(p.world_from_cam) for p in images])
    centers = np.array([translation_of(p.world_from_cam) for p in images])
    focal = np.array([p.camera.mean_focal for p in images])
    local = np.einsum("nji,nj->ni", rotations[anchor], points - centers[anchor])
    # A ray error of one pixel changes the inverse depth by its angle / (depth * parallax).
    sigma = 1.0 / focal[anchor] / np.maximum(local[:, 2] * landmarks.parallax_rad, 1e-9)
    return LandmarkTable(
        ids=np.arange(tracks.count),
        anchor=anchor.astype(np.int64),
        points_in_anchor=local,
        inverse_depth_sigma=sigma,
        descriptors=extracted.descriptors[first],
        colors=extracted.colors[first],
    )

"""A small map without any meaning, for tests of what is done to maps at rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from relocalizer.camera import Camera
from relocalizer.maps.reference_map import (
    EdgeTable,
    FeatureTable,
    FrameTable,
    KeyframeTable,
    LandmarkTable,
    ObservationTable,
    Provenance,
    ReferenceMap,
)

CAMERA = Camera(width=64, height=48, fx=60.0, fy=60.0, cx=31.5, cy=23.5)


def looking_rotations(count: int, rng: np.random.Generator) -> np.ndarray:
    return Rotation.from_rotvec(0.2 * rng.standard_normal((count, 3))).as_matrix().reshape(-1, 3, 3)


def small_map(*, keyframes: int = 4, landmarks: int = 12, seed: int = 0, **changes: Any) -> ReferenceMap:
    """Every keyframe sees every landmark, which lies before it; frames hang between them; an edge joins each two."""
    rng = np.random.default_rng(seed)
    N, M = keyframes, landmarks
    rotations = looking_rotations(N, rng)
    translations = np.stack([np.arange(N), np.zeros(N), np.zeros(N)], axis=1) * 0.1
    points = rng.uniform((-0.5, -0.4, 3.0), (0.5, 0.4, 5.0), (M, 3))
    descriptors = rng.integers(0, 60, (M, 128)).astype(np.uint8)
    in_cams = np.einsum("kji,kmj->kmi", rotations, points[None] - translations[:, None])
    pixels = np.concatenate([CAMERA.project(p) for p in in_cams]).astype(np.float32)
    offsets = np.arange(N + 1) * M
    places = rng.standard_normal((N, 32)).astype(np.float32)
    images = rng.integers(0, 255, (N, 48, 64, 3), dtype=np.uint8)
    ids = np.arange(N) * 3
    whole = ReferenceMap(
        provenance=Provenance(predictor="geometric", descriptor="vlad", features={"max_features": 1200}),
        cameras=(CAMERA,),
        keyframes=KeyframeTable(
            ids=ids,
            frame_indices=10 * np.arange(N),
            timestamps_ns=10 * np.arange(N) * 33_000_000,
            camera=np.zeros(N, np.int64),
            segment=np.zeros(N, np.int64),
            rotations=rotations,
            translations=translations,
            scales=np.ones(N),
            descriptors=places / np.linalg.norm(places, axis=1, keepdims=True),
        ),
        features=FeatureTable(
            offsets=offsets,
            pixels=pixels,
            scales=np.full(N * M, 4.0, np.float32),
            descriptors=np.tile(descriptors, (N, 1)),
            landmark=np.tile(np.arange(M), N),
        ),
        observations=ObservationTable(offsets=offsets, landmark=np.tile(np.arange(M), N), pixels=pixels),
        landmarks=LandmarkTable(
            ids=np.arange(M),
            anchor=np.zeros(M, np.int64),
            points_in_anchor=in_cams[0],
            inverse_depth_sigma=np.full(M, 0.01),
            descriptors=descriptors,
            colors=rng.integers(0, 255, (M, 3), dtype=np.uint8),
        ),
        edges=EdgeTable(
            i=ids[:-1],
            j=ids[1:],
            rotations=rotations[:-1].transpose(0, 2, 1) @ rotations[1:],
            translations=np.einsum("nji,nj->ni", rotations[:-1], np.diff(translations, axis=0)),
            scales=np.ones(N - 1),
            sigmas=np.full((N - 1, 7), 0.01),
            is_loop=np.zeros(N - 1, bool),
            inliers=np.full(N - 1, M),
            shares=np.ones(N - 1),
            weights=np.ones(N - 1),
        ),
        frames=FrameTable(
            indices=np.arange(2 * N),
            timestamps_ns=np.arange(2 * N) * 33_000_000,
            keyframe=np.repeat(ids, 2),
            rotations=np.tile(np.eye(3), (2 * N, 1, 1)),
            translations=np.zeros((2 * N, 3)),
        ),
        image=lambda row: images[row],
    )
    return replace(whole, **changes)


def in_two_segments(m: ReferenceMap, scale: float) -> ReferenceMap:
    """The later half of the keyframes in a world of its own, which is not in meters, and nothing that ties the two."""
    second = np.arange(len(m.keyframes)) >= len(m.keyframes) // 2
    own = np.where(second, scale, 1.0)
    keyframes = replace(
        m.keyframes,
        segment=second.astype(np.int64),
        translations=m.keyframes.translations * own[:, None],
        scales=m.keyframes.scales * own,
    )
    anchored_in_second = second[np.searchsorted(m.keyframes.ids, m.landmarks.anchor)]
    part_of = dict(zip(m.landmarks.ids.tolist(), anchored_in_second.tolist(), strict=True))

    def within(table: FeatureTable | ObservationTable) -> tuple[np.ndarray, np.ndarray]:
        """Row of each entry's keyframe, and whether its landmark is of the same part."""
        row = np.repeat(np.arange(len(second)), np.diff(table.offsets))
        same = [part_of.get(t, second[r]) == second[r] for t, r in zip(table.landmark.tolist(), row, strict=True)]
        return row, np.array(same, dtype=bool)

    row, kept = within(m.observations)
    counts = np.bincount(row[kept], minlength=len(second))
    observations = ObservationTable(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        landmark=m.observations.landmark[kept],
        pixels=m.observations.pixels[kept],
    )
    _, mine = within(m.features)
    features = replace(m.features, landmark=np.where(mine, m.features.landmark, -1))
    provenance = replace(m.provenance, unanchored=(1,))
    return replace(m, keyframes=keyframes, observations=observations, features=features, provenance=provenance)

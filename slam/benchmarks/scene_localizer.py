"""Localization of the queries of one scene, by three methods from the same retrieved images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.averaging import RelativePoseObservation, average_pose
from relocalizer.errors import UserError
from relocalizer.geometry import FloatArray, rotation_angle, rotation_matrix, translation_of
from relocalizer.images import Image, read_image
from relocalizer.interfaces import CalibratedImage, Encoded, NoEstimate, PairEstimate, PosePredictor
from relocalizer.maps.image_matching import PosedImage
from relocalizer.maps.map_from_poses import map_from_poses
from relocalizer.maps.map_reader import load_map
from relocalizer.maps.map_writer import save_map
from relocalizer.maps.reference_map import restore_encoding
from relocalizer.relocalizer import Relocalization, Relocalizer
from relocalizer.retrieval import FaissRetriever
from slam.benchmarks.given_retrieval import GivenRetriever
from slam.benchmarks.localization_scenes import SceneImage
from slam.benchmarks.official_averaging import NAME as OFFICIAL
from slam.benchmarks.official_averaging import component_median_and_lines
from slam.config.schema import SlamConfig
from slam.input.rectification import GivenCamera, Rectifier
from slam.predictor_checks import checked

LANDMARKS, AVERAGING = "landmarks", "robust averaging"
METHODS = (LANDMARKS, AVERAGING, OFFICIAL)
CACHED_ENCODINGS = 64


class SceneReader:
    """Reads images of a scene as pinhole images, with one rectification per camera."""

    def __init__(self, config: SlamConfig) -> None:
        self._rectifier = lru_cache(maxsize=16)(
            lambda camera: Rectifier(camera.width, camera.height, GivenCamera(camera, "the data set"), config.input)
        )

    def read(self, image: SceneImage) -> CalibratedImage:
        """The image with its camera. Raises UserError if it cannot be read, or has another size."""
        rectifier: Rectifier = self._rectifier(image.camera)
        return CalibratedImage(self._pixels(image), rectifier.camera)

    def posed(self, image: SceneImage, timestamp_ns: int) -> PosedImage:
        """The image for a map."""
        return PosedImage(
            name=image.name,
            read=partial(self._pixels, image),
            camera=self._rectifier(image.camera).camera,
            world_from_cam=RigidTransform.from_matrix(image.world_from_cam),
            timestamp_ns=timestamp_ns,
        )

    def _pixels(self, image: SceneImage) -> Image:
        pixels: Image = self._rectifier(image.camera)(read_image(image.path), str(image.path))
        return pixels


def build_map(
    database: Sequence[SceneImage], predictor: PosePredictor, config: SlamConfig, folder: Path
) -> dict[str, Any]:
    """Write the map of a scene's database; its figures.

    Raises:
        UserError: fewer than two images can be read.
    """
    reader = SceneReader(config)
    posed = [reader.posed(image, k * 1_000_000_000) for k, image in enumerate(database)]
    created = map_from_poses(posed, predictor, features=config.features, units="meters")
    save_map(folder, created)
    return {"keyframes": len(created.keyframes), "landmarks": len(created.landmarks), "database": len(database)}


class SceneLocalizer:
    """A map of the database images, in which queries are localized."""

    def __init__(self, folder: Path, predictor: PosePredictor, config: SlamConfig, top_k: int) -> None:
        """Raises MapError if the map cannot be read."""
        self._map, self._predictor, self._top_k = load_map(folder), predictor, top_k
        self._reader, self._given = SceneReader(config), GivenRetriever()
        self._faiss = FaissRetriever()
        for row, descriptor in enumerate(self._map.keyframes.descriptors):
            self._faiss.add(row, descriptor)
        self._relocalizer = Relocalizer(self._map, predictor, self._given, config.relocalization)
        self._restore: Callable[[int], Encoded] = lru_cache(maxsize=CACHED_ENCODINGS)(
            lambda row: restore_encoding(predictor, self._map, row)
        )

    @property
    def rows(self) -> Mapping[int, int]:
        """Row in the map of each database image, by its index; unreadable ones are left out."""
        return {int(index): row for row, index in enumerate(self._map.keyframes.frame_indices)}

    def localize(self, query: SceneImage, rows: Sequence[int] | None) -> dict[str, Any]:
        """Errors of a query by each method, in plain values.

        Args:
            rows: of the map, from a given retrieval; None retrieves by the predictor's descriptor.

        Raises:
            UserError: the image cannot be read.
        """
        view = self._reader.read(query)
        [encoded] = self._predictor.encode([view])
        if rows is None:
            descriptor = self._predictor.describe(encoded)
            rows = [candidate.key for candidate in self._faiss.query(descriptor, self._top_k, frozenset())]
        rows = list(rows)[: self._top_k]
        self._given.rows = rows
        estimates = self._predictor.relate([(self._restore(row), encoded) for row in rows])
        observations = [
            RelativePoseObservation(self._map.keyframes.world_from_keyframe(row).rigid, estimate)
            for row, one in zip(rows, estimates, strict=True)
            if isinstance(estimate := checked(one), PairEstimate)
        ]
        found = {
            LANDMARKS: self._by_landmarks(view) if rows else NoEstimate("no database image was retrieved"),
            AVERAGING: _averaged(observations),
            OFFICIAL: component_median_and_lines(observations),
        }
        return {"query": query.name, **{name: _errors(pose, query.world_from_cam) for name, pose in found.items()}}

    def _by_landmarks(self, view: CalibratedImage) -> RigidTransform | NoEstimate:
        outcome = self._relocalizer.locate(view)
        return outcome.world_from_cam if isinstance(outcome, Relocalization) else NoEstimate(outcome.reason)


def _averaged(observations: Sequence[RelativePoseObservation]) -> RigidTransform | NoEstimate:
    if not observations:
        return NoEstimate("no database image could be related to it")
    averaged = average_pose(observations)
    pose = averaged.world_from_cam
    return NoEstimate(averaged.position_unknown) if pose is None else pose


def _errors(found: RigidTransform | NoEstimate, truth: FloatArray) -> dict[str, Any]:
    """Distance of the centers and angle, degrees; None and the reason without a pose."""
    if isinstance(found, NoEstimate):
        return {"m": None, "deg": None, "reason": found.reason}
    distance = float(np.linalg.norm(translation_of(found) - truth[:3, 3]))
    angle_deg = float(np.degrees(rotation_angle(truth[:3, :3].T @ rotation_matrix(found))))
    return {"m": distance, "deg": angle_deg, "reason": ""}


def localize_all(
    localizer: SceneLocalizer, queries: Sequence[SceneImage], rows: Mapping[str, Sequence[int]] | None
) -> dict[str, Any]:
    """Errors of several queries, and one sentence for each image that cannot be read."""
    entries, faults = [], []
    for query in queries:
        try:
            entries.append(localizer.localize(query, None if rows is None else rows[query.name]))
        except UserError as error:
            faults.append(str(error))
    return {"queries": entries, "faults": faults}

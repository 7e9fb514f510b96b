"""Features of images with known poses, extracted by workers: most of the time of `slam map from-poses`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from relocalizer.config import PosedImagesConfig
from relocalizer.errors import MapError, SequenceError
from relocalizer.interfaces import PosePredictor
from relocalizer.maps.image_matching import ImageFeatures, PosedImage, extract
from relocalizer.maps.map_from_poses import map_from_features, map_from_poses, posed_provenance, thinned
from relocalizer.maps.reference_map import ReferenceMap
from slam.components.assembly import build_predictor
from slam.config.schema import SlamConfig
from slam.input.frame_source import Selection
from slam.input.posed_images import PosedSource, open_posed
from slam.progress import Progress
from slam.workers.work import Workers

ITEM_IMAGES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PosedRequest:
    """Images with poses, as given to `slam map from-poses`, in plain values.

    Attributes:
        config: settings, with the predictor resolved.
        selection: start, stride and maximum number of images.
        min_distance, min_angle_deg: as in `PosedImagesConfig`.
    """

    images: str
    poses: str = ""
    camera: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    selection: tuple[int, int, int | None] = (0, 1, None)
    min_distance: float = 0.0
    min_angle_deg: float = 10.0

    @property
    def settings(self) -> SlamConfig:
        return SlamConfig.model_validate(dict(self.config))

    @property
    def posed(self) -> PosedImagesConfig:
        return PosedImagesConfig(min_distance=self.min_distance, min_angle_deg=self.min_angle_deg)

    def to_text(self) -> str:
        """The request as text, which any worker can read."""
        return json.dumps(asdict(self))

    def open(self) -> PosedSource:
        """The images and poses. Raises UserError as `open_posed`."""
        return open_posed(
            Path(self.images),
            Path(self.poses) if self.poses else None,
            config=self.settings.input,
            camera=Path(self.camera) if self.camera else None,
            selection=Selection(*self.selection),
        )


def map_of_request(
    request: PosedRequest,
    images: Sequence[PosedImage],
    workers: Workers | None,
    *,
    units: str,
    on_progress: Progress,
) -> ReferenceMap:
    """The map of posed images, with the features extracted in this process or by workers; the map is the same.

    Raises:
        MapError: fewer than two images can be read, or the workers died.
    """
    settings, posed = request.settings, request.posed
    predictor = build_predictor(settings)
    if workers is None:
        return map_from_poses(
            images, predictor, config=posed, features=settings.features, units=units, on_progress=on_progress
        )
    kept = thinned(images, posed)
    provenance = posed_provenance(predictor, settings.features, units)
    extracted = extract_all(request, kept, workers, on_progress)
    return map_from_features(images, kept, extracted, provenance=provenance, config=posed, on_progress=on_progress)


def extract_all(
    request: PosedRequest, kept: Sequence[PosedImage], workers: Workers, on_progress: Progress
) -> list[ImageFeatures | SequenceError]:
    """Features of the images that become keyframes.

    Raises:
        MapError: the workers died at some of them again and again.
    """
    items = [f"{start}-{min(start + ITEM_IMAGES, len(kept))}" for start in range(0, len(kept), ITEM_IMAGES)]
    found: dict[str, list[ImageFeatures | SequenceError]] = {}
    for one in workers(extract_part, request.to_text(), items):
        if one.result is None:
            raise MapError(f"images {one.item}: {one.fault}; fewer --jobs need less memory")
        found[one.item] = one.result
        on_progress("images", sum(map(len, found.values())), len(kept))
    return [features for item in items for features in found[item]]


def extract_part(request: str, item: str) -> list[ImageFeatures | SequenceError]:
    """Features of the images of an item, 'first-end'."""
    kept, predictor, config = _opened(request)
    first, end = (int(number) for number in item.split("-"))
    return [extract(posed, predictor, config.features) for posed in kept[first:end]]


@lru_cache(maxsize=1)  # once per worker
def _opened(text: str) -> tuple[list[PosedImage], PosePredictor, SlamConfig]:
    request = PosedRequest(**json.loads(text))
    return thinned(request.open().images, request.posed), build_predictor(request.settings), request.settings

"""Images localized in a saved map by workers, as `slam relocalize` does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from relocalizer.errors import CameraError, MapError, SequenceError
from relocalizer.interfaces import CalibratedImage, PosePredictor
from relocalizer.maps.map_reader import load_map
from relocalizer.maps.reference_map import ReferenceMap, features_of
from relocalizer.predictors import plugins
from relocalizer.relocalizer import NotFound, Relocalization, Relocalizer
from slam.components.assembly import build_predictor
from slam.components.predictor_choice import with_predictor_of
from slam.config.schema import SlamConfig
from slam.input import query_images
from slam.input.query_images import QueryImage, QueryReader

ITEM_IMAGES = 16  # Images of one batch of the predictor; larger batches take more memory and are hardly faster.


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryRequest:
    """A map and the images to localize in it, in plain values.

    Attributes:
        images: files, folders or patterns.
        camera: calibration file of the images; empty without one.
    """

    map: str
    images: Sequence[str]
    camera: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    def to_text(self) -> str:
        """The request as text, which any worker can read."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True, eq=False)
class LocalizedPart:
    """Outcomes of the images of an item, and remarks about their cameras."""

    outcomes: Sequence[Relocalization | NotFound]
    notes: Sequence[str]


@dataclass(frozen=True, slots=True, eq=False)
class OpenedQueries:
    """A loaded map with its relocalizer, and the images."""

    reference_map: ReferenceMap
    relocalizer: Relocalizer
    reader: QueryReader
    queries: Sequence[QueryImage]

    @property
    def items(self) -> list[str]:
        """Items of at most `ITEM_IMAGES` images, 'first-end'."""
        count = len(self.queries)
        return [f"{start}-{min(start + ITEM_IMAGES, count)}" for start in range(0, count, ITEM_IMAGES)]

    def of(self, item: str) -> Sequence[QueryImage]:
        """The images of an item."""
        first, end = (int(number) for number in item.split("-"))
        return self.queries[first:end]

    def localize(self, item: str) -> LocalizedPart:
        """Localize the images of an item; one that cannot be read is not found."""
        known, batch = len(self.reader.notes), self.of(item)
        outcomes: dict[int, Relocalization | NotFound] = {}
        views: dict[int, CalibratedImage] = {}
        for k, image in enumerate(batch):
            try:
                views[k] = self.reader.read(image)
            except (SequenceError, CameraError) as error:
                outcomes[k] = NotFound(str(error).removeprefix(f"{image.path}: "))
        outcomes |= dict(zip(views, self.relocalizer.locate_many(list(views.values())), strict=True))
        return LocalizedPart([outcomes[k] for k in range(len(batch))], self.reader.notes[known:])


def open_queries(given: QueryRequest) -> OpenedQueries:
    """The map and the images of a request.

    Raises:
        UserError: the map or the images cannot be read, or the map's predictor is not known here.
    """
    settings = SlamConfig.model_validate(dict(given.config))
    queries, reference_map = query_images.query_images(given.images), load_map(Path(given.map))
    predictor = _predictor_of(reference_map, settings)
    relocalizer = Relocalizer(reference_map, predictor, config=settings.relocalization)
    reader = QueryReader(
        Path(given.camera) if given.camera else None,
        reference_map.cameras,
        settings.input,
        camera_needed=predictor.name == "geometric",
    )
    return OpenedQueries(reference_map, relocalizer, reader, queries)


def localize_part(request: str, item: str) -> LocalizedPart:
    """Localize the images of an item, in a worker; `request` is of `QueryRequest.to_text`."""
    return _opened(request).localize(item)


@lru_cache(maxsize=1)  # once per worker
def _opened(request: str) -> OpenedQueries:
    return open_queries(QueryRequest(**json.loads(request)))


def _predictor_of(reference_map: ReferenceMap, settings: SlamConfig) -> PosePredictor:
    """The predictor that made the map, with the feature settings of the map."""
    made_by = reference_map.provenance.predictor
    if made_by not in plugins.known():  # the name is followed by a note for random weights
        raise MapError(
            f"map: made by predictor {made_by!r}; only those of {', '.join(plugins.known())} can be asked here"
        )
    settings = settings.model_copy(update={"features": features_of(reference_map.provenance)})
    return build_predictor(with_predictor_of(reference_map.provenance, settings))

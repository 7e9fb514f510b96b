"""The localization suites: queries localized in a map of posed database images, per scene."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from relocalizer.errors import UserError
from relocalizer.interfaces import PosePredictor
from slam.benchmarks import published
from slam.benchmarks.given_retrieval import read_retrieval, retrieval_file, rows_by_name
from slam.benchmarks.localization_scenes import (
    CAMBRIDGE_SCENES,
    KINECT,
    SFM,
    Scene,
    cambridge,
    read_cambridge,
    read_seven_scenes,
    seven_scenes,
)
from slam.benchmarks.localization_summary import summarize_queries
from slam.benchmarks.results_folder import MAPS, file_name
from slam.benchmarks.scene_localizer import METHODS, SceneLocalizer, build_map, localize_all
from slam.benchmarks.slam_sequences import SCENES
from slam.benchmarks.suite import BenchmarkRequest, Cell, Result, Summary, Table
from slam.components import assembly

ITEM_QUERIES = 50  # Largest number of queries of one item.
MAP_ITEM = "map-"  # Begins the name of the item that makes a scene's map.


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalizationProtocol:
    """A localization benchmark.

    Attributes:
        find: folder and ground truth of each scene below a root, by name.
        read: the scene of a folder, its name and ground truth.
        means: scenes of each named mean.
    """

    title: str
    find: Callable[[Path], Mapping[str, tuple[Path, str]]]
    read: Callable[[Path, str, str], Scene]
    means: Mapping[str, Sequence[str]]
    published: Table


LOCALIZATION_SUITES: Mapping[str, LocalizationProtocol] = {
    "7scenes-localization": LocalizationProtocol(
        title="Visual localization: 7-Scenes",
        find=seven_scenes,
        read=read_seven_scenes,
        means={f"mean, {KINECT}": SCENES, f"mean, {SFM}": tuple(f"{scene}-{SFM}" for scene in SCENES)},
        published=published.SEVEN_SCENES_LOCALIZATION,
    ),
    "cambridge": LocalizationProtocol(
        title="Visual localization: Cambridge Landmarks",
        find=cambridge,
        read=read_cambridge,
        means={
            "mean of 4, without GreatCourt": tuple(name for name in CAMBRIDGE_SCENES if name != "GreatCourt"),
            "mean of 5": CAMBRIDGE_SCENES,
        },
        published=published.CAMBRIDGE,
    ),
}


class LocalizationSuite:
    """A localization benchmark on one data set: see `Suite`."""

    def __init__(self, request: BenchmarkRequest) -> None:
        """Raises BenchmarkError if there are no scenes."""
        self._request = request
        self._protocol = LOCALIZATION_SUITES[request.suite]
        self._folders = self._protocol.find(request.root)
        self._scene = lru_cache(maxsize=2)(self._read)
        self._localizer = lru_cache(maxsize=1)(self._opened)

    @property
    def faults(self) -> Sequence[str]:
        return [f"{name}: {count}" for name, count in self._counts.items() if isinstance(count, UserError)]

    @cached_property
    def _counts(self) -> dict[str, int | UserError]:
        """Number of queries of each scene, or why it is not usable. All scenes are read, which a worker need not do."""
        counts: dict[str, int | UserError] = {}
        for name in self._folders:
            try:
                counts[name] = len(self._scene(name).queries)
            except UserError as error:
                counts[name] = error
        return counts

    def _read(self, name: str) -> Scene:
        """A scene with the images that the request selects."""
        folder, truth = self._folders[name]
        scene, step = self._protocol.read(folder, name, truth), self._request.step
        queries = scene.queries[::step][: self._request.limit]
        return Scene(name, scene.database[::step], queries, scene.left_out)

    def _opened(self, name: str) -> SceneLocalizer:
        return SceneLocalizer(self._map_folder(name), self._predictor, self._request.settings, self._request.top_k)

    def stages(self) -> Sequence[Sequence[str]]:
        usable = {name: count for name, count in self._counts.items() if isinstance(count, int)}
        blocks = [
            f"{name}-{start // ITEM_QUERIES:03d}"
            for name, count in usable.items()
            for start in range(0, count, ITEM_QUERIES)
        ]
        return [[f"{MAP_ITEM}{name}" for name in usable], blocks]

    def evaluate(self, item: str) -> dict[str, Any]:
        if item.startswith(MAP_ITEM):
            return self._make_map(item.removeprefix(MAP_ITEM))
        name, _, block = item.rpartition("-")
        scene, localizer = self._scene(name), self._localizer(name)
        start = int(block) * ITEM_QUERIES
        queries = scene.queries[start : start + ITEM_QUERIES]
        given = self._request.pairs_file
        rows = None
        if given is not None:
            of_index = localizer.rows
            names = {image.name: of_index[k] for k, image in enumerate(scene.database) if k in of_index}
            folder = self._folders[name][0]
            rows = rows_by_name(read_retrieval(retrieval_file(given, folder.name)), [q.name for q in queries], names)
        return {"scene": name, **localize_all(localizer, queries, rows)}

    def _make_map(self, name: str) -> dict[str, Any]:
        scene = self._scene(name)
        made = build_map(scene.database, self._predictor, self._request.settings, self._map_folder(name))
        return {"scene": name, **made}

    def _map_folder(self, name: str) -> Path:
        return Path(self._request.out) / MAPS / file_name(name)

    @cached_property
    def _predictor(self) -> PosePredictor:
        return assembly.build_predictor(self._request.settings)

    def summarize(self, results: Mapping[str, Result]) -> Summary:
        request = self._request
        taken = f"1 in {request.step} database and query images" if request.step > 1 else "all"
        of_queries = f", at most {request.limit} queries per scene" if request.limit else ""
        descriptor = f"top {request.top_k} by the predictor's place descriptor"
        protocol = {
            "images": f"{taken} of the published splits{of_queries}",
            "retrieval": f"top {request.top_k} of {request.pairs}" if request.pairs else descriptor,
            "failures": "a query without a pose counts as infinite",
            "ground truth": "as the table says; published rows of 7-Scenes use KinectFusion",
            "mean": "of the medians of the scenes",
        }
        queries = {item: result for item, result in results.items() if not item.startswith(MAP_ITEM)}
        return summarize_queries(
            self._protocol.title, protocol, queries, self._protocol.means, self._protocol.published
        )

    def rows(self, results: Mapping[str, Result]) -> list[dict[str, Cell]]:
        return [
            {
                "scene": result["scene"],
                "query": query["query"],
                **{f"{method} {unit}": query[method][unit] for method in METHODS for unit in ("m", "deg", "reason")},
            }
            for item, result in results.items()
            if not item.startswith(MAP_ITEM)
            for query in result["queries"]
        ]

"""The pair suites: relative poses of two images, for any pair predictor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from relocalizer.camera import Camera
from relocalizer.errors import UserError
from relocalizer.interfaces import CalibratedImage, Encoded, NoEstimate, PosePredictor
from slam.benchmarks import published
from slam.benchmarks.co3d_pairs import co3d
from slam.benchmarks.megadepth_pairs import megadepth1500
from slam.benchmarks.own_pairs import own_pairs
from slam.benchmarks.pair_data import ListedImage, ListedPair, PairListing
from slam.benchmarks.pair_metrics import pair_error
from slam.benchmarks.pair_summary import PairTables, summarize_pairs
from slam.benchmarks.scannet_pairs import scannet1500
from slam.benchmarks.suite import BenchmarkRequest, Cell, Result, Summary, Table
from slam.benchmarks.video_pairs import ten_views, two_views
from slam.components import assembly
from slam.predictor_checks import checked

ENCODED_AT_ONCE, RELATED_AT_ONCE = 8, 16  # Images and pairs of one call of the predictor.
GROUP = "group"  # Key of the scene or category of an item in its result.


@dataclass(frozen=True, slots=True, kw_only=True)
class PairProtocol:
    """A pair benchmark: its list, its scores and its published rows.

    Attributes:
        title: name of the benchmark.
        listing: function from the root folder and the given list to the pairs.
        tables: scores that are computed.
        notes: further lines of the protocol.
    """

    title: str
    listing: Callable[[Path, Path | None], PairListing]
    tables: PairTables = PairTables.AUC
    published: Table | None = None
    notes: Mapping[str, str]


PAIR_SUITES: Mapping[str, PairProtocol] = {
    "scannet1500": PairProtocol(
        title="ScanNet1500",
        listing=scannet1500,
        published=published.SCANNET1500,
        notes={"images": "resized to 640x480, bilinear; intrinsics of the depth camera"},
    ),
    "megadepth1500": PairProtocol(
        title="MegaDepth1500",
        listing=megadepth1500,
        published=published.MEGADEPTH1500,
        notes={"images": "at their own size, with their own intrinsics"},
    ),
    "re10k": PairProtocol(
        title="RealEstate10K, two views",
        listing=partial(two_views, "re10k"),
        tables=PairTables.AUC_BY_OVERLAP,
        published=published.RE10K,
        notes={"pairs": "NoPoSplat's evaluation index, overlap 5 to 80 %"},
    ),
    "acid": PairProtocol(
        title="ACID, two views",
        listing=partial(two_views, "acid"),
        tables=PairTables.AUC_BY_OVERLAP,
        published=published.ACID,
        notes={"pairs": "NoPoSplat's evaluation index, overlap 5 to 80 %"},
    ),
    "co3d": PairProtocol(
        title="CO3Dv2, ten views",
        listing=co3d,
        tables=PairTables.ACCURACY_BY_GROUP,
        published=published.CO3D,
        notes={"pairs": "all 45 pairs of ten images, in one direction", "mean": "per category, then over categories"},
    ),
    "re10k10": PairProtocol(
        title="RealEstate10K, ten views",
        listing=ten_views,
        tables=PairTables.ACCURACY,
        notes={"pairs": "all 45 pairs of ten images, in one direction, at the positions of Pi3's map"},
    ),
    "pairs": PairProtocol(title="Own pairs", listing=own_pairs, notes={"pairs": "the given list"}),
}


class PairSuite:
    """A pair benchmark on one data set: see `Suite`."""

    def __init__(self, request: BenchmarkRequest) -> None:
        """Raises UserError if the lists cannot be read."""
        self._request = request
        self._protocol = PAIR_SUITES[request.suite]
        self._listing = self._protocol.listing(request.root, request.pairs_file)
        self.faults = self._listing.faults

    def stages(self) -> Sequence[Sequence[str]]:
        return [list(self._listing.items)[: self._request.limit]]

    def evaluate(self, item: str) -> dict[str, Any]:
        pairs = self._listing.items[item]()
        sizes: set[str] = set()
        encoded, unusable = self._encode(_images_of(pairs), sizes)
        usable = [pair for pair in pairs if pair.first.name in encoded and pair.second.name in encoded]
        if pairs and not usable:
            raise next(iter(unusable.values()))
        estimates = []
        for start in range(0, len(usable), RELATED_AT_ONCE):
            part = usable[start : start + RELATED_AT_ONCE]
            estimates += self._predictor.relate([(encoded[p.first.name], encoded[p.second.name]) for p in part])
        return {
            GROUP: _group_of(self._request.suite, item),
            "sizes": sorted(sizes),
            "pairs": [_entry(p, checked(estimate)) for p, estimate in zip(usable, estimates, strict=True)],
            "faults": [str(error) for error in unusable.values()],
        }

    def summarize(self, results: Mapping[str, Result]) -> Summary:
        protocol = self._protocol
        settings = self._request.settings.predictor
        notes = {
            "errors": "larger of rotation and direction error; a missing estimate counts as 180 deg",
            "direction": "plain: 0 to 180 deg, as Reloc3r; folded: a direction and its opposite are equal, as LoFTR",
            "precision": settings.precision if settings.kind != "geometric" else "float64",
            **protocol.notes,
        }
        return summarize_pairs(protocol.title, protocol.tables, notes, results, protocol.published)

    def rows(self, results: Mapping[str, Result]) -> list[dict[str, Cell]]:
        return [
            {"item": item, **{name: pair[name] for name in pair}}
            for item, result in results.items()
            for pair in result["pairs"]
        ]

    @cached_property
    def _predictor(self) -> PosePredictor:
        return assembly.build_predictor(self._request.settings)

    def _encode(
        self, images: Sequence[ListedImage], sizes: set[str]
    ) -> tuple[dict[str, Encoded], dict[str, UserError]]:
        """Encodings of the usable images, and the errors of the others, by name; their sizes are added to `sizes`."""
        encoded: dict[str, Encoded] = {}
        errors: dict[str, UserError] = {}
        for start in range(0, len(images), ENCODED_AT_ONCE):
            views: dict[str, CalibratedImage] = {}
            for image in images[start : start + ENCODED_AT_ONCE]:
                try:
                    views[image.name] = self._with_camera(image.load())
                    height, width = views[image.name].image.shape[:2]
                    sizes.add(f"{width}x{height}")
                except UserError as error:
                    errors[image.name] = error
            encoded |= dict(zip(views, self._predictor.encode(list(views.values())), strict=True))
        return encoded, errors

    def _with_camera(self, view: CalibratedImage) -> CalibratedImage:
        """The view with an assumed camera, if it has none and the predictor needs one."""
        if view.camera is not None or self._predictor.name != "geometric":
            return view
        height, width = view.image.shape[:2]
        fov_deg = self._request.settings.input.assumed_fov_deg
        return CalibratedImage(view.image, Camera.assume(width, height, fov_deg=fov_deg))


def _images_of(pairs: Sequence[ListedPair]) -> list[ListedImage]:
    """The images of pairs, each once."""
    return list({image.name: image for pair in pairs for image in (pair.first, pair.second)}.values())


def _group_of(suite: str, item: str) -> str:
    """The scene of an item, or for CO3D its category."""
    if suite == "co3d":
        return item.partition("-")[0]
    head, _, tail = item.rpartition("-")
    return head if head and len(tail) == 3 and tail.isdecimal() else item


def _entry(pair: ListedPair, estimate: Any) -> dict[str, Any]:
    error = pair_error(estimate, pair.first_from_second)
    return {
        "pair": pair.name,
        "rotation_deg": error.rotation_deg,
        "plain_deg": error.plain_deg,
        "folded_deg": error.folded_deg,
        "baseline": float(np.linalg.norm(pair.first_from_second[:3, 3])),
        "overlap": pair.overlap,
        "missing": estimate.reason if isinstance(estimate, NoEstimate) else estimate.direction_unknown,
    }

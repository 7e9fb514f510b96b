"""From a configuration to a `Slam`, and from a source to a finished run: wiring, the loop, timing, Ctrl-C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from slam.config.schema import SlamConfig
from slam.events import Observer
from slam.run.predictor_choice import choose_predictor

if TYPE_CHECKING:
    from relocalizer.interfaces import PosePredictor
    from relocalizer.maps.reference_map import ReferenceMap
    from relocalizer.predictors.reloc3r_predictor import Kind
    from slam.input.mask import Mask
    from slam.map.keyframe_images import KeyframeImages
    from slam.system import Slam


def build(
    config: SlamConfig,
    *,
    observers: Sequence[Observer] = (),
    images: KeyframeImages | None = None,
    start_map: ReferenceMap | None = None,
    localize_only: bool = False,
    mask: Mask | None = None,
) -> Slam:
    """Everything a run needs, wired together; `start_map` is the map to go on in, or only to be found in.

    `mask` is the one of the source: where it is zero no point is found or followed.

    Raises:
        MapError: the predictor cannot read the map.
        UserError: the predictor that was asked for cannot be had; the message says why.
    """
    from relocalizer.retrieval import FaissRetriever
    from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
    from slam.mapping.gtsam_bundle_adjuster import GtsamBundleAdjuster
    from slam.system import Slam
    from slam.tracking.klt import KltTracker

    return Slam(
        config,
        predictor=build_predictor(config),
        tracker=KltTracker(config.tracks, config.features, mask),
        retriever=FaissRetriever(),
        optimizer=GtsamOptimizer(robust=config.loop_closing.robust),
        adjuster=GtsamBundleAdjuster(),
        observers=observers,
        images=images,
        start_map=start_map,
        localize_only=localize_only,
    )


def build_predictor(config: SlamConfig) -> PosePredictor:
    """The pair predictor that the configuration names; `auto` is decided here."""
    match choose_predictor(config).kind:
        case "geometric":
            from relocalizer.predictors.geometric_predictor import GeometricPredictor

            return GeometricPredictor(config.features, config.predictor.geometric)
        case kind:
            from relocalizer.predictors.reloc3r_predictor import Reloc3rPredictor

            asked = config.predictor
            if asked.random_weights:
                return Reloc3rPredictor.random(
                    cast("Kind", kind),
                    seed=config.seed,
                    device=asked.device,
                    precision=asked.precision,
                    backend=asked.backend,
                )
            return Reloc3rPredictor.load(
                kind,
                weights=asked.weights,
                device=asked.device,
                precision=asked.precision,
                backend=asked.backend,
            )

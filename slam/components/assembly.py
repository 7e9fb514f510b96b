"""Assembly of the components that a configuration asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from relocalizer.predictors import plugins
from slam.components.predictor_choice import choose_predictor
from slam.config.schema import SlamConfig

if TYPE_CHECKING:
    from relocalizer.interfaces import PosePredictor, Retriever
    from relocalizer.predictors.reloc3r_predictor import Kind
    from slam.input.mask import Mask
    from slam.loop_closing.pose_graph import GraphOptimizer
    from slam.mapping.bundle import BundleAdjuster
    from slam.tracking.klt import PointTracker


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Components:
    """The exchangeable parts of the system, each behind a protocol.

    Attributes:
        predictor: relative pose of two images.
        tracker: points followed from image to image.
        retriever: place recognition.
        optimizer: pose graph optimization.
        adjuster: bundle adjustment.
    """

    predictor: PosePredictor
    tracker: PointTracker
    retriever: Retriever
    optimizer: GraphOptimizer
    adjuster: BundleAdjuster


def assemble(config: SlamConfig, *, mask: Mask | None = None) -> Components:
    """The parts that a configuration asks for.

    Args:
        mask: of the source; no point is detected or followed where it is zero.

    Raises:
        UserError: the predictor that was asked for cannot be had; the message says why.
    """
    from relocalizer.retrieval import FaissRetriever
    from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
    from slam.mapping.gtsam_bundle_adjuster import GtsamBundleAdjuster
    from slam.tracking.klt import KltTracker

    return Components(
        predictor=build_predictor(config),
        tracker=KltTracker(config.tracks, config.features, mask),
        retriever=FaissRetriever(),
        optimizer=GtsamOptimizer(robust=config.loop_closing.robust),
        adjuster=GtsamBundleAdjuster(),
    )


def build_predictor(config: SlamConfig) -> PosePredictor:
    """The pair predictor that the configuration names; `auto` is decided here."""
    match choose_predictor(config).kind:
        case "geometric":
            from relocalizer.predictors.geometric_predictor import GeometricPredictor

            return GeometricPredictor(config.features, config.predictor.geometric)
        case kind if kind not in plugins.BUILT_IN:
            asked = config.predictor
            return plugins.make(kind, config.features, weights=asked.weights, device=asked.device)
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

"""Creation of the components that a configuration selects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from relocalizer.errors import ConfigError
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
    """The exchangeable components of the system, each behind a protocol.

    Attributes:
        predictor: estimates the relative pose of two images.
        tracker: follows points from image to image.
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
    """Creates the components that a configuration selects.

    Args:
        mask: mask of the source; no point is detected or followed where it is zero.

    Raises:
        UserError: the requested predictor is not available; the message states why.
    """
    from relocalizer.retrieval import FaissRetriever

    try:
        from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
    except ModuleNotFoundError as error:
        if error.name != "gtsam":
            raise
        raise ConfigError("SLAM needs GTSAM, which has no wheel for Windows; use WSL, Linux or macOS") from None
    from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster
    from slam.tracking.klt import KltTracker

    return Components(
        predictor=build_predictor(config),
        tracker=KltTracker(config.tracks, config.features, mask),
        retriever=FaissRetriever(),
        optimizer=GtsamOptimizer(robust=config.loop_closing.robust),
        adjuster=SchurBundleAdjuster(),
    )


def build_predictor(config: SlamConfig) -> PosePredictor:
    """Creates the pair predictor that the configuration selects; resolves `auto`."""
    match choose_predictor(config).kind:
        case "geometric":
            from relocalizer.predictors.geometric_predictor import GeometricPredictor

            return GeometricPredictor(config.features, config.predictor.geometric)
        case kind if kind not in plugins.BUILT_IN:
            settings = config.predictor
            return plugins.make(kind, config.features, weights=settings.weights, device=settings.device)
        case kind:
            from relocalizer.predictors.reloc3r_predictor import Reloc3rPredictor

            settings = config.predictor
            if settings.random_weights:
                return Reloc3rPredictor.random(
                    cast("Kind", kind),
                    seed=config.seed,
                    device=settings.device,
                    precision=settings.precision,
                    backend=settings.backend,
                )
            return Reloc3rPredictor.load(
                kind,
                weights=settings.weights,
                device=settings.device,
                precision=settings.precision,
                backend=settings.backend,
            )

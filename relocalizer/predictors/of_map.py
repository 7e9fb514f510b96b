"""The predictor that a map was built with."""

from __future__ import annotations

from relocalizer import pytorch
from relocalizer.config import GeometricConfig
from relocalizer.errors import MapError
from relocalizer.interfaces import PosePredictor
from relocalizer.maps.reference_map import ReferenceMap, features_of
from relocalizer.predictors import plugins


def predictor_of(reference_map: ReferenceMap, *, weights: str = "", device: str = "auto") -> PosePredictor:
    """The predictor that can read a map, with the feature settings of the map.

    Args:
        weights, device: of a network; by default the released weights, on the best device there is.

    Raises:
        MapError: it is not known here, or was a network with random weights.
        ConfigError: it is a network, and PyTorch is not installed.
        WeightsError: the network's weights are not on this machine.
    """
    name, features = reference_map.provenance.predictor, features_of(reference_map.provenance)
    if name == "geometric":
        from relocalizer.predictors.geometric_predictor import GeometricPredictor

        return GeometricPredictor(features, GeometricConfig())
    if name in plugins.BUILT_IN:
        pytorch.expect_installed(f"this map, built with {name},")
        from relocalizer.predictors.reloc3r_predictor import Reloc3rPredictor

        return Reloc3rPredictor.load(name, weights=weights, device=device)
    if name not in plugins.installed():
        raise MapError(f"map: built with predictor {name!r}; known here: {', '.join(plugins.known())}")
    return plugins.make(name, features, weights=weights, device=device)

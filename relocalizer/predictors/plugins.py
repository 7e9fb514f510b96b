"""Pair predictors from other distributions, found by their entry points.

A distribution offers one in the entry-point group `reloc3r_slam.predictors`: the name is what `--predictor` takes, the
object a function `make(features: FeaturesConfig, weights: str, device: str) -> PosePredictor`. docs/extending.md has a
complete one.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from relocalizer.errors import ConfigError

if TYPE_CHECKING:  # the command line lists predictors, and must not load numpy for it
    from relocalizer.config import FeaturesConfig
    from relocalizer.interfaces import PosePredictor

GROUP = "reloc3r_slam.predictors"
BUILT_IN = ("geometric", "reloc3r-512", "reloc3r-224")
_NEEDED = ("encode", "relate", "describe", "name")


def installed() -> dict[str, EntryPoint]:
    """Entry points of installed predictors by name, in order of name; built-in names are not among them."""
    found = {point.name: point for point in entry_points(group=GROUP) if point.name not in (*BUILT_IN, "auto")}
    return dict(sorted(found.items()))


def make(name: str, features: FeaturesConfig, *, weights: str = "", device: str = "auto") -> PosePredictor:
    """The installed predictor of that name.

    Raises:
        ConfigError: there is none, it cannot be imported, or what it makes is no predictor.
    """
    point = installed().get(name)
    if point is None:
        raise ConfigError(f"predictor.kind: no predictor named {name!r} is installed (there are {', '.join(known())})")
    origin = f"predictor {name} ({point.value})"
    try:
        predictor: PosePredictor = point.load()(features, weights, device)
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"{origin}: cannot be made ({error}); is its distribution up to date?") from error
    missing = [member for member in _NEEDED if not hasattr(predictor, member)]
    if missing:
        raise ConfigError(f"{origin}: no pair predictor: it lacks {', '.join(missing)} (relocalizer.PosePredictor)")
    return predictor


def known() -> list[str]:
    """Names of all predictors, built-in ones first."""
    return [*BUILT_IN, *installed()]

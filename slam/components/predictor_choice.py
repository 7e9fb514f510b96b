"""Choice of the pair predictor, its network backend and its precision for a run."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from relocalizer import pytorch
from relocalizer.errors import ConfigError, MapError, WeightsError
from relocalizer.predictors import plugins
from slam.config.schema import SlamConfig

if TYPE_CHECKING:
    from relocalizer.maps.reference_map import Provenance

# GPU memory below which the smaller network is preferred, bytes.
_SMALL_CARD_BYTES = 6 * 2**30
NETWORKS = ("reloc3r-512", "reloc3r-224")
RANDOM_WEIGHTS = "random weights: the poses mean nothing, only the cost is real"


@dataclass(frozen=True, slots=True)
class PredictorChoice:
    """The pair predictor of a run, and the reason for it as a phrase for one line of output."""

    kind: str
    reason: str


def choose_predictor(
    config: SlamConfig,
    accelerator: Callable[[], str] | None = None,
    has_weights: Callable[[str], bool] | None = None,
) -> PredictorChoice:
    """Resolve `auto`: a network if there is a GPU and the weights are on this machine, otherwise local features.

    The reason states how to get the other predictor.

    Args:
        accelerator: returns the accelerator of this machine: 'cuda', 'small-cuda', 'mps' or ''. For tests.
        has_weights: returns whether weights (a released name, a hub id or a path) are on this machine. For tests.

    Raises:
        ConfigError: weights are set for a predictor without weights, a weight file and random weights are both set, or
            the network is asked for and PyTorch is not installed.
    """
    choice = _choose(config, accelerator or find_accelerator, has_weights or _has_weights)
    _check_weights(config, choice)
    if choice.kind in NETWORKS:
        pytorch.expect_installed(f"the predictor {choice.kind}")
    return replace(choice, reason=choice.reason + _origin_of_weights(config, choice))


def _has_weights(source: str) -> bool:
    """Whether a checkpoint is on this machine. Raises WeightsError when a given path is not a checkpoint."""
    from relocalizer.predictors.checkpoints import locate

    return locate(source) is not None


def _check_weights(config: SlamConfig, choice: PredictorChoice) -> None:
    settings = config.predictor
    if choice.kind == "geometric" and (settings.weights or settings.random_weights):
        key = "random_weights" if settings.random_weights else "weights"
        raise ConfigError(
            f"predictor.{key}: the geometric predictor takes none; add --predictor reloc3r-512 or reloc3r-224"
        )
    if settings.weights and settings.random_weights:
        raise ConfigError(
            f"predictor.random_weights: predictor.weights names {settings.weights} too; leave one of them out"
        )


def _origin_of_weights(config: SlamConfig, choice: PredictorChoice) -> str:
    """What the metadata beside own weights say about them, as a further phrase; empty without any."""
    from relocalizer.predictors.checkpoints import locate, training_note

    if choice.kind not in NETWORKS or not config.predictor.weights or config.predictor.random_weights:
        return ""
    try:
        checkpoint = locate(config.predictor.weights)
    except WeightsError:  # said when they are loaded
        return ""
    note = training_note(checkpoint) if checkpoint is not None else ""
    return f"; weights {note}" if note else ""


_NETWORK_BY_ACCELERATOR = {
    "cuda": ("reloc3r-512", "there is a CUDA card"),
    "small-cuda": ("reloc3r-224", "there is a CUDA card with little memory"),
    "mps": ("reloc3r-224", "this is an Apple chip"),
}


def _choose(config: SlamConfig, accelerator: Callable[[], str], has_weights: Callable[[str], bool]) -> PredictorChoice:
    settings = config.predictor
    if settings.kind != "auto":
        return PredictorChoice(settings.kind, "as asked")
    card = accelerator()
    if card not in _NETWORK_BY_ACCELERATOR:
        return PredictorChoice("geometric", "auto: without a graphics card one Reloc3r pair costs seconds")
    kind, why = _NETWORK_BY_ACCELERATOR[card]
    if not pytorch.is_installed():
        missing = f"{why}, but PyTorch is not installed: {pytorch.HOW_TO_INSTALL} brings it"
        return PredictorChoice("geometric", f"auto: {missing}")
    if settings.random_weights or has_weights(settings.weights or kind):
        return PredictorChoice(kind, f"auto: {why}; --predictor geometric takes local features instead")
    missing_weights = f"{why}, but the weights of {kind} are not on this machine: slam weights fetch {kind} brings them"
    return PredictorChoice("geometric", f"auto: {missing_weights}")


def with_predictor(config: SlamConfig, kind: str) -> SlamConfig:
    """Copy of the configuration with the predictor set to `kind`, so that it reproduces the run on any machine."""
    return config.model_copy(update={"predictor": config.predictor.model_copy(update={"kind": kind})})


def with_predictor_of(provenance: Provenance, config: SlamConfig) -> SlamConfig:
    """The configuration with `auto` resolved to the predictor of a map: only the predictor that made it can read it.

    Raises:
        MapError: the configuration sets another predictor, or trained weights for a map made with random weights.
            Raised here, before weights are fetched or files are written.
    """
    kind, _, random = provenance.predictor.partition(" ")  # the name is followed by a note for random weights
    if kind not in plugins.known():
        return config
    settings = config.predictor
    if settings.kind not in ("auto", kind):
        raise MapError(
            f"map: made by predictor {kind}, this is {settings.kind}; add --predictor {kind}, or make it anew"
        )
    if random and not settings.random_weights:
        raise MapError("map: made with random weights, which mean nothing; add --random-weights, or make it anew")
    return with_predictor(config, kind)


def with_runtime(config: SlamConfig, choice: PredictorChoice) -> tuple[SlamConfig, PredictorChoice]:
    """The configuration with the network's backend and precision resolved; measurements are added to the reason.

    Measures only if the configuration sets backend `auto` or precision `fastest`.

    Raises:
        ConfigError: the backend or the precision is not available on this machine.
    """
    settings = config.predictor
    if choice.kind not in NETWORKS or (settings.backend != "auto" and settings.precision != "fastest"):
        return config, choice
    from relocalizer.network.computation import choose_computation
    from relocalizer.predictors.preprocessing import TRAINED_SIZES

    [size, *_] = TRAINED_SIZES[224 if choice.kind == "reloc3r-224" else 512]
    found = choose_computation(
        device=settings.device, backend=settings.backend, precision=settings.precision, size=size
    )
    decided = {"backend": found.runtime.backend, "precision": found.runtime.precision}
    config = config.model_copy(update={"predictor": settings.model_copy(update=decided)})
    return config, replace(choice, reason=f"{choice.reason}; {found}")


def decide(config: SlamConfig, provenance: Provenance | None = None) -> tuple[SlamConfig, PredictorChoice]:
    """The configuration with predictor, backend and precision resolved, and the reason.

    Args:
        provenance: provenance of the map in which the run starts; it determines the predictor.

    Raises:
        MapError, ConfigError: as `with_predictor_of`, `choose_predictor` and `with_runtime`.
    """
    if provenance is not None:
        config = with_predictor_of(provenance, config)
    choice = choose_predictor(config)
    if provenance is not None:
        choice = replace(choice, reason="the map's")
    return with_runtime(with_predictor(config, choice.kind), choice)


def find_accelerator() -> str:
    """'cuda', 'small-cuda', 'mps' or ''. Queries the driver directly, because importing torch takes two seconds."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "mps"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    count, memory = ctypes.c_int(), ctypes.c_size_t()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return ""
    device = ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return "cuda" if memory.value >= _SMALL_CARD_BYTES else "small-cuda"

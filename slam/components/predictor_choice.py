"""From a configuration to a `Slam`, and from a source to a finished run: wiring, the loop, timing, Ctrl-C."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from relocalizer.errors import ConfigError, MapError
from relocalizer.predictors import plugins
from slam.config.schema import SlamConfig

if TYPE_CHECKING:
    from relocalizer.maps.reference_map import Provenance

# Below this much memory a card runs the smaller network more comfortably than the larger one.
_SMALL_CARD_BYTES = 6 * 2**30
NETWORKS = ("reloc3r-512", "reloc3r-224")
RANDOM_WEIGHTS = "random weights: the poses mean nothing, only the cost is real"


@dataclass(frozen=True, slots=True)
class PredictorChoice:
    """Which pair predictor a run uses, and why, in words for one line of output."""

    kind: str
    reason: str


def choose_predictor(
    config: SlamConfig,
    accelerator: Callable[[], str] | None = None,
    has_weights: Callable[[str], bool] | None = None,
) -> PredictorChoice:
    """Turn `auto` into a predictor: a network whose weights are here where a graphics card makes it cheap, else local
    features. The reason says how to get the other one.

    Args:
        accelerator: says which accelerator there is: 'cuda', 'small-cuda', 'mps' or ''. For tests.
        has_weights: says whether weights (a released name, a hub id or a path) are on this machine. For tests.

    Raises:
        ConfigError: weights were asked for, of a predictor that takes none, or both of a file and random.
    """
    choice = _choose(config, accelerator or find_accelerator, has_weights or _has_weights)
    _check_weights(config, choice)
    return choice


def _has_weights(source: str) -> bool:
    """Whether a checkpoint is on this machine. Raises WeightsError when a path holds none."""
    from relocalizer.predictors.checkpoints import locate

    return locate(source) is not None


def _check_weights(config: SlamConfig, choice: PredictorChoice) -> None:
    asked = config.predictor
    if choice.kind == "geometric" and (asked.weights or asked.random_weights):
        key = "random_weights" if asked.random_weights else "weights"
        raise ConfigError(
            f"predictor.{key}: the geometric predictor takes none; add --predictor reloc3r-512 or reloc3r-224"
        )
    if asked.weights and asked.random_weights:
        raise ConfigError(
            f"predictor.random_weights: predictor.weights names {asked.weights} too; leave one of them out"
        )


_CARDS = {
    "cuda": ("reloc3r-512", "there is a CUDA card"),
    "small-cuda": ("reloc3r-224", "there is a CUDA card with little memory"),
    "mps": ("reloc3r-224", "this is an Apple chip"),
}


def _choose(config: SlamConfig, accelerator: Callable[[], str], has_weights: Callable[[str], bool]) -> PredictorChoice:
    asked = config.predictor
    if asked.kind != "auto":
        return PredictorChoice(asked.kind, "as asked")
    card = accelerator()
    if card not in _CARDS:
        return PredictorChoice("geometric", "auto: without a graphics card one Reloc3r pair costs seconds")
    kind, why = _CARDS[card]
    if asked.random_weights or has_weights(asked.weights or kind):
        return PredictorChoice(kind, f"auto: {why}; --predictor geometric takes local features instead")
    absent = f"{why}, but the weights of {kind} are not on this machine: slam weights fetch {kind} brings them"
    return PredictorChoice("geometric", f"auto: {absent}")


def with_predictor(config: SlamConfig, kind: str) -> SlamConfig:
    """The same configuration with the predictor decided, so that saving it repeats the run anywhere."""
    return config.model_copy(update={"predictor": config.predictor.model_copy(update={"kind": kind})})


def with_predictor_of(provenance: Provenance, config: SlamConfig) -> SlamConfig:
    """The configuration with `auto` decided by a map: no other predictor than the one that made it can read it.

    Raises:
        MapError: another one was asked for, or trained weights of a map of random ones. Said here, before weights are
            fetched and anything is made.
    """
    kind, _, random = provenance.predictor.partition(" ")  # random weights have words after it
    if kind not in plugins.known():
        return config
    asked = config.predictor
    if asked.kind not in ("auto", kind):
        raise MapError(f"map: made by predictor {kind}, this is {asked.kind}; add --predictor {kind}, or make it anew")
    if random and not asked.random_weights:
        raise MapError("map: made with random weights, which mean nothing; add --random-weights, or make it anew")
    return with_predictor(config, kind)


def with_runtime(config: SlamConfig, choice: PredictorChoice) -> tuple[SlamConfig, PredictorChoice]:
    """The same with the network's backend and precision decided; what was measured for it is added to the reason.

    Nothing is measured unless the configuration asks for the quickest.

    Raises:
        ConfigError: the backend or the precision cannot be had here.
    """
    asked = config.predictor
    if choice.kind not in NETWORKS or (asked.backend != "auto" and asked.precision != "fastest"):
        return config, choice
    from relocalizer.network.computation import choose_computation
    from relocalizer.predictors.preprocessing import TRAINED_SIZES

    [size, *_] = TRAINED_SIZES[224 if choice.kind == "reloc3r-224" else 512]
    found = choose_computation(device=asked.device, backend=asked.backend, precision=asked.precision, size=size)
    decided = {"backend": found.runtime.backend, "precision": found.runtime.precision}
    config = config.model_copy(update={"predictor": asked.model_copy(update=decided)})
    return config, replace(choice, reason=f"{choice.reason}; {found}")


def decide(config: SlamConfig, provenance: Provenance | None = None) -> tuple[SlamConfig, PredictorChoice]:
    """The configuration with predictor, backend and precision decided, and why.

    Args:
        provenance: of the map that the run starts in; its predictor is taken.

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
    """'cuda', 'small-cuda', 'mps' or ''. Asks the driver: importing torch to ask it costs two seconds."""
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

"""Who computes the network, and in which precision: as asked, or what is measured to be quickest.

Nothing is measured unless "fastest" or "auto" asks for it. Then one image goes through one layer of the encoder, at
the sizes of the released network, in every way that is allowed and to be had here: about a second in PyTorch, some more
to make OpenVINO's graphs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

import torch

from relocalizer.errors import ConfigError
from relocalizer.network.int8 import use_dynamic_int8
from relocalizer.network.model import Architecture, Reloc3r, use_matmul_dtype
from relocalizer.network.openvino_network import OpenVinoNetwork
from relocalizer.network.precision import choose_device, onednn_keeps_float32, onednn_products

Backend = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8-dynamic", "fastest"]
Network = Reloc3r | OpenVinoNetwork

PROBE = Architecture(enc_depth=1, dec_depth=1)
PROBE_REPEATS = 3
HOPELESS = 3.0  # a way that takes this many times as long as the best is not run a second time
# A way further down the list, with fewer digits or graphs to make, must take less than this share of the time.
WORTH_IT = 0.8
WARNING_INT8 = (
    "int8-dynamic: products in 8 bits move poses by about 3 degrees, and by tens where the network is unsure; "
    "for trying out, not for results"
)


@dataclass(frozen=True, slots=True)
class Runtime:
    """A library and a precision that products can be computed in."""

    backend: str
    precision: str

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"


@dataclass(frozen=True, slots=True)
class RuntimeChoice:
    """What computes the network.

    Attributes:
        device: "cpu", "cuda:0" and the like.
        way: the library and the precision.
        measured: seconds an image takes in one layer of the encoder, by way; empty when nothing was measured.
    """

    device: torch.device
    way: Runtime
    measured: dict[Runtime, float]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights of the products as they are loaded: OpenVINO and 8 bits are made from whole ones."""
        sixteen_bits = {"float16": torch.float16, "bfloat16": torch.bfloat16}
        return sixteen_bits.get(self.way.precision, torch.float32) if self.way.backend == "torch" else torch.float32

    def __str__(self) -> str:
        parts = ", ".join(f"{way} {1e3 * seconds:.0f} ms" for way, seconds in self.measured.items())
        return f"{self.way} on {self.device}" + (f", measured in one layer: {parts}" if parts else "")


def choose_computation(
    *, device: str = "auto", backend: str = "torch", precision: str = "auto", size: tuple[int, int] = (224, 224)
) -> RuntimeChoice:
    """Decide once what computes the network.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        backend: "torch"; "openvino", which runs on the CPU; "auto" takes the quicker one, OpenVINO if it is installed.
        precision: of the products. "auto" is float32, or float16 on CUDA, where the published evaluation takes it too.
            "fastest" takes the quickest of those that poses survive: float32, bfloat16 and float16.
        size: (width, height) of the images that ways are measured on.

    Raises:
        ConfigError: no such backend or precision, or OpenVINO is not installed or cannot do what is asked of it.
        DeviceError: the device is not there.
    """
    _require_known(backend, precision)
    if backend == "openvino" and device not in ("auto", "cpu"):
        raise ConfigError(f"backend openvino: runs on the CPU, not on {device}; use device cpu, or backend torch")
    chosen = choose_device("cpu" if backend == "openvino" else device)
    ways = list(_allowed(chosen, backend, precision))
    if len(ways) == 1:
        return RuntimeChoice(chosen, ways[0], {})
    measured = measure_ways(ways, chosen, size)
    return RuntimeChoice(chosen, fastest(measured), measured)


def available_runtimes(device: torch.device) -> list[Runtime]:
    """All that can be had here, 8 bits included, less float16 on a CPU, which computes it many times slower."""
    names = ["float32", "bfloat16", "int8-dynamic"] if device.type == "cpu" else ["float16", "float32", "bfloat16"]
    ways = [Runtime("torch", name) for name in names]
    return ways + [Runtime("openvino", name) for name in ("float32", "bfloat16") if _openvino_is_here(device)]


def network_of(model: Reloc3r, computation: RuntimeChoice) -> Network:
    """What computes a model that was loaded to the device and in the dtype of the computation.

    The weights of an int8 network take the place of the model's.
    """
    if computation.way.backend == "openvino":
        products = torch.bfloat16 if computation.way.precision == "bfloat16" else torch.float32
        return OpenVinoNetwork(model, products)
    if computation.way.precision == "int8-dynamic":
        use_dynamic_int8(model)
    return model


def fastest(measured: dict[Runtime, float]) -> Runtime:
    """The quickest way, or one before it in the order of measuring that takes hardly longer."""
    best = min(measured.values())
    return next(way for way, seconds in measured.items() if WORTH_IT * seconds <= best)


def measure_ways(ways: list[Runtime], device: torch.device, size: tuple[int, int]) -> dict[Runtime, float]:
    """Seconds an image of a size (width, height) takes in one layer of the encoder, by way, best of a few runs."""
    images = torch.zeros(1, 3, size[1], size[0], device=device)
    found: dict[Runtime, float] = {}
    with torch.inference_mode(), onednn_products(device.type == "cpu" and onednn_keeps_float32()):
        for way in ways:
            best_so_far = min(found.values(), default=float("inf"))
            network = _probe_of(way, device)
            if way.backend == "openvino":
                network.encode(images)  # makes the graphs, which is no part of the time
            found[way] = _best_of(network, images, best_so_far=best_so_far)
    return found


def _require_known(backend: str, precision: str) -> None:
    for name, value, known in (("backend", backend, get_args(Backend)), ("precision", precision, get_args(Precision))):
        if value not in known:
            raise ConfigError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if backend == "openvino" and precision in ("float16", "int8-dynamic"):
        raise ConfigError(f"precision: OpenVINO computes in float32 or bfloat16, not in {precision}")


def _allowed(device: torch.device, backend: str, precision: str) -> Iterator[Runtime]:
    """In order of preference: more digits first, then what needs no graphs."""
    default = "float16" if device.type == "cuda" else "float32"
    precisions = {"auto": [default], "fastest": ["float32", "bfloat16", "float16"]}.get(precision, [precision])
    with_openvino = backend == "openvino" or (backend == "auto" and _openvino_is_here(device))
    for name in precisions:
        if backend != "openvino":
            yield Runtime("torch", name)
        if with_openvino and name in ("float32", "bfloat16"):
            yield Runtime("openvino", name)


def _openvino_is_here(device: torch.device) -> bool:
    return device.type == "cpu" and find_spec("openvino") is not None


def _probe_of(way: Runtime, device: torch.device) -> Network:
    with torch.device("meta"):
        model = Reloc3r(PROBE)
    # Their values do not matter, as long as no result is so small or so large that it costs extra.
    state = {key: torch.full(value.shape, 0.01) for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    computation = RuntimeChoice(device, way, {})
    use_matmul_dtype(model, computation.dtype)
    return network_of(model.to(device).eval(), computation)


def _best_of(network: Network, images: torch.Tensor, *, best_so_far: float) -> float:
    best = float("inf")
    for _ in range(PROBE_REPEATS + 1):  # the first call makes tables and is never the best
        start = time.perf_counter()
        # Its answer in memory is the end of the work, on whatever device.
        float(network.encode(images).features[0, 0, 0])
        best = min(best, time.perf_counter() - start)
        if best > HOPELESS * best_so_far:
            break
    return best

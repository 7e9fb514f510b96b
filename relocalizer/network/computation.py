"""Choice of the runtime (library and precision) of the network: as configured, or the fastest by measurement.

Runtimes are only measured for "fastest" and "auto". One image is then processed by one encoder layer, at the sizes of
the released network, in every allowed and available runtime. This takes about a second in PyTorch, and longer with
OpenVINO to compile its graphs.
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

PROBE = Architecture(enc_depth=1, dec_depth=1)  # the network that is measured
PROBE_REPEATS = 3  # number of measurements per runtime
HOPELESS = 3.0  # ratio to the best time above which a runtime is not measured again
WORTH_IT = 0.8  # maximum time ratio at which a less exact or slower-starting runtime is preferred
WARNING_INT8 = (
    "int8-dynamic: products in 8 bits move poses by about 3 degrees, and by tens where the network is unsure; "
    "for trying out, not for results"
)


@dataclass(frozen=True, slots=True)
class Runtime:
    """A library and a precision for the products of the network."""

    backend: str
    precision: str

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"


@dataclass(frozen=True, slots=True)
class RuntimeChoice:
    """The chosen device and runtime of the network.

    Attributes:
        device: the device, for example "cpu" or "cuda:0".
        runtime: the library and the precision.
        measured: time per image and encoder layer of the measured runtimes, seconds; empty without measurement.
    """

    device: torch.device
    runtime: Runtime
    measured: dict[Runtime, float]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the weights are loaded; OpenVINO and int8 networks are built from float32 weights."""
        sixteen_bits = {"float16": torch.float16, "bfloat16": torch.bfloat16}
        is_torch = self.runtime.backend == "torch"
        return sixteen_bits.get(self.runtime.precision, torch.float32) if is_torch else torch.float32

    def __str__(self) -> str:
        parts = ", ".join(f"{runtime} {1e3 * seconds:.0f} ms" for runtime, seconds in self.measured.items())
        return f"{self.runtime} on {self.device}" + (f", measured in one layer: {parts}" if parts else "")


def choose_computation(
    *, device: str = "auto", backend: str = "torch", precision: str = "auto", size: tuple[int, int] = (224, 224)
) -> RuntimeChoice:
    """Choose the device and the runtime of the network.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        backend: "torch"; "openvino", which runs on the CPU; "auto" is the faster of both, if OpenVINO is installed.
        precision: precision of the products. "auto" is float32, or float16 on CUDA as in the published evaluation.
            "fastest" is the fastest of the precisions with accurate poses: float32, bfloat16 and float16.
        size: (width, height) of the images used in measurements.

    Raises:
        ConfigError: unknown backend or precision, or OpenVINO is not installed or does not support it.
        DeviceError: the device is not available.
    """
    _require_known(backend, precision)
    if backend == "openvino" and device not in ("auto", "cpu"):
        raise ConfigError(f"backend openvino: runs on the CPU, not on {device}; use device cpu, or backend torch")
    chosen = choose_device("cpu" if backend == "openvino" else device)
    runtimes = list(_allowed(chosen, backend, precision))
    if len(runtimes) == 1:
        return RuntimeChoice(chosen, runtimes[0], {})
    measured = measure_runtimes(runtimes, chosen, size)
    return RuntimeChoice(chosen, fastest(measured), measured)


def available_runtimes(device: torch.device) -> list[Runtime]:
    """All runtimes available on a device, including int8, and without float16 on a CPU, which is many times slower."""
    names = ["float32", "bfloat16", "int8-dynamic"] if device.type == "cpu" else ["float16", "float32", "bfloat16"]
    runtimes = [Runtime("torch", name) for name in names]
    return runtimes + [Runtime("openvino", name) for name in ("float32", "bfloat16") if _openvino_is_here(device)]


def network_of(model: Reloc3r, computation: RuntimeChoice) -> Network:
    """The network for a runtime, from a model loaded on its device and in its dtype.

    For int8 the weights of the model are replaced in place.
    """
    if computation.runtime.backend == "openvino":
        products = torch.bfloat16 if computation.runtime.precision == "bfloat16" else torch.float32
        return OpenVinoNetwork(model, products)
    if computation.runtime.precision == "int8-dynamic":
        use_dynamic_int8(model)
    return model


def fastest(measured: dict[Runtime, float]) -> Runtime:
    """The fastest runtime, or an earlier one in the order of preference that is only slightly slower."""
    best = min(measured.values())
    return next(runtime for runtime, seconds in measured.items() if WORTH_IT * seconds <= best)


def measure_runtimes(runtimes: list[Runtime], device: torch.device, size: tuple[int, int]) -> dict[Runtime, float]:
    """Minimum time per runtime of one encoder layer for one image of a size (width, height), seconds."""
    images = torch.zeros(1, 3, size[1], size[0], device=device)
    found: dict[Runtime, float] = {}
    with torch.inference_mode(), onednn_products(device.type == "cpu" and onednn_keeps_float32()):
        for runtime in runtimes:
            best_so_far = min(found.values(), default=float("inf"))
            network = _probe_of(runtime, device)
            if runtime.backend == "openvino":
                network.encode(images)  # compiles the graphs, which is excluded from the time
            found[runtime] = _best_of(network, images, best_so_far=best_so_far)
    return found


def _require_known(backend: str, precision: str) -> None:
    for name, value, known in (("backend", backend, get_args(Backend)), ("precision", precision, get_args(Precision))):
        if value not in known:
            raise ConfigError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if backend == "openvino" and precision in ("float16", "int8-dynamic"):
        raise ConfigError(f"precision: OpenVINO computes in float32 or bfloat16, not in {precision}")


def _allowed(device: torch.device, backend: str, precision: str) -> Iterator[Runtime]:
    """Allowed runtimes in order of preference: higher precision first, then runtimes without compilation."""
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


def _probe_of(runtime: Runtime, device: torch.device) -> Network:
    with torch.device("meta"):
        model = Reloc3r(PROBE)
    # The values are arbitrary but avoid denormal and infinite results, which would affect the time.
    state = {key: torch.full(value.shape, 0.01) for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    computation = RuntimeChoice(device, runtime, {})
    use_matmul_dtype(model, computation.dtype)
    return network_of(model.to(device).eval(), computation)


def _best_of(network: Network, images: torch.Tensor, *, best_so_far: float) -> float:
    best = float("inf")
    for _ in range(PROBE_REPEATS + 1):  # one more, because the first call computes tables
        start = time.perf_counter()
        # Reading a result waits for the end of the computation on any device.
        float(network.encode(images).features[0, 0, 0])
        best = min(best, time.perf_counter() - start)
        if best > HOPELESS * best_so_far:
            break
    return best

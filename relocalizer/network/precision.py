"""Where the network runs and in which precision: decided once, by what is there and what is measured.

float32 is the default on a CPU, since it alone gives the reference's numbers. 16-bit products are taken on CUDA,
where the reference takes them too, and elsewhere on request. Whether a CPU gains from them is measured: many
compute 16-bit numbers slower than 32-bit ones.

A CPU has two libraries for float32 products. PyTorch uses oneDNN only where it is told that fewer digits will do,
and on some CPUs oneDNN then really drops digits, on others it computes in full, up to twice as fast as the
default. Which of the two holds is found by comparing one product with its exact value.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from relocalizer.errors import DeviceError

Precision = Literal["auto", "exact", "fast", "float32", "bfloat16", "float16"]

PROBE_TOKENS, PROBE_WIDTH, PROBE_HIDDEN = 196, 1024, 4096  # the largest product of an encoder block at 224
PROBE_REPEATS = 5
WORTH_IT = 0.8  # 16-bit products must take less than this share of the time to be worth their digits
# oneDNN's float32 sums end 2 to 3 times as far from the exact product as the default's; bfloat16's 1000 times.
SAME_DIGITS = 10.0


@dataclass(frozen=True, slots=True)
class Probe:
    """Seconds one large product takes in each precision on a device, best of a few."""

    device: str
    seconds: dict[str, float]

    def __str__(self) -> str:
        parts = (f"{name} {seconds * 1e3:.2f} ms" for name, seconds in self.seconds.items())
        return f"{self.device}: " + ", ".join(parts)


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, else Apple's GPU, else the CPU.

    Raises:
        DeviceError: no such device, or it is not on this machine.
    """
    if str(name) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r}: expected auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name}: this machine has {torch.cuda.device_count()} CUDA devices that PyTorch "
            f"{torch.__version__} can use; use --device cpu, or install a PyTorch built for CUDA"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device mps: there is no Apple GPU that PyTorch can use; use --device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device {name!r}: expected auto, cpu, cuda, cuda:N or mps")
    return device


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of the transformer's products.

    "auto" and "exact" mean float32 except that "auto" takes float16 on CUDA; "fast" takes the quickest that was
    measured to be clearly quicker than float32.
    """
    if precision == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if precision == "exact":
        return torch.float32
    if precision == "fast":
        return fastest(measure_products(device))
    named: torch.dtype = getattr(torch, precision)
    return named


def fastest(probe: Probe) -> torch.dtype:
    """The quickest dtype of a probe, float32 unless another is clearly quicker."""
    name = min(probe.seconds, key=lambda n: probe.seconds[n])
    if probe.seconds[name] > WORTH_IT * probe.seconds["float32"]:
        return torch.float32
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def measure_products(device: torch.device) -> Probe:
    """Time one product of an encoder block in every precision."""
    # float16 products on a CPU are emulated and take long enough to notice: not even tried.
    names = ["float32", "bfloat16"] + ["float16"] * (device.type != "cpu")
    return Probe(str(device), {name: _seconds_of_product(device, getattr(torch, name)) for name in names})


def onednn_keeps_float32() -> bool:
    """Whether oneDNN computes float32 products on this CPU with the digits of float32. The same on every call."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(PROBE_TOKENS, PROBE_WIDTH, generator=generator)
    weight = torch.randn(PROBE_WIDTH, PROBE_WIDTH, generator=generator)
    exact = F.linear(tokens.double(), weight.double())
    default = float((F.linear(tokens, weight) - exact).abs().max())
    with onednn_products():
        found = float((F.linear(tokens, weight) - exact).abs().max())
    return found <= SAME_DIGITS * default


@contextmanager
def onednn_products(enabled: bool = True) -> Iterator[None]:
    """Let oneDNN compute the float32 products inside, for the whole process; the setting before comes back after."""
    if not enabled:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _seconds_of_product(device: torch.device, dtype: torch.dtype) -> float:
    tokens = torch.ones(PROBE_TOKENS, PROBE_WIDTH, device=device, dtype=dtype)
    weight = torch.ones(PROBE_HIDDEN, PROBE_WIDTH, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(PROBE_REPEATS + 1):  # the first call compiles and is never the best
        start = time.perf_counter()
        F.linear(tokens, weight)
        _wait_for(device)
        best = min(best, time.perf_counter() - start)
    return best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

"""Where the network runs, and which of a CPU's libraries computes its float32 products.

A CPU has two libraries for float32 products. PyTorch uses oneDNN only where it is told that fewer digits will do,
and on some CPUs oneDNN then really drops digits, on others it computes in full, up to twice as fast as the
default. Which of the two holds is found by comparing one product with its exact value.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from relocalizer.errors import DeviceError

PROBE_TOKENS, PROBE_WIDTH = 196, 1024  # of an encoder block at 224
# oneDNN's float32 sums end 2 to 3 times as far from the exact product as the default's; bfloat16's 1000 times.
SAME_DIGITS = 10.0


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
            f"{torch.__version__} can use; use --set predictor.device=cpu, or install a PyTorch built for CUDA"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device mps: there is no Apple GPU that PyTorch can use; use --set predictor.device=cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device {name!r}: expected auto, cpu, cuda, cuda:N or mps")
    return device


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

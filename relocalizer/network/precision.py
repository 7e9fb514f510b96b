"""Device selection, and the CPU library for float32 products.

There are two libraries for float32 products on a CPU. PyTorch uses oneDNN only if reduced precision is allowed. On some
CPUs oneDNN then reduces the precision; on others it computes in full precision, up to twice as fast as the default
library. A comparison of one product with its exact value decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from relocalizer.errors import DeviceError

PROBE_TOKENS, PROBE_WIDTH = 196, 1024  # sizes of the test product, those of an encoder block at 224
# Maximum ratio of oneDNN's error to that of the default library for float32: it is 2 to 3, and 1000 with bfloat16.
SAME_DIGITS = 10.0


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" is CUDA if available, else an Apple GPU, else the CPU.

    Raises:
        DeviceError: the device is unknown or not available.
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
    """Whether oneDNN computes float32 products on this CPU in full precision. Deterministic."""
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
    """Use oneDNN for float32 products within the context, in the whole process; the old setting is restored."""
    if not enabled:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

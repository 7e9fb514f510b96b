"""Linear layers in 8 bits, for trying out: half of the products' time or less, and poses that are off by degrees.

Weights are quantized once, with a scale for every output; what comes in is quantized anew in every call, by its own
range ("dynamic" quantization). Norms, sums, attention, positions and the pose head stay in float32.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from relocalizer.errors import ConfigError
from relocalizer.network.layers import Linear
from relocalizer.network.model import Reloc3r

BITS = 127.0  # largest of the whole numbers a weight becomes
SMALLEST = 1e-12


class Int8Linear(nn.Module):
    """A linear layer with its weight in 8 bits, on the CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / BITS).clamp(min=SMALLEST)
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with warnings.catch_warnings():
            # Marked for removal after the releases this project allows.
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch.quantize_per_channel(weight, scale.double(), zeros, 0, torch.qint8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed = torch.ops.quantized.linear_prepack(rounded, bias)

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = torch.ops.quantized.linear_dynamic(input.float(), self._packed, reduce_range=False)
        return out


def use_dynamic_int8(model: Reloc3r) -> None:
    """Replace the linear layers of the transformer, in place; their float32 weights are let go.

    Raises:
        ConfigError: the model is not on the CPU, or this PyTorch has no such layers.
    """
    if model.enc_norm.weight.device.type != "cpu":
        raise ConfigError(f"precision int8-dynamic: runs on the CPU, not on {model.enc_norm.weight.device}")
    if "onednn" not in torch.backends.quantized.supported_engines:
        raise ConfigError("precision int8-dynamic: this PyTorch was built without oneDNN; choose another precision")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn"
    try:
        # Parents and names: a list of the layers themselves would keep their weights in memory.
        for parent, name in [(p, n) for p in model.modules() for n, c in p.named_children() if isinstance(c, Linear)]:
            setattr(parent, name, Int8Linear(getattr(parent, name)))
    finally:
        torch.backends.quantized.engine = before

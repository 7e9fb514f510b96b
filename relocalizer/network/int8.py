"""Dynamic int8 quantization of the linear layers (experimental): at most half of the time, but pose errors of degrees.

Weights are quantized once, with one scale per output; inputs are quantized in every call by their range. Norms, sums,
attention, positions and the pose head stay in float32.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from relocalizer.errors import ConfigError
from relocalizer.network.layers import Linear
from relocalizer.network.model import Reloc3r

BITS = 127.0  # largest quantized value
SMALLEST = 1e-12  # minimum quantization step


class Int8Linear(nn.Module):
    """A linear layer with its weight in 8 bits, on the CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / BITS).clamp(min=SMALLEST)
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with warnings.catch_warnings():
            # Deprecated, but available in all supported releases.
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch.quantize_per_channel(weight, scale.double(), zeros, 0, torch.qint8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed = torch.ops.quantized.linear_prepack(rounded, bias)

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = torch.ops.quantized.linear_dynamic(input.float(), self._packed, reduce_range=False)
        return out


def use_dynamic_int8(model: Reloc3r) -> None:
    """Replace the linear layers of the transformer in place; their float32 weights are released.

    Raises:
        ConfigError: the model is not on the CPU, or this PyTorch does not support such layers.
    """
    if model.enc_norm.weight.device.type != "cpu":
        raise ConfigError(f"precision int8-dynamic: runs on the CPU, not on {model.enc_norm.weight.device}")
    if "onednn" not in torch.backends.quantized.supported_engines:
        raise ConfigError("precision int8-dynamic: this PyTorch was built without oneDNN; choose another precision")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "onednn"
    try:
        # Parents and names, because a list of the layers would keep all their weights in memory.
        for parent, name in [(p, n) for p in model.modules() for n, c in p.named_children() if isinstance(c, Linear)]:
            setattr(parent, name, Int8Linear(getattr(parent, name)))
    finally:
        torch.backends.quantized.engine = before

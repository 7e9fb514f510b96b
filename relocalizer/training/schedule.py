"""What is trained, how fast: frozen parts, groups of the optimizer, and the learning rate over fractional epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from relocalizer.network.model import Reloc3r

Tuned = Literal["all", "decoder", "head", "confidence"]

# Prefixes of the parameters that are trained. "decoder" is the paper's: of the encoder only its last norm is trained.
TRAINED: dict[Tuned, tuple[str, ...]] = {
    "all": ("",),
    "decoder": ("enc_norm.", "decoder_embed.", "dec_blocks.", "dec_norm.", "pose_head."),
    "head": ("pose_head.",),
    "confidence": (),  # a head of its own, see `relocalizer.training.confidence`
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """Linear warm-up from zero, then half a cosine down to `final`; lengths in epochs, which may be fractions."""

    peak: float
    final: float
    warmup_epochs: float
    epochs: float

    def at(self, epoch: float) -> float:
        """The learning rate at a fractional epoch, counted from 0."""
        if epoch < self.warmup_epochs:
            return self.peak * epoch / self.warmup_epochs
        share = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-12)
        return self.final + (self.peak - self.final) / 2 * (1 + math.cos(math.pi * min(share, 1.0)))


def freeze(model: Reloc3r, tuned: Tuned) -> list[str]:
    """Freeze all parameters but those of the tuned part; returns the names of the trained ones."""
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(TRAINED[tuned]))
        if parameter.requires_grad:
            trained.append(name)
    return trained


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, object]]:
    """Groups of the trained parameters: biases and one-dimensional ones (gains of norms) do not decay."""
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    still = [p for name, p in trained if p.ndim <= 1 or name.endswith(".bias")]
    decaying = [p for name, p in trained if not (p.ndim <= 1 or name.endswith(".bias"))]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": still, "weight_decay": 0.0}]


def adamw(model: nn.Module, *, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW over the trained parameters; the learning rate is set before each step."""
    return torch.optim.AdamW(parameter_groups(model.named_parameters(), weight_decay), lr=0.0, betas=betas)

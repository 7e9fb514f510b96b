"""Layers of the network: rotary position embedding, attention, encoder and decoder blocks.

Attribute names are the keys of the released checkpoints. Tokens are (B, N, C) in row-major order of the
upright image's patch grid. The residual stream keeps the dtype of the tokens; a `Linear` computes in the
dtype of its weight, so 16-bit weights give 16-bit products between 32-bit norms and sums.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6  # epsilon used in training; torch's default of 1e-5 changes poses by 1e-4


class Grid(NamedTuple):
    """Patches of an upright image: rows and columns."""

    rows: int
    columns: int


class Rotary(NamedTuple):
    """Cosine and signed sine of every token and channel, (N, head width) float32 each."""

    cos: Tensor
    sin: Tensor


@lru_cache(maxsize=64)
def rotary_of_grid(grid: Grid, head_width: int, base: float, device: torch.device) -> Rotary:
    """The rotary table of the patches of a grid, with positions counted from 0."""
    # Tables are cached; creating them outside inference mode makes them usable in training, too.
    with torch.inference_mode(False):
        rows = torch.arange(grid.rows).repeat_interleave(grid.columns)
        columns = torch.arange(grid.columns).repeat(grid.rows)
        tables = rotary_of_positions(torch.stack([rows, columns], dim=1), head_width, base)
        return Rotary(*(table.to(device) for table in tables))


def rotary_of_positions(positions: Tensor, head_width: int, base: float) -> Rotary:
    """Rotary position embedding in two dimensions (Su et al. 2021, one half of the channels per axis).

    The first half of a head's channels is rotated by the row, the second by the column. In each half, channel
    k is paired with channel k + quarter, and the pair is rotated by `position * base ** (-k / quarter)`.

    Args:
        positions: (N, 2) integers, (row, column).
        head_width: number of channels per head, a multiple of 4.
    """
    quarter = head_width // 4
    # Double precision, because 16-bit tables have errors of up to 0.06 rad at the far end of a grid.
    frequencies = base ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = positions.to(torch.float64)[:, :, None] * frequencies  # (N, axis, quarter)
    cos, sin = angles.cos(), angles.sin()
    return Rotary(torch.stack([cos, cos], dim=2).flatten(1).float(), torch.stack([-sin, sin], dim=2).flatten(1).float())


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Apply the rotary embedding to heads x (B, N, heads, head width); the result is at least float32."""
    partner = x.view(*x.shape[:-1], 2, 2, x.shape[-1] // 4).flip(-2).flatten(-3)
    return x * rotary.cos[:, None] + partner * rotary.sin[:, None]


class Linear(nn.Linear):
    """A linear layer that computes in the dtype of its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.to(self.weight.dtype), self.weight, self.bias)


class PointwiseConv(nn.Conv2d):
    """A 1 x 1 convolution, as stored in the checkpoints; on tokens it is a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, kernel_size=1)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.flatten(1), self.bias)


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU in between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


def attend(q: Tensor, k: Tensor, v: Tensor, *, explicit: bool) -> Tensor:
    """Softmax attention over heads (B, N, heads, head width), concatenated to (B, N, C).

    `explicit` computes the attention matrix, as a baseline for the fused operator.
    """
    q, k, v = (x.to(v.dtype).transpose(1, 2) for x in (q, k, v))
    if explicit:
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        out = weights @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    joined: Tensor = out.transpose(1, 2).flatten(2)
    return joined


class SelfAttention(nn.Module):
    """Attention of every token of an image to all tokens of the same image."""

    explicit = False

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, x.shape[-1] // self.heads)).unbind(2)
        out: Tensor = self.proj(attend(rotate(q, rotary), rotate(k, rotary), v, explicit=self.explicit))
        return out


class CrossAttention(nn.Module):
    """Attention of every token of an image to the tokens of the other image."""

    explicit = False

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projq = Linear(width, width)
        self.projk = Linear(width, width)
        self.projv = Linear(width, width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, rotary: Rotary, memory_rotary: Rotary) -> Tensor:
        q, k, v = (
            project(tokens).unflatten(-1, (self.heads, x.shape[-1] // self.heads))
            for project, tokens in ((self.projq, x), (self.projk, memory), (self.projv, memory))
        )
        out: Tensor = self.proj(attend(rotate(q, rotary), rotate(k, memory_rotary), v, explicit=self.explicit))
        return out


class EncoderBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = SelfAttention(width, heads)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        x = x + self.attn(self.norm1(x), rotary)
        x = x + self.mlp(self.norm2(x))
        return x


class DecoderBlock(nn.Module):
    """A pre-norm transformer block with cross-attention to the other image's tokens before this layer."""

    def __init__(self, width: int, heads: int, hidden: int, *, norm_memory: bool) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = SelfAttention(width, heads)
        self.cross_attn = CrossAttention(width, heads)
        self.norm2 = layer_norm(width)
        self.norm3 = layer_norm(width)
        self.mlp = Mlp(width, hidden)
        self.norm_y = layer_norm(width) if norm_memory else nn.Identity()

    def forward(self, x: Tensor, memory: Tensor, rotary: Rotary, memory_rotary: Rotary) -> Tensor:
        x = x + self.attn(self.norm1(x), rotary)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(memory), rotary, memory_rotary)
        x = x + self.mlp(self.norm3(x))
        return x

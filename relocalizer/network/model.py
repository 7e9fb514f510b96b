"""Reloc3r: a network that estimates the relative pose of two images in both directions.

Dong et al., "Reloc3r: Large-Scale Training of Relative Camera Pose Regression for Generalizable, Fast, and
Accurate Visual Localization", CVPR 2025 (arXiv 2412.08376): a ViT encoder on each image, one decoder shared
by both sides with cross-attention between them, and a pose head on each side.

    image 1 -> encode --+-> decode side 1 -> head -> pose1 = 2_from_1
                          x  (cross-attention)
    image 2 -> encode --+-> decode side 2 -> head -> pose2 = 1_from_2

The translation of a pose is only a direction: its length is not supervised in training and is meaningless.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relocalizer.network.layers import (
    CrossAttention,
    DecoderBlock,
    EncoderBlock,
    Grid,
    Linear,
    PointwiseConv,
    Rotary,
    SelfAttention,
    layer_norm,
    rotary_of_grid,
)

ROW_NORM_FLOOR = 1e-12  # minimum divisor when normalizing the rows of the nine rotation numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Sizes of the network; the defaults are those of both released models.

    `img_size` is the image size in training, None when unknown; it affects neither tensors nor arithmetic.
    """

    img_size: int | None = None
    patch_size: int = 16
    enc_embed_dim: int = 1024
    enc_depth: int = 24
    enc_num_heads: int = 16
    dec_embed_dim: int = 768
    dec_depth: int = 12
    dec_num_heads: int = 12
    mlp_ratio: float = 4.0
    norm_im2_in_dec: bool = True
    rotary_base: float = 100.0

    def __post_init__(self) -> None:
        sides = ((self.enc_embed_dim, self.enc_num_heads), (self.dec_embed_dim, self.dec_num_heads))
        for width, heads in sides:
            if heads < 1 or width % (4 * heads):
                raise ValueError(f"width {width} does not split into {heads} heads of a multiple of 4 channels")
        if min(self.patch_size, self.enc_depth, self.dec_depth) < 1:
            raise ValueError("patch_size, enc_depth and dec_depth must be at least 1")
        if self.rotary_base <= 0 or self.mlp_ratio <= 0:
            raise ValueError("the base of the rotary positions and mlp_ratio must be positive")

    @property
    def head_hidden(self) -> int:
        """Width of the pose head."""
        return 4 * self.patch_size**2


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Encoded images of one size: features (B, N, enc_embed_dim), N = rows * columns."""

    features: Tensor
    grid: Grid

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, slots=True, eq=False)
class RawPose:
    """Output of a pose head: translation (B, 3) of meaningless length, and nine rotation numbers (B, 9).

    `pooled` (B, head_hidden) is the feature from which both were computed; None where the runtime does not return it.
    """

    translation: Tensor
    rotation9: Tensor
    pooled: Tensor | None = None

    def pose(self) -> Tensor:
        """Rigid transforms (B, 4, 4) with the unnormalized translation."""
        top = torch.cat([rotation_from_nine(self.rotation9), self.translation[:, :, None]], dim=2)
        bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(top), 1, 4)
        return torch.cat([top, bottom], dim=1)


class PatchEmbedding(nn.Module):
    """One token per square patch."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.proj(images.to(self.proj.weight.dtype))
        return out.flatten(2).transpose(1, 2)


class ResidualConv(nn.Module):
    """Residual block of three pointwise layers. The last ReLU is before the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.res_conv1 = PointwiseConv(width)
        self.res_conv2 = PointwiseConv(width)
        self.res_conv3 = PointwiseConv(width)

    def forward(self, x: Tensor) -> Tensor:
        change = F.relu(self.res_conv1(x))
        change = F.relu(self.res_conv2(change))
        return x + F.relu(self.res_conv3(change))


class PoseHead(nn.Module):
    """Pose regression from the tokens of one side: translation and nine rotation numbers; always in float32."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)
        self.res_conv = nn.ModuleList([ResidualConv(hidden), ResidualConv(hidden)])
        self.more_mlps = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.fc_t = nn.Linear(hidden, 3)
        self.fc_rot = nn.Linear(hidden, 9)

    def forward(self, tokens: Tensor) -> RawPose:
        x = self.proj(tokens)
        for block in self.res_conv:
            x = block(x)
        x = self.more_mlps(x.mean(dim=1))
        return RawPose(self.fc_t(x), self.fc_rot(x), x)


class Reloc3r(nn.Module):
    """The network. Images: float (B, 3, H, W) in [-1, 1], upright, H and W multiples of the patch size."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.patch_embed = PatchEmbedding(a.patch_size, a.enc_embed_dim)
        self.enc_blocks = nn.ModuleList(
            EncoderBlock(a.enc_embed_dim, a.enc_num_heads, int(a.enc_embed_dim * a.mlp_ratio))
            for _ in range(a.enc_depth)
        )
        self.enc_norm = layer_norm(a.enc_embed_dim)
        self.decoder_embed = Linear(a.enc_embed_dim, a.dec_embed_dim)
        self.dec_blocks = nn.ModuleList(
            DecoderBlock(
                a.dec_embed_dim,
                a.dec_num_heads,
                int(a.dec_embed_dim * a.mlp_ratio),
                norm_memory=a.norm_im2_in_dec,
            )
            for _ in range(a.dec_depth)
        )
        self.dec_norm = layer_norm(a.dec_embed_dim)
        self.pose_head = PoseHead(a.dec_embed_dim, a.head_hidden)

    def forward(self, view1: Tensor | Sequence[Tensor], view2: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(pose1, pose2), (B, 4, 4) each: pose2 is 1_from_2 and pose1 is 2_from_1.

        Args:
            view1, view2: (B, 3, H, W) each, or lists of B tensors (3, H, W) of different sizes.

        Raises:
            ValueError: the numbers of views differ, or an image size is not a multiple of the patch size.
        """
        if len(view1) != len(view2):
            raise ValueError(f"view1 holds {len(view1)} images, view2 {len(view2)}")
        if isinstance(view1, Tensor) and isinstance(view2, Tensor):
            return self.decode(*self._encode_views(view1, view2))
        return self._forward_mixed(list(view1), list(view2))

    def encode(self, images: Tensor) -> Tokens:
        """Encode images (B, 3, H, W), independent of their pairs.

        Raises:
            ValueError: there are not three channels, or the sides are not multiples of the patch size.
        """
        tokens = self.encode_without_norm(images)
        return Tokens(self.enc_norm(tokens.features), tokens.grid)

    def encode_without_norm(self, images: Tensor) -> Tokens:
        """`encode` without the last norm: what is fixed when patch embedding and encoder blocks are frozen.

        Raises:
            ValueError: as `encode`.
        """
        grid = self._grid_of(images)
        x = self.patch_embed(images).to(self.enc_norm.weight.dtype)
        rotary = self._encoder_rotary(grid, x.device)
        for block in self.enc_blocks:
            x = block(x, rotary)
        return Tokens(x, grid)

    def decode(self, tokens1: Tokens, tokens2: Tokens) -> tuple[Tensor, Tensor]:
        """(pose1, pose2), (B, 4, 4) each, of encoded images."""
        raw1, raw2 = self.decode_raw(tokens1, tokens2)
        return raw1.pose(), raw2.pose()

    def decode_raw(self, tokens1: Tokens, tokens2: Tokens, *, sides_together: bool = True) -> tuple[RawPose, RawPose]:
        """Raw outputs of the pose head for both sides, before the projection to rotations.

        Sides with equal grids run as one batch, unless `sides_together` is False, which is slower but equivalent.
        """
        side1, side2 = self.decode_features(tokens1, tokens2, sides_together=sides_together)
        return self.pose_head(side1), self.pose_head(side2)

    def decode_features(
        self, tokens1: Tokens, tokens2: Tokens, *, sides_together: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Inputs of the pose head for both sides, (B, N, dec_embed_dim) each."""
        side1, side2 = self._decode_sides(tokens1, tokens2, together=sides_together)
        return self.dec_norm(side1), self.dec_norm(side2)

    def decode_pose2(self, tokens1: Tokens, tokens2: Tokens) -> Tensor:
        """Only pose2, without the last layer and the head of side 1: 3 % less work, but without the check by pose1."""
        side1, side2 = self._decode_sides(tokens1, tokens2, layers=len(self.dec_blocks) - 1)
        rotary1, rotary2 = (self._decoder_rotary(t.grid, side1.device) for t in (tokens1, tokens2))
        side2 = self.dec_blocks[-1](side2, side1, rotary2, rotary1)
        raw: RawPose = self.pose_head(self.dec_norm(side2))
        return raw.pose()

    def _decode_sides(
        self, tokens1: Tokens, tokens2: Tokens, *, layers: int | None = None, together: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Both sides, (B, N, dec_embed_dim) each, after the first `layers` of the decoder (all by default)."""
        blocks = self.dec_blocks[:layers]
        x, y = (self.decoder_embed(t.features).to(self.dec_norm.weight.dtype) for t in (tokens1, tokens2))
        rotary1, rotary2 = (self._decoder_rotary(t.grid, x.device) for t in (tokens1, tokens2))
        if together and tokens1.grid == tokens2.grid:
            # The sides share their weights, so equal grids run as one batch.
            count = x.shape[0]  # unlike len(), this stays symbolic in an exported graph
            both = torch.cat([x, y])
            for block in blocks:
                both = block(both, torch.cat([both[count:], both[:count]]), rotary1, rotary1)
            return both[:count], both[count:]
        for block in blocks:
            x, y = block(x, y, rotary1, rotary2), block(y, x, rotary2, rotary1)
        return x, y

    def _encode_views(self, view1: Tensor, view2: Tensor) -> tuple[Tokens, Tokens]:
        if view1.shape != view2.shape:
            return self.encode(view1), self.encode(view2)
        both, count = self.encode(torch.cat([view1, view2])), len(view1)
        return Tokens(both.features[:count], both.grid), Tokens(both.features[count:], both.grid)

    def _forward_mixed(self, view1: list[Tensor], view2: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Pairs of images of different sizes; pairs of equal sizes run as one batch."""
        groups: dict[tuple[torch.Size, torch.Size], list[int]] = {}
        for index, (a, b) in enumerate(zip(view1, view2, strict=True)):
            groups.setdefault((a.shape, b.shape), []).append(index)
        pose1 = self.enc_norm.weight.new_empty(len(view1), 4, 4)
        pose2 = torch.empty_like(pose1)
        for members in groups.values():
            stacks = (torch.stack([views[index] for index in members]) for views in (view1, view2))
            pose1[members], pose2[members] = self(*stacks)
        return pose1, pose2

    def _grid_of(self, images: Tensor) -> Grid:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected (B, 3, H, W), got {tuple(images.shape)}")
        size, (height, width) = self.architecture.patch_size, images.shape[2:]
        if height < size or width < size or height % size or width % size:
            raise ValueError(f"images: sides must be multiples of {size}, got {width} x {height}")
        return Grid(height // size, width // size)

    def _encoder_rotary(self, grid: Grid, device: torch.device) -> Rotary:
        a = self.architecture
        return rotary_of_grid(grid, a.enc_embed_dim // a.enc_num_heads, a.rotary_base, device)

    def _decoder_rotary(self, grid: Grid, device: torch.device) -> Rotary:
        a = self.architecture
        return rotary_of_grid(grid, a.dec_embed_dim // a.dec_num_heads, a.rotary_base, device)


def rotation_from_nine(rotation9: Tensor) -> Tensor:
    """The rotations (B, 3, 3) nearest to nine numbers (B, 9), row-major, with each row scaled to unit length.

    Levinson et al., "An Analysis of SVD for Deep Rotation Estimation", NeurIPS 2020. In double precision.
    """
    U, _, Vt = _svd_of_nine(rotation9)
    sign = torch.linalg.det(U @ Vt)
    flip = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], dim=1)
    rotation: Tensor = (U * flip[:, None, :] @ Vt).to(rotation9)
    return rotation


def rotation_margin(rotation9: Tensor) -> Tensor:
    """SVD margin (B,) of nine rotation numbers (B, 9): 2 with orthonormal rows, 0 for an undetermined rotation.

    It is the sum of the two smallest singular values, the last one with the sign of the determinant. The sensitivity
    of the rotation to the nine numbers is its inverse.
    """
    U, S, Vt = _svd_of_nine(rotation9)
    margin: Tensor = (S[:, 1] + torch.linalg.det(U @ Vt) * S[:, 2]).to(rotation9)
    return margin


def _svd_of_nine(rotation9: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Apple GPUs support neither double precision nor the SVD.
    device = torch.device("cpu") if rotation9.device.type == "mps" else rotation9.device
    rows = rotation9.to(device=device, dtype=torch.float64).view(-1, 3, 3)
    U, S, Vt = torch.linalg.svd(F.normalize(rows, dim=2, eps=ROW_NORM_FLOOR))
    return U, S, Vt


def use_explicit_attention(model: Reloc3r, explicit: bool = True) -> None:
    """Compute attention matrices explicitly instead of by the fused operator: equivalent but slower, as a baseline."""
    for module in model.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.explicit = explicit


def use_matmul_dtype(model: Reloc3r, dtype: torch.dtype) -> None:
    """Set the dtype of the transformer's products; norms, sums, rotary tables and pose head stay float32.

    Applied in place. Converting back to float32 does not restore the precision.
    """
    for module in model.modules():
        if isinstance(module, Linear | PatchEmbedding):
            module.to(dtype)

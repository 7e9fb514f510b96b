"""The network over pairs of mixed sizes, from the point up to which it is frozen: images, tokens or decoded features.

What lies before that point has no gradient and can be cached on disk; what lies behind it is a module of its own, so
that it can be wrapped for several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from relocalizer.network.layers import Grid
from relocalizer.network.model import RawPose, Reloc3r, Tokens
from relocalizer.training.loss import PairTargets, targets_of
from relocalizer.training.pair_loader import LoadedPair, LoadedView
from relocalizer.training.token_cache import TokenCache

Stage = Literal["images", "tokens", "features"]

STAGE_OF_TUNED: dict[str, Stage] = {"all": "images", "decoder": "tokens", "head": "features", "confidence": "features"}
IMAGES_AT_A_TIME = {"cpu": 1}  # elsewhere all; on a CPU the result of an image then does not depend on the others


class Group(NamedTuple):
    """Pairs whose first views have one size, and whose second views have one.

    Attributes:
        rows: their numbers in the batch.
        first, second: images (B, 3, H, W), tokens before the last norm of the encoder (B, N, C), or inputs of the pose
            head (B, N, C), as `stage` says.
        grids: patches of the first and the second views.
    """

    stage: Stage
    rows: list[int]
    first: Tensor
    second: Tensor
    grids: tuple[Grid, Grid]


@dataclass(frozen=True, slots=True)
class Autocast:
    """Precision of the transformer's products; norms, sums, the pose head and the loss stay float32."""

    device_type: str
    dtype: torch.dtype

    def __call__(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device_type, self.dtype)


class PairNetwork(nn.Module):
    """Raw poses of groups of pairs, in the order of the batch."""

    def __init__(self, model: Reloc3r, autocast: Autocast) -> None:
        super().__init__()
        self.model, self._autocast = model, autocast

    def forward(self, groups: Sequence[Group]) -> tuple[RawPose, RawPose]:
        sides: list[list[RawPose]] = [[], []]
        for group in groups:
            features = self._features(group)
            with torch.autocast(features[0].device.type, enabled=False):
                for side, of_side in zip(sides, features, strict=True):
                    side.append(self.model.pose_head(of_side.float()))
        order = torch.argsort(torch.tensor([row for group in groups for row in group.rows])).to(features[0].device)
        first, second = (_joined(side, order) for side in sides)
        return first, second

    def _features(self, group: Group) -> tuple[Tensor, Tensor]:
        if group.stage == "features":
            return group.first, group.second
        model = self.model
        with self._autocast():
            if group.stage == "images":
                tokens = [model.encode_without_norm(images) for images in (group.first, group.second)]
            else:
                tokens = [Tokens(x, grid) for x, grid in zip((group.first, group.second), group.grids, strict=True)]
            normed = [Tokens(model.enc_norm(t.features), t.grid) for t in tokens]
            return model.decode_features(normed[0], normed[1])


class PairInputs:
    """Makes groups of loaded pairs, and computes or fetches what the frozen part gives for them."""

    def __init__(
        self, model: Reloc3r, stage: Stage, autocast: Autocast, cache: TokenCache | None, device: torch.device
    ) -> None:
        self._model, self._stage, self._autocast = model, stage, autocast
        self._cache, self._device = cache, device

    def needs_pixels(self, first: str, second: str) -> tuple[bool, bool]:
        """Whether the pixels of each of two views with these keys are needed; those of an empty key are."""
        if self._cache is None or self._stage == "images":
            return True, True
        if self._stage == "features":
            is_missing = _pair_key(first, second) not in self._cache
            return is_missing, is_missing
        return first not in self._cache, second not in self._cache

    def groups(self, pairs: Sequence[LoadedPair]) -> list[Group]:
        """The pairs by the sizes of their views."""
        by_size: dict[tuple[tuple[int, int], tuple[int, int]], list[int]] = {}
        for row, pair in enumerate(pairs):
            by_size.setdefault((pair.first.grid_size, pair.second.grid_size), []).append(row)
        return [self._group(sizes, rows, [pairs[row] for row in rows]) for sizes, rows in by_size.items()]

    def targets(self, pairs: Sequence[LoadedPair]) -> PairTargets:
        poses = (np.stack([pair.world_from_1 for pair in pairs]), np.stack([pair.world_from_2 for pair in pairs]))
        return targets_of(*poses, [pair.has_direction for pair in pairs]).to(self._device)

    def _group(
        self, sizes: tuple[tuple[int, int], tuple[int, int]], rows: list[int], pairs: Sequence[LoadedPair]
    ) -> Group:
        patch = self._model.architecture.patch_size
        first_grid, second_grid = (Grid(height // patch, width // patch) for width, height in sizes)
        grids = (first_grid, second_grid)
        if self._stage == "images":
            firsts, seconds = (self._images(side) for side in _sides(pairs))
        elif self._stage == "tokens":
            firsts, seconds = (self._tokens(side) for side in _sides(pairs))
        else:
            firsts, seconds = self._features(pairs, grids)
        return Group(self._stage, rows, firsts, seconds, grids)

    def _images(self, views: Sequence[LoadedView]) -> Tensor:
        arrays = [view.pixels for view in views]
        assert all(array is not None for array in arrays)
        return torch.from_numpy(np.stack([array for array in arrays if array is not None])).to(self._device)

    def _tokens(self, views: Sequence[LoadedView]) -> Tensor:
        """Tokens (B, N, C) before the encoder's last norm."""
        return self._cached([view.key for view in views], lambda rows: self._encoded([views[row] for row in rows]))

    def _encoded(self, views: Sequence[LoadedView]) -> Tensor:
        with torch.no_grad(), self._autocast():
            at_a_time = IMAGES_AT_A_TIME.get(self._device.type, len(views))
            parts = [self._images(views[k : k + at_a_time]) for k in range(0, len(views), at_a_time)]
            return torch.cat([self._model.encode_without_norm(part).features.float() for part in parts])

    def _features(self, pairs: Sequence[LoadedPair], grids: tuple[Grid, Grid]) -> tuple[Tensor, Tensor]:
        """Inputs of the pose head for both sides."""
        keys = [_pair_key(pair.first.key, pair.second.key) for pair in pairs]
        joined = self._cached(keys, lambda rows: self._decoded([pairs[row] for row in rows], grids))
        tokens = grids[0].rows * grids[0].columns
        return joined[:, :tokens], joined[:, tokens:]

    def _decoded(self, pairs: Sequence[LoadedPair], grids: tuple[Grid, Grid]) -> Tensor:
        with torch.no_grad():
            found = []
            for pair in pairs:
                tokens = [
                    Tokens(self._model.enc_norm(self._encoded([view])), grid)
                    for view, grid in zip((pair.first, pair.second), grids, strict=True)
                ]
                with self._autocast():
                    found.append(torch.cat(self._model.decode_features(tokens[0], tokens[1]), dim=1).float())
            return torch.cat(found)

    def _cached(self, keys: Sequence[str], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """Arrays of the keys, stacked; `compute(rows)` gives those of the rows that are not cached."""
        if self._cache is None:
            return compute(list(range(len(keys))))
        found = {row: array for row, key in enumerate(keys) if key and (array := self._cache.get(key)) is not None}
        missing = [row for row in range(len(keys)) if row not in found]
        if missing:
            for row, array in zip(missing, compute(missing).cpu().numpy(), strict=True):
                found[row] = self._cache.put(keys[row], array) if keys[row] else array
        stacked = np.stack([np.asarray(found[row], np.float32) for row in range(len(keys))])
        return torch.from_numpy(stacked).to(self._device)


def _sides(pairs: Sequence[LoadedPair]) -> tuple[list[LoadedView], list[LoadedView]]:
    return [pair.first for pair in pairs], [pair.second for pair in pairs]


def _pair_key(first: str, second: str) -> str:
    return f"{first} | {second}" if first and second else ""


def _joined(side: Sequence[RawPose], order: Tensor) -> RawPose:
    pooled = [raw.pooled for raw in side if raw.pooled is not None]
    return RawPose(
        torch.cat([raw.translation for raw in side])[order],
        torch.cat([raw.rotation9 for raw in side])[order],
        torch.cat(pooled)[order] if pooled else None,
    )

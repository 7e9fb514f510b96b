"""Weights to start from: a DUSt3R checkpoint, a Reloc3r checkpoint, or random ones.

DUSt3R has two decoders. The second one gives the second image in the frame of the first, which is what the shared
decoder of Reloc3r does, so its weights are taken. Files are read by the reader of `relocalizer.network.weights`, which
runs no code of a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relocalizer.errors import WeightsError
from relocalizer.network.layers import PointwiseConv
from relocalizer.network.model import Architecture, PatchEmbedding, Reloc3r
from relocalizer.network.weights import architecture_from_shapes, load_model, read_tensors
from relocalizer.predictors.checkpoints import LICENSE, METADATA, Checkpoint, resolve

RANDOM = "random"
HEAD = "pose_head."
SECOND_DECODER, DECODER = "dec_blocks2.", "dec_blocks."
NOT_OURS = ("mask_token", "downstream_head1.", "downstream_head2.")  # of DUSt3R and CroCo; Reloc3r has no such parts


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """A network to be trained, where its weights come from, and the terms that they pass on."""

    model: Reloc3r
    source: str
    license: str


def starting_model(source: str, architecture: Architecture | None = None, *, seed: int = 0) -> Start:
    """The network to start from.

    Args:
        source: "random"; or a checkpoint of Reloc3r or of DUSt3R: a folder, a file, a released name or a hub id.
        architecture: sizes of random weights, by default the released ones; otherwise those of the checkpoint count.
        seed: of random weights, also of the pose head where the checkpoint has none.

    Raises:
        WeightsError: the checkpoint is missing or damaged, or lacks a tensor of the encoder or the decoder.
    """
    if source == RANDOM:
        model = Reloc3r(architecture or Architecture())
        initialize(model, seed)
        return Start(model, RANDOM, "none: random weights")
    checkpoint = resolve(source)
    state = read_tensors(checkpoint.weights)
    if any(key.startswith(HEAD) for key in state):
        return Start(load_model(source), source, _license_of(checkpoint))
    return Start(_without_head(checkpoint, state, architecture, seed), source, LICENSE)


def initialize(model: Reloc3r, seed: int, *, prefix: str = "") -> None:
    """Random weights as published, for the modules whose name begins with `prefix`.

    Linear layers and the patch embedding (as a matrix) Xavier-uniform, their biases zero but for the latter's; norms
    one and zero; the pointwise layers of the pose head as PyTorch's convolutions.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if not f"{name}.".startswith(prefix):
            continue
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, PatchEmbedding):
            nn.init.xavier_uniform_(module.proj.weight.data.flatten(1), generator=generator)
            _as_convolution(module.proj.bias, module.proj.weight, generator)
        elif isinstance(module, PointwiseConv):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            _as_convolution(module.bias, module.weight, generator)


def reloc3r_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a DUSt3R or CroCo checkpoint under the names of Reloc3r, without what Reloc3r has no part for."""
    kept = {key: value for key, value in state.items() if not key.startswith(NOT_OURS)}
    if not any(key.startswith(SECOND_DECODER) for key in kept):
        return kept
    renamed = {key: value for key, value in kept.items() if not key.startswith((DECODER, SECOND_DECODER))}
    second = {key: value for key, value in kept.items() if key.startswith(SECOND_DECODER)}
    return renamed | {DECODER + key.removeprefix(SECOND_DECODER): value for key, value in second.items()}


def _without_head(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], architecture: Architecture | None, seed: int
) -> Reloc3r:
    """The network with the encoder and decoder of a checkpoint that has no pose head, which is random."""
    path, mapped = checkpoint.weights, reloc3r_names(state)
    model = Reloc3r(architecture or architecture_from_shapes(path, mapped))
    initialize(model, seed, prefix=HEAD)
    wanted = {key: value for key, value in model.state_dict().items() if not key.startswith(HEAD)}
    for key, want in wanted.items():
        if key not in mapped:
            raise WeightsError(f"weights: {path}: no tensor for '{key}'; a start needs the whole encoder and decoder")
        if mapped[key].shape != want.shape:
            got, expected = tuple(mapped[key].shape), tuple(want.shape)
            raise WeightsError(f"weights: {path}: '{key}' is {got} where {expected} is expected")
        if not bool(mapped[key].isfinite().all()):
            raise WeightsError(f"weights: {path}: '{key}' holds NaN or infinity; the file is damaged, get it again")
    extra = [key for key in mapped if key not in wanted]
    if extra:
        raise WeightsError(
            f"weights: {path}: '{extra[0]}' and {len(extra) - 1} more are no tensors of DUSt3R or Reloc3r; "
            "expected a checkpoint of one of them"
        )
    model.load_state_dict({key: mapped[key].float() for key in wanted}, strict=False)
    return model


def _license_of(checkpoint: Checkpoint) -> str:
    """The terms in the metadata of an own training; otherwise those of the published weights."""
    path = checkpoint.weights.with_name(METADATA)
    if not path.is_file():
        return LICENSE
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["license"])
    except (OSError, ValueError, KeyError, TypeError):
        raise WeightsError(f"weights: {path}: not the metadata of a training; restore or remove the file") from None


def _as_convolution(bias: Tensor | None, weight: Tensor, generator: torch.Generator) -> None:
    assert bias is not None
    bound = weight[0].numel() ** -0.5
    nn.init.uniform_(bias, -bound, bound, generator=generator)

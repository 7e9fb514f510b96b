"""Inference with OpenVINO instead of PyTorch: the same results, faster on CPUs.

Graphs are compiled from the model at the first use of an image size, which takes seconds and, temporarily, memory for
another copy of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from relocalizer.errors import ConfigError
from relocalizer.network.export import (
    IMAGES,
    RAW_POSES,
    TOKENS,
    TOKENS_OF_PAIR,
    decoder_program,
    encoder_program,
    grid_of_size,
    openvino_graph,
    require,
)
from relocalizer.network.layers import Grid
from relocalizer.network.model import RawPose, Reloc3r, Tokens

HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}
GRAPHS_KEPT = 4  # number of cached graphs; each has its own copy of the weights


class OpenVinoNetwork:
    """`Reloc3r.encode` and `Reloc3r.decode_raw` by OpenVINO on the CPU."""

    def __init__(self, model: Reloc3r, dtype: torch.dtype = torch.float32) -> None:
        """The graphs are compiled later.

        Args:
            model: the network in float32 on the CPU; it is used to compile graphs.
            dtype: dtype of products and activations; the model's weights are not changed.

        Raises:
            ConfigError: OpenVINO is not installed, or does not support the dtype.
        """
        if dtype not in HINTS:
            raise ConfigError(f"precision: OpenVINO computes in float32 or bfloat16, not in {str(dtype)[6:]}")
        core = require("openvino", "openvino").Core()
        hints = {"INFERENCE_PRECISION_HINT": HINTS[dtype], "INFERENCE_NUM_THREADS": torch.get_num_threads()}

        def compiled(program: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
            return core.compile_model(openvino_graph(program, inputs, outputs), "CPU", hints)

        @lru_cache(maxsize=GRAPHS_KEPT)
        def encoder(grid: Grid) -> Any:
            return compiled(encoder_program(model, grid), [IMAGES], [TOKENS])

        @lru_cache(maxsize=GRAPHS_KEPT)
        def decoder(grid_i: Grid, grid_j: Grid) -> Any:
            return compiled(decoder_program(model, grid_i, grid_j), TOKENS_OF_PAIR, RAW_POSES)

        self._model, self._encoder, self._decoder = model, encoder, decoder

    def prepare(self, size: tuple[int, int]) -> None:
        """Compile the graphs for images of a size (width, height) now.

        Raises:
            ConfigError: the sides are not multiples of the patch size.
        """
        grid = grid_of_size(self._model, size)
        self._encoder(grid)
        self._decoder(grid, grid)

    def encode(self, images: Tensor) -> Tokens:
        """As `Reloc3r.encode`.

        Raises:
            ConfigError: the sides are not multiples of the patch size.
        """
        grid = grid_of_size(self._model, (images.shape[3], images.shape[2]))
        [features] = _run(self._encoder(grid), images)
        return Tokens(features, grid)

    def decode_raw(self, tokens1: Tokens, tokens2: Tokens) -> tuple[RawPose, RawPose]:
        """As `Reloc3r.decode_raw`."""
        graph = self._decoder(tokens1.grid, tokens2.grid)
        translation1, nine1, translation2, nine2 = _run(graph, tokens1.features, tokens2.features)
        return RawPose(translation1, nine1), RawPose(translation2, nine2)


def _run(graph: Any, *inputs: Tensor) -> list[Tensor]:
    answers = graph([tensor.contiguous().numpy() for tensor in inputs])
    # Copied, because the graph reuses its arrays in the next call.
    return [torch.from_numpy(array.copy()) for array in answers.to_tuple()]

"""Loading of checkpoints into the network, with safe parsing and checks of every tensor.

The tensors of a file are memory-mapped, so loading needs the size of the file only once. For 16-bit weights the file is
mapped again for every few tensors, because pages that were read use memory until the mapping is released.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from relocalizer.errors import WeightsError
from relocalizer.network.model import Architecture, Reloc3r, use_matmul_dtype
from relocalizer.network.precision import choose_device
from relocalizer.predictors.checkpoints import Checkpoint, locate, published_sha256, resolve, sha256_of

CONVERTED_BYTES = 1 << 28  # size of the tensors converted per mapping of the file, bytes
SEEDS = 1 << 64  # number of distinct seeds of PyTorch's generator
HEAD_WIDTH = 64  # number of channels per attention head without config.json

# The probable network of a file with tensors of these names; the first matching pattern counts.
_LOOKS_LIKE = (
    (r"dec_blocks2\.", "DUSt3R or MASt3R"),
    (r"(enc_blocks\.|dec_blocks\.|decoder_embed\.)", "CroCo or another sibling of Reloc3r"),
    (r"aggregator\.", "VGGT"),
    (r"(blocks\.\d+\.|cls_token|encoder\.layer)", "a plain vision transformer"),
    (r"(layer1\.0\.|backbone\.)", "a convolutional backbone"),
)
_CONFIG_NUMBERS = {f.name for f in fields(Architecture)} - {"rotary_base", "norm_im2_in_dec"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """Contents of a valid checkpoint."""

    source: str
    path: Path
    size_bytes: int
    sha256: str
    tensors: int
    parameters: int
    architecture: Architecture

    def __str__(self) -> str:
        return (
            f"{self.path}: Reloc3r for {self.architecture.img_size or 'unknown'} pixels, {self.tensors} tensors, "
            f"{self.parameters:,} parameters, {self.size_bytes:,} bytes, sha256 {self.sha256}"
        )


def load_model(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Reloc3r:
    """Load the network with the weights of a checkpoint, in evaluation mode.

    Args:
        source: a folder (config.json, model.safetensors), a .safetensors or .pth file, a released name or a hub
            id; the last two are resolved in the local Hugging Face cache.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: dtype of the transformer's products; norms, sums and the pose head stay float32.

    Raises:
        WeightsError: the checkpoint is missing, damaged, not finite, or of another network; states the tensors.
        DeviceError: the device is not available.
    """
    chosen = choose_device(device)
    architecture, state = read_checkpoint(resolve(source), dtype=dtype)
    with torch.device("meta"):
        model = Reloc3r(architecture)
    model.load_state_dict(state, assign=True)
    return model.to(chosen).eval()


def random_model(architecture: Architecture, *, seed: int = 0) -> Reloc3r:
    """The network with seeded random weights: correct shapes and cost, meaningless poses.

    Only the last 64 bits of the seed are used.
    """
    with torch.device("meta"):
        model = Reloc3r(architecture)
    generator = torch.Generator().manual_seed(seed % SEEDS)
    state = {key: _random_tensor(key, value.shape, generator) for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def verify(source: str | Path) -> WeightsReport:
    """Read and check a local checkpoint completely.

    Raises:
        WeightsError: it is not downloaded, does not fit, or differs from the downloaded file.
    """
    checkpoint = locate(source)
    if checkpoint is None:
        raise WeightsError(f"weights: {source} is not on this machine; fetch it first")
    digest = sha256_of(checkpoint.weights)
    published = published_sha256(checkpoint)
    if published not in (None, digest):
        raise WeightsError(
            f"weights: {checkpoint.weights}: sha256 {digest[:12]}... where the hub gave {published[:12]}...; "
            "delete the file and fetch it again"
        )
    architecture, state = read_checkpoint(checkpoint)
    return WeightsReport(
        source=str(source),
        path=checkpoint.weights,
        size_bytes=checkpoint.weights.stat().st_size,
        sha256=digest,
        tensors=len(state),
        parameters=sum(tensor.numel() for tensor in state.values()),
        architecture=architecture,
    )


def read_checkpoint(
    checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32
) -> tuple[Architecture, dict[str, Tensor]]:
    """Sizes and tensors of a checkpoint, without unused tensors.

    The weights of the transformer's products are in `dtype`, all others in float32.

    Raises:
        WeightsError: the checkpoint is damaged, not finite, or of another network.
    """
    state, path = read_tensors(checkpoint.weights), checkpoint.weights
    if checkpoint.config is not None:
        architecture = architecture_from_config(checkpoint.config)
    else:
        architecture = architecture_from_shapes(path, state)
    with torch.device("meta"):
        model = Reloc3r(architecture)
    use_matmul_dtype(model, dtype)
    wanted = model.state_dict()
    _check_fit(path, state, wanted)
    if dtype == torch.float32:
        return architecture, {key: _checked(path, key, state[key]) for key in wanted}
    del state
    return architecture, _converted(path, wanted)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file or of a PyTorch file (of its entry `model`, if it has one).

    Raises:
        WeightsError: the file is missing or truncated, or contains Python objects, which are never executed.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            size = f"{path.stat().st_size:,} bytes" if path.exists() else "no such file"
            raise WeightsError(
                f"weights: {path}: not a whole safetensors file ({size}: {error}); fetch it again"
            ) from None
    return _tensors_of_pickle(path)


def tensors_sha256(model: Reloc3r, prefixes: tuple[str, ...] = ("",)) -> str:
    """A hash of the tensors whose name begins with one of the prefixes, and of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith(prefixes):
            digest.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def architecture_from_config(path: Path) -> Architecture:
    """The architecture in config.json; missing sizes are those of the released models.

    Raises:
        WeightsError: the file is not JSON, a size is not a positive number, or positions are not rotary.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"weights: {path}: not a readable JSON file ({error})") from None
    if not isinstance(data, dict):
        raise WeightsError(f"weights: {path}: expected an object with the sizes of the network")
    chosen: dict[str, Any] = {key: _number(path, key, data[key]) for key in _CONFIG_NUMBERS & data.keys()}
    positions = re.fullmatch(r"RoPE(\d+)", str(data.get("pos_embed", "RoPE100")))
    if positions is None:
        raise WeightsError(
            f"weights: {path}: pos_embed: expected RoPE and its base, such as RoPE100, got {data['pos_embed']!r}"
        )
    try:
        return Architecture(
            **chosen,
            rotary_base=float(positions[1]),
            norm_im2_in_dec=bool(data.get("norm_im2_in_dec", True)),
        )
    except ValueError as error:
        raise WeightsError(f"weights: {path}: {error}") from None


def _number(path: Path, key: str, value: Any) -> int | float:
    # Only mlp_ratio may be fractional; img_size may be a pair of sides.
    if key == "img_size" and isinstance(value, list) and all(isinstance(side, int) for side in value):
        value = max(value, default=0)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole or (key == "mlp_ratio" and isinstance(value, float))) or value <= 0:
        raise WeightsError(f"weights: {path}: {key}: expected a positive number, got {value!r}")
    return float(value) if key == "mlp_ratio" else int(value)


def _tensors_of_pickle(path: Path) -> dict[str, Tensor]:
    try:
        # Training scripts store their command line in the file; this class is safe to load.
        with torch.serialization.safe_globals([argparse.Namespace]):
            data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({culprit[1]})" if culprit else ""
        raise WeightsError(
            f"weights: {path}: holds Python objects{what} besides tensors and is refused, since loading them "
            "could run anything; save its tensors alone, or use the .safetensors file"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is empty"
        raise WeightsError(f"weights: {path}: not a whole PyTorch file ({reason}); get it again") from None
    if isinstance(data, dict) and isinstance(data.get("model"), dict):
        data = data["model"]
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise WeightsError(f"weights: {path}: expected named tensors, or an entry 'model' that holds them")
    return dict(data)


def architecture_from_shapes(path: Path, state: Mapping[str, Tensor]) -> Architecture:
    """The architecture inferred from tensor shapes, with heads of 64 channels and rotary positions of base 100."""
    needed = ("patch_embed.proj.weight", "enc_norm.weight", "dec_norm.weight")
    missing = [key for key in needed if key not in state]
    if missing:
        raise WeightsError(_misfit(path, state, f"no {', no '.join(missing)}"))
    patch, encoder, decoder = (state[key] for key in needed)
    fc1 = state.get("enc_blocks.0.mlp.fc1.weight", torch.empty(4 * len(encoder), 0))
    _log.info("%s: no config.json in its folder; the sizes are inferred from the tensors", path)
    try:
        return Architecture(
            patch_size=patch.shape[-1],
            enc_embed_dim=len(encoder),
            enc_depth=_depth(state, "enc_blocks"),
            enc_num_heads=len(encoder) // HEAD_WIDTH,
            dec_embed_dim=len(decoder),
            dec_depth=_depth(state, "dec_blocks"),
            dec_num_heads=len(decoder) // HEAD_WIDTH,
            mlp_ratio=len(fc1) / len(encoder),
            norm_im2_in_dec="dec_blocks.0.norm_y.weight" in state,
        )
    except ValueError as error:
        raise WeightsError(_misfit(path, state, f"no config.json, and {error}")) from None


def _depth(state: Mapping[str, Tensor], stack: str) -> int:
    found = (re.match(rf"{stack}\.(\d+)\.", key) for key in state)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _check_fit(path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Check that all tensors of the network exist with the right shape; unused tensors are reported in a warning."""
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    if missing:
        others = f"; {len(extra)} unexpected, first '{extra[0]}'" if extra else ""
        raise WeightsError(_misfit(path, state, f"{len(missing)} tensors missing, first '{missing[0]}'{others}"))
    for key, want in wanted.items():
        if state[key].shape != want.shape:
            got, expected = tuple(state[key].shape), tuple(want.shape)
            raise WeightsError(_misfit(path, state, f"'{key}' is {got} where {expected} is expected"))
    if extra:
        _log.warning("%s: %d tensors are not used, first '%s'", path, len(extra), extra[0])


def _converted(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors in the wanted dtypes; only a part of the mapped file is in memory at a time."""
    found: dict[str, Tensor] = {}
    for keys in _parts(wanted):
        state = read_tensors(path)
        found |= {key: _checked(path, key, state[key]).to(wanted[key].dtype, copy=True) for key in keys}
    return found


def _parts(wanted: Mapping[str, Tensor]) -> Iterator[list[str]]:
    part, size = list[str](), 0
    for key, want in wanted.items():
        part, size = [*part, key], size + 4 * want.numel()
        if size >= CONVERTED_BYTES:
            yield part
            part, size = [], 0
    yield part


def _checked(path: Path, key: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise WeightsError(f"weights: {path}: '{key}' holds {tensor.dtype}, expected floating point numbers")
    # A finite sum proves that all values are finite without a temporary tensor; the exact test runs only otherwise.
    if not bool(tensor.sum(dtype=torch.float32).isfinite()) and not bool(tensor.isfinite().all()):
        raise WeightsError(f"weights: {path}: '{key}' holds NaN or infinity; the file is damaged, get it again")
    return tensor.float()


def _misfit(path: Path, state: Mapping[str, Tensor], what: str) -> str:
    looks = next(
        (name for pattern, name in _LOOKS_LIKE if any(re.match(pattern, key) for key in state)),
        "of another network",
    )
    if any(key.startswith("pose_head.") for key in state):
        looks = "Reloc3r of other sizes than its config.json says"
    if any(key.startswith("module.") for key in state):
        looks = "saved from a parallel wrapper; take 'module.' off its names"
    return f"weights: {path}: {what}; this file looks like {looks}, expected a Reloc3r checkpoint"


def _random_tensor(key: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    numbers = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return numbers.mul_(shape[1:].numel() ** -0.5)
    is_gain = "norm" in key and key.endswith("weight")
    return numbers.mul_(0.02).add_(float(is_gain))

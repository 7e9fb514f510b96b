"""Export of the network to two files in ONNX or OpenVINO format, verified after writing.

`encoder` maps images to tokens; `decoder` maps the tokens of two images to the raw outputs of the pose head for both
directions. So an image is encoded only once for all its pairs. The image size is fixed in the files, because the
position tables depend on it; the batch size is variable.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from relocalizer.errors import ConfigError, OutputError
from relocalizer.geometry import direction_angle, rotation_angle
from relocalizer.network.layers import Grid
from relocalizer.network.model import RawPose, Reloc3r, Tokens
from relocalizer.network.weights import load_model

Format = Literal["onnx", "openvino"]
Floats = NDArray[np.float32]

IMAGES = "images"  # (B, 3, H, W) in [-1, 1]
TOKENS = "tokens"  # (B, N, C)
TOKENS_OF_PAIR = ("tokens_i", "tokens_j")
# Translations (B, 3) of meaningless length, and nine numbers (B, 9) whose nearest rotation is that of the pose.
RAW_POSES = ("j_from_i_translation", "j_from_i_rotation9", "i_from_j_translation", "i_from_j_rotation9")

USUAL_SIZE = {224: (224, 224), 512: (512, 384)}  # default image size (width, height) by training size
CHECKED_PAIRS = 2  # number of random pairs in the verification
OPSET = 18  # ONNX opset that PyTorch writes without conversion
# Maximum difference of raw outputs from PyTorch, relative to the largest. The full network in float32 has 3e-6.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2}
_MODULES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
_SUFFIX = {"onnx": "onnx", "openvino": "xml"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCheck:
    """Maximum differences between the exported network and PyTorch in float32 on random images.

    Attributes:
        precision: precision of the products when running the files.
        raw: difference of a raw output, relative to the largest raw output.
        rotation_deg, direction_deg: angles between the poses.
    """

    precision: str
    raw: float
    rotation_deg: float
    direction_deg: float

    def __str__(self) -> str:
        return (
            f"{self.precision}: raw values differ by {self.raw:.1e}, "
            f"rotations by {self.rotation_deg:.3f} deg, directions by {self.direction_deg:.3f} deg"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """The exported files, and their verification."""

    files: tuple[Path, ...]
    checks: tuple[ExportCheck, ...]

    def __str__(self) -> str:
        size = sum(path.stat().st_size for path in self.files)
        names = ", ".join(path.name for path in self.files)
        return f"{self.files[0].parent}: {names}, {size / 1e9:.2f} GB; {'; '.join(map(str, self.checks))}"


class EncoderGraph(nn.Module):
    """Encoder for images of one size."""

    def __init__(self, model: Reloc3r) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode(images).features


class DecoderGraph(nn.Module):
    """Decoder for pairs of images with one size per side; outputs in the order of `RAW_POSES`."""

    def __init__(self, model: Reloc3r, grid_i: Grid, grid_j: Grid) -> None:
        super().__init__()
        self.model = model
        self.grids = grid_i, grid_j

    def forward(self, tokens_i: Tensor, tokens_j: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        j_from_i, i_from_j = self.model.decode_raw(*map(Tokens, (tokens_i, tokens_j), self.grids))
        return j_from_i.translation, j_from_i.rotation9, i_from_j.translation, i_from_j.rotation9


def export_checkpoint(
    source: str | Path,
    folder: Path,
    *,
    format: str,
    size: tuple[int, int] | None = None,
) -> ExportReport:
    """`export_network` with the weights of a checkpoint.

    Args:
        source: as in `load_model`.
        size: (width, height) of the images; by default 224 x 224 or 512 x 384, according to the training size.

    Raises:
        WeightsError: there is no usable checkpoint.
        ConfigError, OutputError: as `export_network`.
    """
    _require_format(format)
    model = load_model(source)
    trained = model.architecture.img_size or 512
    return export_network(model, folder, format=format, size=size or USUAL_SIZE.get(trained, (trained, trained)))


def export_network(model: Reloc3r, folder: Path, *, format: str, size: tuple[int, int]) -> ExportReport:
    """Write encoder-WxH, decoder-WxH, and their description FORMAT-WxH.json; no file is left if verification fails.

    Args:
        model: the network in float32 on the CPU.
        folder: output folder, created if missing; it may contain exports of other formats and sizes.
        format: "onnx" (.onnx and .onnx.data) or "openvino" (.xml and .bin), weights in float32.
        size: (width, height) of the images, multiples of the patch size.

    Raises:
        ConfigError: the format is unknown, its extra is not installed, or the size is not a multiple of the patch size.
        OutputError: the files already exist, the folder cannot be written, or the results differ from PyTorch's.
    """
    chosen = _require_format(format)
    grid = grid_of_size(model, size)
    stem = f"{size[0]}x{size[1]}"
    _expect_none_of(folder, chosen, stem)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=folder) as name:
            draft = Path(name)
            _write_graphs(model, grid, chosen, draft, stem)
            checks = tuple(_checked(model, size, chosen, draft, stem, folder))
            _describe(draft / f"{chosen}-{stem}.json", model, size, chosen, checks)
            # The description is moved last, so its presence means that the export is complete.
            drafts = sorted(draft.iterdir(), key=lambda path: (path.suffix == ".json", path.name))
            for path in drafts:
                os.replace(path, folder / path.name)
    except OSError as error:
        raise OutputError(f"export: {folder}: cannot be written ({error.strerror or error}); name another") from None
    return ExportReport(files=tuple(folder / path.name for path in drafts), checks=checks)


def _expect_none_of(folder: Path, format: Format, stem: str) -> None:
    """Refuse to overwrite an earlier export, before spending minutes on a new one."""
    names = (f"encoder-{stem}.{_SUFFIX[format]}", f"decoder-{stem}.{_SUFFIX[format]}", f"{format}-{stem}.json")
    for path in (folder / name for name in names):
        if os.path.lexists(path):
            raise OutputError(f"export: {path}: is there already; choose another folder or remove it")


def grid_of_size(model: Reloc3r, size: tuple[int, int]) -> Grid:
    """The patch grid of images of a size (width, height).

    Raises:
        ConfigError: a side is not a multiple of the patch size.
    """
    (width, height), patch = size, model.architecture.patch_size
    if min(size) < patch or width % patch or height % patch:
        raise ConfigError(f"size: {width} x {height}: both sides must be multiples of {patch}, such as 512 x 384")
    return Grid(height // patch, width // patch)


def encoder_program(model: Reloc3r, grid: Grid) -> Any:
    """The `torch.export` program of the encoder for one image size."""
    a = model.architecture
    return _program(EncoderGraph(model), torch.zeros(2, 3, grid.rows * a.patch_size, grid.columns * a.patch_size))


def decoder_program(model: Reloc3r, grid_i: Grid, grid_j: Grid) -> Any:
    """The `torch.export` program of the decoder with its heads for two image sizes."""
    width = model.architecture.enc_embed_dim
    tokens = (torch.zeros(2, grid.rows * grid.columns, width) for grid in (grid_i, grid_j))
    return _program(DecoderGraph(model, grid_i, grid_j), *tokens)


def openvino_graph(program: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """The `openvino.Model` of a program, with named ports and only the first dimension dynamic.

    Raises:
        ConfigError: OpenVINO is not installed.
    """
    with _quiet():
        graph = require("openvino", "openvino").convert_model(program)
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in _inputs_of(program)]
    graph.reshape({port: [-1, *map(int, shape[1:])] for port, shape in zip(graph.inputs, shapes, strict=True)})
    for port, name in zip([*graph.inputs, *graph.outputs], [*inputs, *outputs], strict=True):
        port.get_tensor().set_names({name})
    return graph


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library.

    Raises:
        ConfigError: it is not installed; states the extra that installs it.
    """
    # By default OpenVINO sends telemetry of every conversion to its developers; blocking this module disables that.
    cast(dict[str, ModuleType | None], sys.modules).setdefault("openvino_telemetry", None)
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise ConfigError(f"{module} is not installed; do `pip install 'reloc3r-slam[{extra}]'`") from None


def _require_format(format: str) -> Format:
    if format not in get_args(Format):
        raise ConfigError(f"format: expected {' or '.join(get_args(Format))}, got {format!r}")
    for module in _MODULES[format]:
        require(module, format)
    return cast(Format, format)


def _program(module: nn.Module, *example: Tensor) -> Any:
    batch = torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad():
        # Position tables are cached; this run computes them with real values instead of during tracing.
        module.eval()(*example)
        return torch.export.export(module, example, dynamic_shapes=tuple({0: batch} for _ in example), strict=False)


def _inputs_of(program: Any) -> Sequence[str]:
    return cast(Sequence[str], program.graph_signature.user_inputs)


def _write_graphs(model: Reloc3r, grid: Grid, format: Format, folder: Path, stem: str) -> None:
    write = {"onnx": _write_onnx, "openvino": _write_openvino}[format]
    suffix = _SUFFIX[format]
    write(encoder_program(model, grid), folder / f"encoder-{stem}.{suffix}", [IMAGES], [TOKENS])
    write(decoder_program(model, grid, grid), folder / f"decoder-{stem}.{suffix}", TOKENS_OF_PAIR, RAW_POSES)


def _write_onnx(program: Any, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    with _quiet():
        torch.onnx.export(
            program,
            f=path,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            external_data=True,  # a single ONNX file is limited to 2 GB
            verbose=False,
        )


def _write_openvino(program: Any, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    graph = openvino_graph(program, inputs, outputs)
    require("openvino", "openvino").save_model(graph, path, compress_to_fp16=False)


def _checked(
    model: Reloc3r, size: tuple[int, int], format: Format, draft: Path, stem: str, folder: Path
) -> Iterator[ExportCheck]:
    """Compare the files with PyTorch on random images, in every precision of this machine.

    Raises:
        OutputError: the results differ by more than `TOLERANCE`.
    """
    width, height = size
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, CHECKED_PAIRS, 3, height, width, generator=generator).mul(2).sub(1)
    with torch.no_grad():
        raw = model.decode_raw(model.encode(images[0]), model.encode(images[1]))
    graphs = [draft / f"{part}-{stem}.{_SUFFIX[format]}" for part in ("encoder", "decoder")]
    for precision, answer in _answers(format, graphs, images.numpy()):
        check = _compared(precision, raw, answer)
        if not check.raw <= TOLERANCE[precision]:
            raise OutputError(
                f"export: {folder}: the {format} files answer otherwise than PyTorch ({check}; raw values may by "
                f"{TOLERANCE[precision]:.0e}); nothing was written, try another release of {_MODULES[format][-1]}"
            )
        yield check


def _answers(format: Format, graphs: Sequence[Path], images: Floats) -> Iterator[tuple[str, list[Floats]]]:
    if format == "onnx":
        yield "float32", _chained([_onnx_runner(path) for path in graphs], images)
        return
    core = require("openvino", "openvino").Core()
    hints = {"float32": "f32", "bfloat16": "bf16"}
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        del hints["bfloat16"]
    for precision, hint in hints.items():
        compiled = (core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": hint}) for path in graphs)
        yield precision, _chained([_openvino_runner(graph) for graph in compiled], images)


Runner = Callable[..., list[Floats]]


def _chained(runners: Sequence[Runner], images: Floats) -> list[Floats]:
    encode, decode = runners
    return decode(*(encode(side)[0] for side in images))


def _onnx_runner(path: Path) -> Runner:
    runtime = require("onnxruntime", "onnx")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def _openvino_runner(compiled: Any) -> Runner:
    return lambda *arrays: list(compiled(arrays).to_tuple())


def _compared(precision: str, raw: Sequence[RawPose], answer: Sequence[Floats]) -> ExportCheck:
    t1, r1, t2, r2 = map(torch.from_numpy, answer)
    found = (RawPose(t1, r1), RawPose(t2, r2))
    values, others = (torch.cat([torch.cat([p.translation, p.rotation9], 1) for p in side]) for side in (raw, found))
    difference = float((values - others).abs().max() / values.abs().max())
    if not np.isfinite(difference):
        return ExportCheck(precision=precision, raw=difference, rotation_deg=180.0, direction_deg=180.0)
    poses = [torch.cat([p.pose() for p in side]).numpy().astype(np.float64) for side in (raw, found)]
    pairs = list(zip(*poses, strict=True))
    return ExportCheck(
        precision=precision,
        raw=difference,
        rotation_deg=float(np.degrees(max(rotation_angle(a[:3, :3].T @ b[:3, :3]) for a, b in pairs))),
        direction_deg=float(np.degrees(max(direction_angle(a[:3, 3], b[:3, 3]) for a, b in pairs))),
    )


def _describe(path: Path, model: Reloc3r, size: tuple[int, int], format: Format, checks: Sequence[ExportCheck]) -> None:
    stem, suffix = f"{size[0]}x{size[1]}", _SUFFIX[format]
    description = {
        "network": "reloc3r",
        "format": format,
        "trained_for": model.architecture.img_size,
        "width": size[0],
        "height": size[1],
        "encoder": {"file": f"encoder-{stem}.{suffix}", "inputs": [IMAGES], "outputs": [TOKENS]},
        "decoder": {"file": f"decoder-{stem}.{suffix}", "inputs": TOKENS_OF_PAIR, "outputs": RAW_POSES},
        "checks": [asdict(check) for check in checks],
    }
    path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the messages of exporters except errors."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)

"""`slam weights`: location, download, verification and export of the network weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from relocalizer import pytorch
from relocalizer.errors import ConfigError, WeightsError
from slam.cli.options import AsJson, say

weights_app = typer.Typer(
    help="Reloc3r's published weights: find, verify, fetch, export. They are not part of this project.\n\n"
    "Examples:\n\n  slam weights where\n\n  slam weights fetch reloc3r-512",
    rich_markup_mode=None,
    no_args_is_help=True,
)
WeightsSource = Annotated[
    str, typer.Argument(metavar="SOURCE", help="reloc3r-512, reloc3r-224, a Hugging Face id, a folder or a file.")
]


@weights_app.command("where", short_help="Show the location of the weights")
def weights_where(
    source: Annotated[
        str | None, typer.Argument(metavar="SOURCE", help="As for verify. Default: both published weights.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the location, size and license of weights on this machine, without a download.

    Example:

      slam weights where
    """
    from relocalizer.predictors.checkpoints import RELEASED, cache_folder, locate

    found = {name: locate(name) for name in ([source] if source else RELEASED)}
    paths = {name: str(checkpoint.weights) if checkpoint else None for name, checkpoint in found.items()}
    if as_json:
        entries = {name: {"path": path, "terms": _terms(name)} for name, path in paths.items()}
        print(json.dumps({"cache": str(cache_folder()), "weights": entries}, indent=2))
        return
    print(f"cache: {cache_folder()}")  # not a table, which would wrap long paths
    for name, path in paths.items():
        terms = f" ({_terms(name)})" if _terms(name) else ""
        print(f"{name}{terms}: {path or f'not here; slam weights fetch {name}'}")


def _terms(source: str) -> str:
    """Size and license of published weights; empty for other weights."""
    from relocalizer.predictors.checkpoints import RELEASED

    return next((r.terms for r in RELEASED.values() if source in (r.name, r.hub_id)), "")


@weights_app.command("verify", short_help="Verify the weights on this machine")
def weights_verify(source: WeightsSource, as_json: AsJson = False) -> None:
    """Verify weights on this machine: hash, names and shapes of all tensors, finite values. Takes seconds.

    Examples:

      slam weights verify reloc3r-512

      slam weights verify ./my_checkpoint
    """
    from relocalizer.predictors.checkpoints import locate

    if locate(source) is None:
        raise WeightsError(f"weights: {source} is not on this machine; slam weights fetch {source}")
    pytorch.expect_installed("slam weights verify")
    say(f"reading {source} through")
    from relocalizer.network.weights import verify

    report = verify(source)
    if as_json:
        print(json.dumps({"path": str(report.path), "size_bytes": report.size_bytes, "sha256": report.sha256,
                          "tensors": report.tensors, "parameters": report.parameters,
                          "img_size": report.architecture.img_size}, indent=2))  # fmt: skip
    else:
        print(f"good: {report}")


@weights_app.command("fetch", short_help="Download published weights to the cache")
def weights_fetch(source: WeightsSource) -> None:
    """Download published weights to the Hugging Face cache, after printing their size and license.

    Example:

      slam weights fetch reloc3r-512
    """
    from relocalizer.predictors.checkpoints import fetch, locate

    was_here = locate(source) is not None
    checkpoint = fetch(source, announce=say)
    say("it was here already" if was_here else f"fetched; next: slam weights verify {source}")
    print(checkpoint.weights)


@weights_app.command("export", short_help="Write the network as ONNX or OpenVINO")
def weights_export(
    source: WeightsSource,
    format: Annotated[str, typer.Option("--format", metavar="onnx|openvino", help="Output format.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Output folder.")],
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Image size. Default: 224x224 or 512x384.")
    ] = None,
) -> None:
    """Export Reloc3r's encoder and decoder for machines without PyTorch, and compare their outputs with PyTorch's.

    Takes one or two minutes, and as much disk space as the weights.

    Examples:

      slam weights export reloc3r-512 --format onnx -o exported

      slam weights export reloc3r-512 --format openvino -o ov --size 512x288
    """
    pytorch.expect_installed("slam weights export")
    from relocalizer.network.export import export_checkpoint

    report = export_checkpoint(source, out, format=format, size=_size(size) if size else None)
    for check in report.checks:
        say(f"against PyTorch, {check}")
    for path in report.files:
        print(path)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ConfigError(f"--size: expected width x height such as 512x384, got {text}")
    return int(width), int(height)

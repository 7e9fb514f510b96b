"""Locating and downloading of the released weights: a path, the Hugging Face cache, or the hub.

Only `fetch` downloads, after announcing the size and the license. Looking into the cache needs neither a network
connection nor the `hub` extra. This project contains no weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from relocalizer.errors import WeightsError

LICENSE = "CC BY-NC-SA 4.0 (no commercial use)"
METADATA = "training.json"  # beside weights that were trained here
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # in the order in which the hub's loaders prefer them
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TRUE = ("1", "on", "true", "yes")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Released:
    """A published checkpoint."""

    name: str
    hub_id: str
    size_bytes: int

    @property
    def terms(self) -> str:
        """Size and license, shown before downloading."""
        return f"{self.size_bytes / 1e9:.2f} GB, license {LICENSE}"


RELEASED = {name: Released(name, f"siyan824/{name}", 1_706_156_328) for name in ("reloc3r-512", "reloc3r-224")}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Local files of one checkpoint.

    Attributes:
        source: the source as given by the user.
        weights: the file with the tensors.
        config: config.json in the same folder, if it exists.
    """

    source: str
    weights: Path
    config: Path | None


def locate(source: str | Path) -> Checkpoint | None:
    """The local checkpoint of a path, a released name or a hub id; None if it is not downloaded.

    Raises:
        WeightsError: the path has no weights, or `source` is neither a path nor a hub id.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_folder(str(source), path)
    if path.is_file():
        return _of_file(str(source), path)
    snapshot = _cached_snapshot(hub_id_of(source))
    if snapshot is None or not any((snapshot / name).exists() for name in WEIGHT_FILES):
        return None
    return _in_folder(str(source), snapshot)


def resolve(source: str | Path) -> Checkpoint:
    """The checkpoint of `source`, which must be on this machine: weights are only downloaded on request.

    Raises:
        WeightsError: as `locate`, or it is not downloaded; states how to get it, its size and its license.
    """
    found = locate(source)
    if found is None:
        hub_id = hub_id_of(source)
        name = next((released.name for released in RELEASED.values() if released.hub_id == hub_id), hub_id)
        raise WeightsError(_absent(hub_id, f"weights are fetched only when asked for: slam weights fetch {name}"))
    return found


def fetch(source: str | Path, *, announce: Callable[[str], None] | None = None) -> Checkpoint:
    """Download a released checkpoint to the Hugging Face cache, with a progress bar, unless it is there.

    Args:
        source: a released name ("reloc3r-512") or a hub id ("owner/name").
        announce: called with the size and the license before the download; by default a log warning.

    Raises:
        WeightsError: offline mode, no connection, no such checkpoint, no `reloc3r` extra, or a full disk.
    """
    hub_id = hub_id_of(source)
    found = locate(source)
    if found is not None:
        return found
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE:
        raise WeightsError(_absent(hub_id, "HF_HUB_OFFLINE forbids fetching; unset it"))
    if find_spec("huggingface_hub") is None:
        raise WeightsError(_absent(hub_id, "fetching needs `pip install 'reloc3r-slam[reloc3r]'`; do that"))
    (announce or _log.warning)(f"fetching {hub_id} from the Hugging Face hub: {_terms(hub_id)}")
    snapshot = _download(hub_id)
    return _in_folder(str(source), snapshot)


def hub_id_of(source: str | Path) -> str:
    """The hub id of a released name, or of an id.

    Raises:
        WeightsError: `source` looks like neither, so it is probably a wrong path.
    """
    text = str(source)
    if text in RELEASED:
        return RELEASED[text].hub_id
    is_path = text.startswith((".", "/", "~")) or text.endswith(WEIGHT_SUFFIXES)
    if is_path or not _HUB_ID.fullmatch(text):
        raise WeightsError(
            f"weights: {text}: no such file or folder; give a folder with model.safetensors and config.json, "
            f"a .safetensors or .pth file, {' or '.join(RELEASED)}, or a hub id such as siyan824/reloc3r-512"
        )
    return text


def cache_folder() -> Path:
    """The local cache of the hub, determined by the same environment variables as in its own tools."""
    environment = os.environ
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(name):
            return Path(environment[name]).expanduser()
    home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def training_note(checkpoint: Checkpoint) -> str:
    """What weights that were trained here are: their start and their errors on held-out pairs; empty for others.

    Raises:
        WeightsError: the metadata beside the weights are damaged.
    """
    path = checkpoint.weights.with_name(METADATA)
    if not path.is_file():
        return ""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        start, held_out = str(data["start"]), data.get("held_out") or {}
        found = f"trained from {'random weights' if start == 'random' else start}"
        if not held_out:
            return found
        sizes = ", ".join(f"{int(width)} x {int(height)}" for width, height in data["sizes"])
        errors, guess = (
            "{:.1f} and {:.1f} deg".format(*(float(held_out[f"{of}{what}_deg"]) for what in ("rotation", "direction")))
            for of in ("", "guess_")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(f"weights: {path}: not the metadata of a training; restore or remove the file") from None
    return f"{found} at {sizes}: median errors {errors} (rotation, direction) on held-out pairs, of a guess {guess}"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def published_sha256(checkpoint: Checkpoint) -> str | None:
    """The hash published by the hub, which is the file name of the weights in its cache; None elsewhere."""
    name = checkpoint.weights.resolve().name
    return name if _SHA256.fullmatch(name) else None


def _in_folder(source: str, folder: Path) -> Checkpoint:
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return _of_file(source, folder / name)
    raise WeightsError(f"weights: {folder}: the folder holds neither {' nor '.join(WEIGHT_FILES)}")


def _of_file(source: str, path: Path) -> Checkpoint:
    if path.suffix not in WEIGHT_SUFFIXES:
        raise WeightsError(f"weights: {path}: expected a file ending in {', '.join(WEIGHT_SUFFIXES)}")
    config = path.with_name("config.json")
    return Checkpoint(source, path, config if config.is_file() else None)


def _cached_snapshot(hub_id: str) -> Path | None:
    folder = cache_folder() / f"models--{hub_id.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WeightsError(f"weights: {folder}: the cache cannot be read ({error.strerror})") from None
    snapshot = folder / "snapshots" / revision
    return snapshot if snapshot.is_dir() else None


def _download(hub_id: str) -> Path:
    from huggingface_hub import errors as hub_errors
    from huggingface_hub import snapshot_download

    # Depending on its version, the hub's client raises its own errors, those of its HTTP library, or OSError.
    failures = (OSError, ValueError, getattr(hub_errors, "HTTPError", OSError))
    try:
        folder = snapshot_download(hub_id, allow_patterns=["config.json", *WEIGHT_FILES[:1]], cache_dir=cache_folder())
    except hub_errors.RepositoryNotFoundError:
        raise WeightsError(f"weights: {hub_id}: the Hugging Face hub has no such checkpoint") from None
    except failures as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(_absent(hub_id, f"the hub gave nothing ({reason}); check the network")) from error
    return Path(folder)


def _terms(hub_id: str) -> str:
    released = next((r for r in RELEASED.values() if r.hub_id == hub_id), None)
    return released.terms if released else "size and license as its page there says"


def _absent(hub_id: str, why: str) -> str:
    return (
        f"weights: {hub_id} ({_terms(hub_id)}) is not in the cache {cache_folder()} and {why}, "
        "or give a folder that holds model.safetensors and config.json"
    )

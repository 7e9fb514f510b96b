"""Files of a training: written whole or not at all, states of which two are kept, weights in the released layout."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from relocalizer.errors import OutputError, TrainingError
from relocalizer.network.model import Architecture
from relocalizer.predictors.checkpoints import METADATA

STATES, STATES_KEPT = "states", 2
_STATE = re.compile(r"state-(\d+)\.pt")

_log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary file beside `path` to write; it replaces `path` on success and is deleted on failure.

    Raises:
        OutputError: the file cannot be written, for example for lack of space; an old `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # the last two from the writers of PyTorch and safetensors
        with suppress(OSError):
            temporary.unlink()
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
        raise OutputError(
            f"{path}: cannot be written ({reason}); make room and continue with --resume from the last saved state"
        ) from None
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file whole. Raises OutputError."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(
    folder: Path, architecture: Architecture, state: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write a network as it is released: config.json and model.safetensors, and beside them training.json.

    Raises:
        OutputError: a file cannot be written.
    """
    write_json(folder / "config.json", config_of(architecture))
    with replacing(folder / "model.safetensors") as temporary:
        save_file({key: value.detach().cpu().float().contiguous() for key, value in state.items()}, temporary)
    write_json(folder / METADATA, metadata)


def config_of(architecture: Architecture) -> dict[str, Any]:
    """The sizes of a network as in the released config.json."""
    a = architecture
    sizes = {"img_size": a.img_size} if a.img_size is not None else {}
    return {
        **sizes,
        "patch_size": a.patch_size,
        "enc_embed_dim": a.enc_embed_dim,
        "enc_depth": a.enc_depth,
        "enc_num_heads": a.enc_num_heads,
        "dec_embed_dim": a.dec_embed_dim,
        "dec_depth": a.dec_depth,
        "dec_num_heads": a.dec_num_heads,
        "mlp_ratio": a.mlp_ratio,
        "norm_im2_in_dec": a.norm_im2_in_dec,
        "pos_embed": f"RoPE{a.rotary_base:g}",
    }


def write_state(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write the state after a step; of the older ones the newest stays. Raises OutputError; the others stay then."""
    path = folder / STATES / f"state-{step:09d}.pt"
    with replacing(path) as temporary:
        torch.save(dict(state), temporary)
    for old in sorted(_states(folder))[:-STATES_KEPT]:
        _states(folder)[old].unlink()
    return path


def newest_state(folder: Path) -> dict[str, Any] | None:
    """The newest state that can be read; None if there is none.

    Raises:
        TrainingError: there are states, and none of them can be read.
    """
    found = _states(folder)
    for step in sorted(found, reverse=True):
        try:
            return dict(torch.load(found[step], map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            _log.warning("%s: cannot be read (%s)", found[step], str(error).splitlines()[0] if str(error) else "empty")
    if found:
        raise TrainingError(f"{folder / STATES}: none of its {len(found)} states can be read; start again elsewhere")
    return None


class JsonLines:
    """A file of one JSON object per line, flushed line by line."""

    def __init__(self, path: Path, *, keep: Callable[[dict[str, Any]], bool] | None = None) -> None:
        """Begin the file; with `keep`, continue after those lines of an old one for which it is true."""
        self._path = path
        with replacing(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in _kept_lines(path, keep)), encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        """Append a line. Raises OutputError."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written ({error.strerror})") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a last line that was cut off is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            found.append(dict(json.loads(line)))
    return found


def _kept_lines(path: Path, keep: Callable[[dict[str, Any]], bool] | None) -> list[str]:
    return [json.dumps(values) for values in read_lines(path) if keep(values)] if keep is not None else []


def _states(folder: Path) -> dict[int, Path]:
    if not (folder / STATES).is_dir():
        return {}
    named = ((_STATE.fullmatch(path.name), path) for path in (folder / STATES).iterdir())
    return {int(match[1]): path for match, path in named if match}

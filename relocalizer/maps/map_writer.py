"""Atomic writing of a map folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import OutputError
from relocalizer.maps.map_format import (
    FORMAT,
    IMAGES,
    MANIFEST,
    SCHEMA,
    VERSION,
    checksum_of,
    counts_of,
    image_name,
    jpeg_of,
)
from relocalizer.maps.map_rules import validate
from relocalizer.maps.reference_map import ReferenceMap

COMPRESSION = 4  # level of zlib; the 6 of NumPy takes twice as long for one percent less


def save_map(folder: Path, reference_map: ReferenceMap) -> None:
    """Write a map to `folder`, replacing an existing map.

    The new map is written completely beside the old one (.NAME.saving), flushed to disk, and moved into place by
    renaming: NAME to .NAME.replaced, then .NAME.saving to NAME. Between the two renames `load_map` finds
    .NAME.replaced, so a crash at any moment leaves the old map or the new one.

    An exception, including Ctrl-C, leaves only the old map; temporary folders left by a kill are removed by the next
    save.

    Raises:
        OutputError: writing fails, or `folder` exists and is not a map.
        MapError: an image of the map, which may come from another folder, can no longer be read.
        ValueError: the map violates a rule of `validate`.
    """
    validate(reference_map)
    folder = Path(os.path.abspath(folder))
    if is_there(folder) and not (folder.is_dir() and (is_there(folder / MANIFEST) or not any(folder.iterdir()))):
        raise OutputError(f"{folder}: is there already and is not a map; choose another name or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _replace(folder, reference_map)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{folder}: cannot be written ({reason}); make room or choose another place") from None


def _replace(folder: Path, reference_map: ReferenceMap) -> None:
    """Replace the old map by the new one; an exception restores the old one and removes temporary folders."""
    saving, replaced = _saving_folder(folder), replaced_folder(folder)
    try:
        _remove(saving)
        _write(saving, reference_map)
        if is_there(folder):
            _remove(replaced)
            folder.rename(replaced)
        saving.rename(folder)
        _sync(folder.parent)
        _remove(replaced)
    except BaseException:
        with suppress(OSError):
            _remove(saving)
            if not is_there(folder) and is_there(replaced):
                replaced.rename(folder)
        raise


def _saving_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.saving")


def replaced_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _remove(folder: Path) -> None:
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _write(folder: Path, reference_map: ReferenceMap) -> None:
    """Write all files, the manifest last, and flush them to disk."""
    (folder / IMAGES).mkdir(parents=True)
    files: dict[str, dict[str, Any]] = {}
    for table, columns in SCHEMA.items():
        arrays = _on_disk(getattr(reference_map, table), columns)
        files[f"{table}.npz"] = _write_file(folder / f"{table}.npz", _packed(arrays))
    for row, k in enumerate(reference_map.keyframes.ids.tolist()):
        files[image_name(k)] = _write_file(folder / image_name(k), jpeg_of(reference_map, row))
    manifest = _manifest(reference_map, files)
    _write_file(folder / MANIFEST, (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode())
    _sync(folder / IMAGES)
    _sync(folder)


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The bytes of a .npz file of arrays, the same for the same arrays. NumPy's own function has no level."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return packed.getvalue()


def _on_disk(table: Any, columns: Mapping[str, tuple[str, tuple[str | int, ...]]]) -> dict[str, NDArray[Any]]:
    return {name: np.ascontiguousarray(getattr(table, name), dtype=dtype) for name, (dtype, _) in columns.items()}


def _write_file(path: Path, data: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(reference_map: ReferenceMap, files: Mapping[str, Any]) -> dict[str, Any]:
    from relocalizer import __version__

    m = reference_map
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "written_by": f"reloc3r-slam {__version__}",
        **asdict(m.provenance),
        "counts": counts_of(m),
        "sessions": [[session.first_keyframe, session.first_frame] for session in m.sessions],
        "cameras": [asdict(camera) for camera in m.cameras],
        **({"image_names": list(m.image_names)} if any(m.image_names) else {}),
        "files": dict(files),
    }
    return {**manifest, "checksum": checksum_of(manifest)}

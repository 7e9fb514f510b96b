"""Reading of the arrays of a map folder; sizes and types are checked before decompression."""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import MapError
from relocalizer.maps.map_format import MAKE_ANEW, SCHEMA

MAX_COUNT = 1 << 40  # upper bound of a count in the manifest
# Maximum size of a decompressed table: this ratio to its file, plus a constant in bytes. The ratio of real maps is
# slightly above 2.
_MAX_GROWTH, _SMALL_BYTES = 64, 1 << 20
_CHUNK = 1 << 20  # size of a block of a file read for its checksum, bytes
_MAX_HEADER_BYTES = 1024  # maximum size of the header of an array, bytes
MAX_IMAGE_BYTES, MAX_TABLE_BYTES = 64 << 20, 8 << 30  # maximum sizes of an image file and of a table file, bytes
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # other methods can decompress more than the requested size
_NPY_HEADER = re.compile(r"\{'descr': '([^']{2,8})', 'fortran_order': False, 'shape': \(([0-9, ]*)\), \} *\n")
_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class Listed:
    """Size and checksum of a file in the manifest."""

    bytes: int
    sha256: str


def damaged(where: Path, what: str) -> MapError:
    return MapError(f"{where}: the map is damaged ({what}); {MAKE_ANEW}")


def require(holds: bool, where: Path, what: str) -> None:
    if not holds:
        raise damaged(where, what)


def is_within(values: NDArray[np.int64], count: int) -> bool:
    return bool(((values >= 0) & (values < count)).all())


def read_table(
    folder: Path, table: str, listed: Mapping[str, Listed], counts: Mapping[str, int]
) -> dict[str, NDArray[Any]]:
    """The arrays of a table; sizes are compared with the manifest and with each other before decompression."""
    name = f"{table}.npz"
    path, columns = folder / name, SCHEMA[table]
    shapes = {column: _shape(shape, counts) for column, (_, shape) in columns.items()}
    sizes = {column: math.prod(shape) * np.dtype(columns[column][0]).itemsize for column, shape in shapes.items()}
    limit = _SMALL_BYTES + _MAX_GROWTH * listed[name].bytes
    require(sum(sizes.values()) <= limit, path, f"the manifest has it hold {sum(sizes.values())} bytes of arrays")
    with opened(path, name, listed[name]) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                _check_members(path, archive, sizes)
                return {
                    column: _read_array(path, archive, column, columns[column][0], shapes[column], sizes[column])
                    for column in columns
                }
        except (*_DAMAGED_ZIP, RuntimeError) as error:  # RuntimeError: encrypted
            raise damaged(path, f"not a table of arrays: {error}") from None


def _shape(shape: tuple[str | int, ...], counts: Mapping[str, int]) -> tuple[int, ...]:
    known = {**counts, "keyframes + 1": counts["keyframes"] + 1}
    return tuple(length if isinstance(length, int) else known[length] for length in shape)


def _check_members(path: Path, archive: zipfile.ZipFile, sizes: Mapping[str, int]) -> None:
    members = archive.infolist()
    names = [member.filename for member in members]
    require(sorted(names) == sorted(f"{name}.npy" for name in sizes), path, f"expected the arrays {', '.join(sizes)}")
    for member in members:
        require(member.compress_type in _PACKINGS, path, f"{member.filename} is packed in a way a map never is")
        size = sizes[member.filename.removesuffix(".npy")]
        fits = size < member.file_size <= size + _MAX_HEADER_BYTES
        require(fits, path, f"{member.filename} has {member.file_size} bytes where {size} are due")


def _read_array(
    path: Path, archive: zipfile.ZipFile, column: str, dtype: str, shape: tuple[int, ...], size: int
) -> NDArray[Any]:
    """Read an array of a known type and shape. The header is compared with the expected one, not interpreted."""
    with archive.open(f"{column}.npy") as file:
        data = file.read(size + _MAX_HEADER_BYTES + 1)
    start = data[:10]
    header_bytes = int.from_bytes(start[8:10], "little")
    header = _NPY_HEADER.fullmatch(data[10 : 10 + header_bytes].decode("latin-1"))
    if start[:8] != b"\x93NUMPY\x01\x00" or header is None:
        raise damaged(path, f"{column} is not an array")
    wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    require(header[1] == dtype, path, f"{column}: expected type {dtype}, got {header[1]}")
    require(header[2] == wanted, path, f"{column}: expected shape ({wanted}), got ({header[2][:80]})")
    values = data[10 + header_bytes :]
    require(len(values) == size, path, f"{column}: expected {size} bytes, got {len(values)}")
    if dtype == "|b1":
        require(not values.strip(b"\x00\x01"), path, f"{column}: expected true or false")
    array = np.frombuffer(values, dtype=dtype).reshape(shape)
    array.setflags(write=False)
    return array


# --- files --------------------------------------------------------------------------------------------


def opened(path: Path, name: str, listed: Listed) -> BinaryIO:
    """Open a file of the map after comparing its size and checksum with the manifest."""
    file = _open_plain(path, name)
    try:
        size = os.fstat(file.fileno()).st_size
        require(size == listed.bytes, path, f"{size} bytes where {listed.bytes} are due")
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        require(digest.hexdigest() == listed.sha256, path, "it does not match its checksum")
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _open_plain(path: Path, name: str) -> BinaryIO:
    """Open a regular file; links, which could point outside the map, and files that could block are rejected."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise damaged(path, f"{name} is missing") from None
    except OSError as error:
        if path.is_symlink():
            raise damaged(path, f"{name} is a link") from None
        raise damaged(path, f"{name} cannot be opened: {error.strerror}") from None
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise damaged(path, f"{name} is not a file")
    return file


def read_whole(path: Path, name: str, limit: int) -> bytes:
    with _open_plain(path, name) as file:
        size = os.fstat(file.fileno()).st_size
        require(size <= limit, path, f"{name} has {size} bytes, {limit} at most are read")
        return file.read(limit + 1)


def read_listed(path: Path, sha256: str) -> bytes:
    """Read a file again that was checked when the map was loaded; its checksum must be unchanged."""
    data = read_whole(path, path.name, MAX_IMAGE_BYTES)
    require(hashlib.sha256(data).hexdigest() == sha256, path, "it does not match its checksum")
    return data


def check_folder(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None
    require(stat.S_ISDIR(mode), path, "it is not a folder")

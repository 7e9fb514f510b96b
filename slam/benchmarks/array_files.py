"""Files of numpy arrays, which may be pickled ones of objects: read without running anything that they contain."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from relocalizer.restricted_pickle import DamagedPickleError, RefusedPickleError, load_restricted
from slam.benchmarks.benchmark_error import BenchmarkError


def read_arrays(path: Path) -> dict[str, Any]:
    """The contents of a .npz file by name: a zip of arrays, or a bare pickle of a dictionary (MegaDepth's lists).

    Raises:
        BenchmarkError: it cannot be read, or contains anything but numbers, text, containers and arrays.
    """
    data = _bytes_of(path)
    if not data.startswith(b"PK"):
        found = _unpickled(io.BytesIO(data), path)
        if not isinstance(found, dict):
            raise BenchmarkError(f"{path}: expected a dictionary, got {type(found).__name__}")
        return found
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise BenchmarkError(f"{path}: not a readable .npz file ({error})") from None
    return {name.removesuffix(".npy"): _array_of(io.BytesIO(member), path) for name, member in members.items()}


def read_array(path: Path) -> Any:
    """The array of a .npy file, which may be one of objects. Raises BenchmarkError as `read_arrays`."""
    return _array_of(io.BytesIO(_bytes_of(path)), path)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BenchmarkError(f"{path}: cannot be read ({error.strerror})") from None


def _array_of(stream: BinaryIO, path: Path) -> Any:
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise BenchmarkError(f"{path}: an array of format {version}; expected 1.0 or 2.0")
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            return _reshaped(_unpickled(stream, path), shape, path)
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BenchmarkError(f"{path}: not a readable array ({error})") from None


def _reshaped(array: Any, shape: tuple[int, ...], path: Path) -> Any:
    if not isinstance(array, np.ndarray) or array.shape != shape:
        raise BenchmarkError(f"{path}: expected an array of shape {shape}")
    return array


def _unpickled(stream: BinaryIO, path: Path) -> Any:
    try:
        return load_restricted(stream)
    except RefusedPickleError as error:
        raise BenchmarkError(f"{path}: a pickle with more than numbers, text and arrays in it ({error})") from None
    except DamagedPickleError as error:
        raise BenchmarkError(f"{path}: not a readable pickle ({error})") from None

"""Reading of pickled numpy arrays without running anything that they contain.

Some published lists are pickles: of dictionaries, or of arrays of objects inside .npy and .npz files. A pickle can call
any function by name. Here the only names that are resolved are those with which numpy writes arrays, scalars and types,
and these are replaced by functions that make nothing else.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from slam.benchmarks.benchmark_error import BenchmarkError

_ARRAY = object()  # Stands for the class numpy.ndarray, which is only an argument of `_reconstruct`.
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")


def _new_array(kind: object, shape: tuple[int, ...], code: bytes) -> np.ndarray[Any, Any]:
    """An empty array, whose contents the pickle sets afterwards."""
    if kind is not _ARRAY or shape != (0,):
        raise pickle.UnpicklingError("an array of an unusual kind")
    return np.ndarray((0,), dtype=np.int8)


def _scalar(kind: object, data: object = b"") -> Any:
    if not isinstance(kind, np.dtype) or kind.hasobject or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a number of an unusual kind")
    return np.frombuffer(data, dtype=kind)[0]


def _dtype(code: object, align: object = False, copy: object = False) -> np.dtype[Any]:
    if not isinstance(code, str):
        raise pickle.UnpicklingError("a type of an unusual kind")
    return np.dtype(code)


def _from_buffer(
    data: object, kind: object, shape: tuple[int, ...], order: str, axes: object = None
) -> np.ndarray[Any, Any]:
    """An array of its bytes, as in pickles of protocol 5."""
    if not isinstance(kind, np.dtype) or kind.hasobject or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("an array of an unusual kind")
    if order not in ("C", "F") or axes is not None:
        raise pickle.UnpicklingError("an array in an unusual order")
    return np.frombuffer(bytes(data), dtype=kind).reshape(shape, order="C" if order == "C" else "F")


_NAMES: dict[tuple[str, str], Callable[..., Any] | object] = {
    **{(module, "_reconstruct"): _new_array for module in _MODULES},
    **{(module, "scalar"): _scalar for module in _MODULES},
    **{(module, "_frombuffer"): _from_buffer for module in ("numpy.core.numeric", "numpy._core.numeric")},
    ("numpy", "ndarray"): _ARRAY,
    ("numpy", "dtype"): _dtype,
}


class _NumpyUnpickler(pickle.Unpickler):
    """Resolves the names in `_NAMES` only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _NAMES[module, name]


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
        return _NumpyUnpickler(stream).load()
    except pickle.UnpicklingError as error:
        raise BenchmarkError(f"{path}: a pickle with more than numbers, text and arrays in it ({error})") from None
    except (EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError) as error:
        raise BenchmarkError(f"{path}: not a readable pickle ({type(error).__name__}: {error})") from None

"""Reading of a pickled list of numbers, texts and numeric arrays, without running anything that the file names.

DL3DV's published pairs are a pickle, whose format is a program. Here every name in it but those of numeric arrays is
refused, and even those are replaced by functions of this file, which build arrays from their bytes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from relocalizer.errors import TrainingError

MAX_BYTES = 8 << 30


class _Type:
    """A numeric type, from its name such as 'f8' and its byte order."""

    def __init__(self, name: Any, *_: Any) -> None:
        dtype = np.dtype(str(name))
        if dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"an array of {dtype}")
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array in the making, filled by its state (version, shape, type, is in Fortran order, bytes)."""

    def __init__(self, *_: Any) -> None:
        self.values = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, data = state
        if not isinstance(kind, _Type) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array that is not one of numbers")
        flat = np.frombuffer(data, kind.dtype)
        self.values = flat.reshape(tuple(int(n) for n in shape), order="F" if is_fortran else "C")


def _scalar(kind: Any, data: Any) -> Any:
    if not isinstance(kind, _Type) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a number of an unknown type")
    return np.frombuffer(data, kind.dtype)[0].item()


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    """An array as protocol 5 writes it."""
    if not isinstance(kind, _Type) or not isinstance(data, bytes | bytearray) or axes is not None:
        raise pickle.UnpicklingError("an array that is not one of numbers")
    array = _Array()
    flat = np.frombuffer(bytes(data), kind.dtype)
    array.values = flat.reshape(tuple(int(n) for n in shape), order="F" if order == "F" else "C")
    return array


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes as protocol 2 and older write them."""
    return str(text).encode(str(encoding) if encoding in ("latin1", "latin-1") else "latin1")


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _KNOWN[_module.replace("multiarray", "numeric"), "_frombuffer"] = _from_buffer
    _KNOWN |= {(_module, "_reconstruct"): _Array, (_module, "scalar"): _scalar}


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module_name}.{global_name}")
        return _KNOWN[module_name, global_name]


def read_pickled_list(path: Path) -> list[Any]:
    """The list in a pickle file; arrays are ndarrays of numbers.

    Raises:
        TrainingError: the file is missing, damaged, too large, or names anything but numeric arrays.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TrainingError(f"{path}: {path.stat().st_size / 1e9:.1f} GB, which is too large for a list of pairs")
        with path.open("rb") as file:
            found = _Reader(file).load()
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such file; expected the list of pairs") from None
    except pickle.UnpicklingError as error:
        raise TrainingError(f"{path}: holds more than numbers and texts ({error}) and is refused") from None
    except (OSError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError, MemoryError) as error:
        raise TrainingError(f"{path}: not a whole pickle ({error})") from None
    if not isinstance(found, list):
        raise TrainingError(f"{path}: expected a list of pairs, got {type(found).__name__}")
    return [_plain(value) for value in found]


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value

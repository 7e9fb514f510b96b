"""Reading of pickles of numbers, text, containers and numpy arrays, without running anything that they name.

Some published lists are pickles, whose format is a program that can call any function by name. Here every name but
those with which numpy writes arrays, scalars and types is refused, and even these stand for what is in this file:
arrays are made of their bytes only. numpy's own types are never given a pickle's state, because it may lie about them.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

_NUMERIC = "biufcSU"  # kinds of types whose values are their bytes
_DAMAGE = (EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError)


class RefusedPickleError(Exception):
    """The pickle names something that is refused."""


class DamagedPickleError(Exception):
    """The file is not a whole pickle."""


def load_restricted(stream: BinaryIO) -> Any:
    """The value that a pickle holds; arrays are ndarrays of numbers, text or objects.

    Raises:
        RefusedPickleError: it names anything but numpy's arrays, scalars and types.
        DamagedPickleError: it cannot be read to its end.
    """
    try:
        return _plain(_Unpickler(stream).load())
    except pickle.UnpicklingError as error:
        raise RefusedPickleError(str(error)) from None
    except _DAMAGE as error:
        raise DamagedPickleError(f"{type(error).__name__}: {error}") from None


class _Type:
    """A type of numbers, text or objects, from its name such as 'f8' and its byte order."""

    __slots__ = ("dtype",)

    def __init__(self, name: object, *_: object) -> None:
        if not isinstance(name, str):
            raise pickle.UnpicklingError("a type of an unusual kind")
        dtype = np.dtype(name)
        if dtype.kind not in _NUMERIC + "O":
            raise pickle.UnpicklingError(f"an array of {dtype}")
        self.dtype: np.dtype[Any] = dtype

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array in the making, filled by its state (version, shape, type, is in Fortran order, contents)."""

    __slots__ = ("values",)

    def __init__(self, *_: object) -> None:
        self.values: np.ndarray[Any, Any] = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, contents = state
        self.values = _array(contents, kind, shape, "F" if is_fortran else "C")


class _Function:
    """A function that a pickle may call and not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a function with a state")


def _array(contents: Any, kind: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    if not isinstance(kind, _Type) or order not in ("C", "F"):
        raise pickle.UnpicklingError("an array of an unusual kind")
    if kind.dtype.kind == "O":
        if not isinstance(contents, list):
            raise pickle.UnpicklingError("an array of an unusual kind")
        flat = np.empty(len(contents), dtype=object)
        for place, value in enumerate(contents):
            flat[place] = value
    elif isinstance(contents, bytes | bytearray):
        flat = np.frombuffer(bytes(contents), kind.dtype)
    else:
        raise pickle.UnpicklingError("an array of an unusual kind")
    return flat.reshape(tuple(int(side) for side in shape), order="F" if order == "F" else "C")


def _scalar(kind: Any, data: Any) -> Any:
    return _array(data, kind, (), "C").item()


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any, axes: object = None) -> _Array:
    """An array as protocol 5 writes it."""
    if axes is not None:
        raise pickle.UnpicklingError("an array in an unusual order")
    array = _Array()
    array.values = _array(data, kind, shape, order)
    return array


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes as protocol 2 and older write them."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text encoded as {encoding}")
    return str(text).encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _Function(_encode),
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Function(_from_buffer) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Function(_Array) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Function(_scalar) for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    """Resolves the names in `_KNOWN` only."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
        return _KNOWN[module_name, global_name]


def _plain(value: Any) -> Any:
    """The value with arrays in place of those in the making.

    Raises:
        pickle.UnpicklingError: something else than a value is left.
    """
    if isinstance(value, _Array):
        array = value.values
        if array.dtype.kind == "O":
            for place in np.ndindex(array.shape):
                array[place] = _plain(array[place])
        return array
    if isinstance(value, dict):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, tuple):
        return tuple(_plain(inner) for inner in value)
    if isinstance(value, _Type | _Function | type):
        raise pickle.UnpicklingError("a type or a function in place of a value")
    return value

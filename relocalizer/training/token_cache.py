"""Results of the frozen part of the network on disk: appended to one file, bounded, read by memory mapping.

Data are written before their line of the index, so a killed process leaves at most data without a line.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import TrainingError

_log = logging.getLogger(__name__)


class TokenCache:
    """Arrays by key. A key is stored once; when the bound is reached or the disk is full, nothing is added any more."""

    def __init__(self, folder: Path, *, fingerprint: str, bound_bytes: int, dtype: str = "float16") -> None:
        """Open the cache in a folder, which is made when something is stored.

        Args:
            fingerprint: of the weights that compute the arrays; a cache of other weights is emptied.
            dtype: "float16" or "float32", in which arrays are stored.
        """
        self._dtype, self._bound = np.dtype(dtype), bound_bytes
        self._data, self._index = folder / "data.bin", folder / "index.jsonl"
        self._entries: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._full = False
        self._header = json.dumps({"of": f"{fingerprint} {dtype}"})
        self._used = self._reopen() if self._index.is_file() else 0

    @property
    def used_bytes(self) -> int:
        return self._used

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> NDArray[np.floating] | None:
        """The array of a key, mapped from the file; None if there is none."""
        if key not in self._entries:
            return None
        offset, shape = self._entries[key]
        return np.memmap(self._data, self._dtype, "r", offset, shape)

    def put(self, key: str, array: NDArray[np.floating]) -> NDArray[np.floating]:
        """Store an array if there is room; returns it in the precision of the cache, whether stored or not.

        Raises:
            TrainingError: its values exceed the range of the precision.
        """
        with np.errstate(over="ignore"):
            rounded = np.ascontiguousarray(array, self._dtype)
        if np.isinf(rounded).any() and np.isfinite(array).all():
            raise TrainingError(f"{self._data}: features exceed the range of {self._dtype}; set cache_dtype: float32")
        if key in self._entries or self._full:
            return rounded
        if self._used + rounded.nbytes > self._bound:
            self._full = True
            _log.warning(
                "%s: the cache is full (%.1f GB); further images are computed anew", self._data, self._used / 1e9
            )
            return rounded
        try:
            self._append(key, rounded)
        except OSError as error:
            self._full = True
            _log.warning("%s: nothing more is cached (%s)", self._data, error.strerror)
        return rounded

    def _append(self, key: str, array: NDArray[np.floating]) -> None:
        if not self._entries:
            self._data.parent.mkdir(parents=True, exist_ok=True)
            self._data.write_bytes(b"")
            self._index.write_text(self._header + "\n", encoding="utf-8")
        with self._data.open("r+b") as file:
            file.seek(self._used)
            file.write(array.tobytes())
        with self._index.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "offset": self._used, "shape": array.shape}) + "\n")
        self._entries[key] = (self._used, array.shape)
        self._used += array.nbytes

    def _reopen(self) -> int:
        """Read the index of an earlier process; returns the number of bytes in use."""
        lines = self._index.read_text(encoding="utf-8").splitlines()
        used, size = 0, self._data.stat().st_size if self._data.is_file() else 0
        for line in lines[1:] if lines[:1] == [self._header] else []:
            try:
                entry = json.loads(line)
                key, offset, shape = str(entry["key"]), int(entry["offset"]), tuple(int(n) for n in entry["shape"])
            except (ValueError, KeyError, TypeError):  # cut off by a kill
                break
            end = offset + int(np.prod(shape)) * self._dtype.itemsize
            if offset != used or end > size:
                break
            self._entries[key], used = (offset, shape), end
        kept = [json.dumps({"key": k, "offset": o, "shape": s}) for k, (o, s) in self._entries.items()]
        self._index.write_text("\n".join([self._header, *kept]) + "\n", encoding="utf-8")
        return used

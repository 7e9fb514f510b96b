"""Place recognition: nearest-neighbor search over one descriptor per image (VLAD of local features) with FAISS."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import faiss
import numpy as np
from numpy.typing import NDArray

from relocalizer.interfaces import Candidate

# Maximum number of coordinates (keyframes times descriptor length) for exact search: 2,048 VLADs, or 8,192 vectors of
# length 1,024. A query takes 1.1 ms of one core at this size and 2.6 ms at twice the size. Codes need half of that at
# this size already, but can miss a result, so they are used only where exact search becomes slow (docs/experiments.md,
# "Long runs and retrieval").
EXACT_NUMBERS = 1 << 23
MOST_CODED = 2560  # maximum number of coordinates with a bit each; those with the largest variance are chosen
QUERY_BITS = 2  # bits per coordinate of the query in the comparison with bits; one more when all coordinates are coded
# Length of the shortlist times the square root of the dimension, because the error of the bits scales with the inverse
# root: 400 for VLADs.
SHORTLIST = 25_600
SPARE = 5  # number of additional candidates compared in full, because bytes can swap nearly equal similarities


class FaissRetriever:
    """Search by inner product: exact while the database is small, then with codes and re-ranking.

    One bit per coordinate gives a shortlist; one byte per coordinate selects from it the few candidates that are
    compared in full. The bits are those of Gao and Long, "RaBitQ: quantizing high-dimensional vectors with a
    theoretical error bound for approximate nearest neighbor search", 2024. The search is exhaustive: VLADs of a video
    have neither clusters for an inverted file nor a low-dimensional subspace (docs/experiments.md). With a GPU build of
    FAISS and a GPU, search is always exact and runs there.

    Descriptors are stored by reference, so they must not be modified after `add`. The index is not saved: the same
    descriptors added in the same order, also from a saved map, give the same results.
    """

    def __init__(self, dimension: int | None = None, *, exact_numbers: int = EXACT_NUMBERS) -> None:
        """Args:
        dimension: length of the descriptors; None takes it from the first descriptor added.
        exact_numbers: maximum number of keyframes times dimension for exact search.
        """
        self._dimension = dimension
        self._exact_numbers = exact_numbers
        self._rows: dict[int, NDArray[np.float32]] = {}
        self._index: faiss.Index | None = None
        self._codes: _Codes | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: int) -> bool:
        return key in self._rows

    @property
    def dimension(self) -> int | None:
        """Length of the descriptors; None before the first one is added."""
        return self._dimension

    @property
    def is_exact(self) -> bool:
        """Whether every descriptor is compared in full."""
        return self._codes is None

    def add(self, key: int, descriptor: NDArray[np.float32]) -> None:
        """Add a unit vector (D,) under an unused key.

        Raises:
            ValueError: the key is in use or negative, or the descriptor is not a unit vector of the right length.
        """
        if key in self._rows:
            raise ValueError(f"FaissRetriever: key {key} is there already")
        if key < 0:
            raise ValueError(f"FaissRetriever: keys are 0 or more, got {key}")
        if self._dimension is None:
            self._dimension = int(np.asarray(descriptor).size)
        self._rows[key] = self._checked(descriptor)
        if self._codes is not None:
            self._codes.add([key], self._rows[key][None])
        elif len(self._rows) * self._dimension > self._exact_numbers and not _has_gpu():
            self._switch_to_codes()
        elif self._index is not None:
            self._index.add_with_ids(self._rows[key][None], np.array([key], dtype=np.int64))

    def remove(self, key: int) -> None:
        """Remove a key.

        Raises:
            KeyError: the key does not exist.
        """
        if key not in self._rows:
            raise KeyError(f"FaissRetriever: key {key} is not there")
        del self._rows[key]
        if self._codes is not None:
            self._codes.remove(key)
        elif self._index is not None and not _has_gpu():
            self._index.remove_ids(faiss.IDSelectorBatch(np.array([key], dtype=np.int64)))
        else:
            self._index = None  # a GPU index has no removal; it is rebuilt for the next query

    def query(self, descriptor: NDArray[np.float32], k: int, exclude: frozenset[int] = frozenset()) -> list[Candidate]:
        """At most k candidates, most similar first (ties: smaller key first), none of them in `exclude`.

        Raises:
            ValueError: the descriptor is not a unit vector of the right length.
        """
        if not self._rows:
            return []
        row = self._checked(descriptor)
        # With the excluded keys added to the count, k results remain after removing them.
        excluded = sum(key in self._rows for key in exclude)
        wanted = min(k + excluded, len(self._rows))
        if wanted <= 0 or k <= 0:
            return []
        faiss.omp_set_num_threads(1)  # thread-local setting; more threads only wait at barriers at this size
        found = (
            self._search_exact(row, wanted) if self._codes is None else self._search_codes(row, k, excluded, exclude)
        )
        found = [candidate for candidate in found if candidate.key not in exclude]
        return sorted(found, key=lambda candidate: (-candidate.similarity, candidate.key))[:k]

    def _search_exact(self, row: NDArray[np.float32], wanted: int) -> list[Candidate]:
        if self._index is None:
            self._index = self._full_index()
        similarities, keys = self._index.search(row[None], wanted)
        return [Candidate(int(key), float(s)) for key, s in zip(keys[0], similarities[0], strict=True)]

    def _search_codes(
        self, row: NDArray[np.float32], k: int, excluded: int, exclude: frozenset[int]
    ) -> list[Candidate]:
        """The best candidates by codes, with similarities of the full descriptors."""
        assert self._codes is not None
        shortlist = max(round(SHORTLIST / np.sqrt(row.size)), 15 * k) + excluded
        chosen = self._codes.nearest(row, k + SPARE + excluded, shortlist)
        left = [key for key in chosen if key not in exclude][: k + SPARE]
        return [Candidate(key, float(self._rows[key] @ row)) for key in left]

    def _full_index(self) -> faiss.Index:
        assert self._dimension is not None
        index = faiss.IndexIDMap(_on_gpu(faiss.IndexFlatIP(self._dimension)))
        index.add_with_ids(np.array(list(self._rows.values())), np.array(list(self._rows), dtype=np.int64))
        return index

    def _switch_to_codes(self) -> None:
        self._index = None
        descriptors = np.array(list(self._rows.values()))
        self._codes = _Codes(descriptors)
        self._codes.add(list(self._rows), descriptors)

    def _checked(self, descriptor: NDArray[np.float32]) -> NDArray[np.float32]:
        row = np.ascontiguousarray(descriptor, dtype=np.float32)
        if row.shape != (self._dimension,):
            raise ValueError(f"FaissRetriever: expected a descriptor of shape ({self._dimension},), got {row.shape}")
        length = float(np.linalg.norm(row))
        if not abs(length - 1.0) < 1e-3:
            raise ValueError(f"FaissRetriever: expected a unit vector, got length {length:.4g}")
        return row


class _Codes:
    """Two compact codes of descriptors, by key.

    One bit for each of the coordinates with the largest variance, relative to the mean; and one byte for every
    coordinate. Internally descriptors are numbered in order of insertion. The bytes of a removed descriptor stay for a
    while, because closing the gap moves all bytes behind it.
    """

    def __init__(self, like: NDArray[np.float32]) -> None:
        """Train on descriptors (N, D): the coordinates to code, their means and the range of values."""
        dimension = like.shape[1]
        coded = np.sort(np.argsort(-like.var(axis=0), kind="stable")[:MOST_CODED])
        self._scale = np.float32(127.0 / np.abs(like).max())
        bits = faiss.IndexRaBitQ(len(coded), faiss.METRIC_INNER_PRODUCT)
        bits.train(self._scale * like[:, coded].mean(axis=0, keepdims=True))  # training only computes the mean
        chosen = faiss.RemapDimensionsTransform(dimension, len(coded))
        faiss.copy_array_to_vector(coded.astype(np.int32), chosen.map)
        self._bits = faiss.IndexIDMap(faiss.IndexPreTransform(chosen, bits))
        self._bytes = faiss.IndexScalarQuantizer(
            dimension, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
        )
        self._index = faiss.IndexRefine(self._bits, self._bytes)
        self._bits_parameters = faiss.RaBitQSearchParameters()  # kept, because FAISS does not own nested parameters
        self._bits_parameters.qb = QUERY_BITS + (len(coded) == dimension)
        self._bits_parameters.centered = True
        self._base_parameters = faiss.SearchParametersPreTransform()
        self._base_parameters.index_params = self._bits_parameters
        self._keys: list[int] = []
        self._number_of: dict[int, int] = {}

    def add(self, keys: Sequence[int], descriptors: NDArray[np.float32]) -> None:
        numbers = range(len(self._keys), len(self._keys) + len(keys))
        whole = self._in_bytes(descriptors)
        self._bits.add_with_ids(whole, np.array(numbers, dtype=np.int64))
        self._bytes.add(whole)
        self._index.ntotal = self._bytes.ntotal
        self._keys.extend(keys)
        self._number_of.update(zip(keys, numbers, strict=True))

    def remove(self, key: int) -> None:
        number = self._number_of.pop(key)
        self._bits.remove_ids(faiss.IDSelectorBatch(np.array([number], dtype=np.int64)))
        if len(self._keys) > 2 * max(len(self._number_of), 1000):
            self._close_gaps()

    def nearest(self, row: NDArray[np.float32], count: int, shortlist: int) -> list[int]:
        """Keys of the `count` most similar descriptors by bytes, among the `shortlist` most similar by bits."""
        count, shortlist = (min(wanted, len(self._number_of)) for wanted in (count, shortlist))
        parameters = faiss.IndexRefineSearchParameters()
        parameters.base_index_params = self._base_parameters
        parameters.k_factor = (shortlist + 0.5) / count  # + 0.5, so that truncation does not shorten the shortlist
        _, numbers = self._index.search(self._in_bytes(row[None]), count, params=parameters)
        return [self._keys[number] for number in numbers[0].tolist() if number >= 0]

    def _close_gaps(self) -> None:
        """Remove the bytes of removed descriptors and renumber; their bits are already gone, in the same order."""
        numbers = np.array(list(self._number_of.values()), dtype=np.int64)
        self._bytes.remove_ids(faiss.IDSelectorNot(faiss.IDSelectorBatch(numbers)))
        self._index.ntotal = self._bytes.ntotal
        self._keys = list(self._number_of)
        self._number_of = {key: number for number, key in enumerate(self._keys)}
        faiss.copy_array_to_vector(np.arange(len(numbers), dtype=np.int64), self._bits.id_map)

    def _in_bytes(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Descriptors scaled and rounded to integers from -127 to 127."""
        return np.asarray(np.rint(descriptors * self._scale).clip(-127, 127), dtype=np.float32)


def _has_gpu() -> bool:
    """Whether FAISS is a GPU build and finds a GPU; `slam doctor` prints how to install one."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


@cache
def _gpu_resources() -> faiss.StandardGpuResources:
    return faiss.StandardGpuResources()


def _on_gpu(index: faiss.Index) -> faiss.Index:
    return faiss.index_cpu_to_gpu(_gpu_resources(), 0, index) if _has_gpu() else index

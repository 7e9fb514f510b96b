"""Place recognition: one vector an image (VLAD of its local features), and FAISS to find similar ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import faiss
import numpy as np
from numpy.typing import NDArray

from relocalizer.interfaces import Candidate

# Numbers (keyframes times descriptor length) up to which all are compared in full: 2,048 VLADs, 8,192 vectors of 1,024.
# A question takes 1.1 ms of one core there and 2.6 at twice as many. Codes take half of that at 2^23 already, but may
# miss one; so they take over where exact search would become slow, not where they
# first win (docs/results.md, "Cost of long runs and retrieval").
EXACT_NUMBERS = 1 << 23
MOST_CODED = 2560  # coordinates that get a bit each, those that vary the most: the others decide little
QUERY_BITS = 2  # a coordinate of the query in the comparison with these; one more where every coordinate has its bit
SHORTLIST = 25_600  # over the root of the dimension, as the codes' error is: 400 VLADs are compared in bytes after that
SPARE = 5  # compared in full beyond those wanted, as bytes may swap two that are nearly as similar


class FaissRetriever:
    """Search by inner product: exact while that is quick, then codes choose and full descriptors decide.

    Of all, a bit a coordinate gives a shortlist; of that, a byte a coordinate the few that are compared in full. The
    bits are those of Gao and Long, "RaBitQ: quantizing high-dimensional vectors with a theoretical error bound
    for approximate nearest neighbor search", 2024. All of them are looked at: VLADs of a video have no clusters that
    would let an inverted file leave most out, nor a few directions that would do for all (docs/results.md). With a
    FAISS for graphics cards and a card, search stays exact there.

    Descriptors are kept by reference, so whoever adds one must not change it. Nothing of this is saved: the same
    descriptors added in the same order, from a map too, give the same answers.
    """

    def __init__(self, dimension: int | None = None, *, exact_numbers: int = EXACT_NUMBERS) -> None:
        """Args:
        dimension: of the descriptors; None takes it from the first one added.
        exact_numbers: keyframes times dimension up to which all are compared in full.
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
        """Length of the descriptors, None before the first one."""
        return self._dimension

    @property
    def is_exact(self) -> bool:
        """Whether every descriptor is compared in full."""
        return self._codes is None

    def add(self, key: int, descriptor: NDArray[np.float32]) -> None:
        """Remember a unit vector (D,) under a key not used before.

        Raises:
            ValueError: the key is taken or negative, or the descriptor no unit vector of the right length.
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
            self._go_on_with_codes()
        elif self._index is not None:
            self._index.add_with_ids(self._rows[key][None], np.array([key], dtype=np.int64))

    def remove(self, key: int) -> None:
        """Forget a key.

        Raises:
            KeyError: the key is not there.
        """
        if key not in self._rows:
            raise KeyError(f"FaissRetriever: key {key} is not there")
        del self._rows[key]
        if self._codes is not None:
            self._codes.remove(key)
        elif self._index is not None and not _has_gpu():
            self._index.remove_ids(faiss.IDSelectorBatch(np.array([key], dtype=np.int64)))
        else:
            self._index = None  # an index on a card cannot forget: it is made again with the next question

    def query(self, descriptor: NDArray[np.float32], k: int, exclude: frozenset[int] = frozenset()) -> list[Candidate]:
        """At most k candidates, most similar first (ties: smaller key first), none of them in `exclude`.

        Raises:
            ValueError: the descriptor is not a unit vector of the right length.
        """
        if not self._rows:
            return []
        row = self._checked(descriptor)
        # Asking for the excluded ones on top gives the k best of the others.
        excluded = sum(key in self._rows for key in exclude)
        wanted = min(k + excluded, len(self._rows))
        if wanted <= 0 or k <= 0:
            return []
        faiss.omp_set_num_threads(1)  # per thread, and more than one only waits for its barriers at this size
        found = self._exact(row, wanted) if self._codes is None else self._by_codes(row, k, excluded, exclude)
        found = [candidate for candidate in found if candidate.key not in exclude]
        return sorted(found, key=lambda candidate: (-candidate.similarity, candidate.key))[:k]

    def _exact(self, row: NDArray[np.float32], wanted: int) -> list[Candidate]:
        if self._index is None:
            self._index = self._full_index()
        similarities, keys = self._index.search(row[None], wanted)
        return [Candidate(int(key), float(s)) for key, s in zip(keys[0], similarities[0], strict=True)]

    def _by_codes(self, row: NDArray[np.float32], k: int, excluded: int, exclude: frozenset[int]) -> list[Candidate]:
        """The best of what the codes choose, compared in full."""
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

    def _go_on_with_codes(self) -> None:
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
    """Two short forms of descriptors, by key.

    Bits, one for each of the coordinates that vary the most, seen from the middle; and bytes, one for every coordinate.
    Both have numbers of their own for the descriptors, counted as they come. Bytes of a removed one stay for a while,
    as closing a gap among them moves them all.
    """

    def __init__(self, like: NDArray[np.float32]) -> None:
        """Learns from descriptors (N, D) which coordinates vary, around what, and how large they get."""
        dimension = like.shape[1]
        coded = np.sort(np.argsort(-like.var(axis=0), kind="stable")[:MOST_CODED])
        self._scale = np.float32(127.0 / np.abs(like).max())
        bits = faiss.IndexRaBitQ(len(coded), faiss.METRIC_INNER_PRODUCT)
        bits.train(self._scale * like[:, coded].mean(axis=0, keepdims=True))  # all it learns is the mean
        chosen = faiss.RemapDimensionsTransform(dimension, len(coded))
        faiss.copy_array_to_vector(coded.astype(np.int32), chosen.map)
        self._bits = faiss.IndexIDMap(faiss.IndexPreTransform(chosen, bits))
        self._bytes = faiss.IndexScalarQuantizer(
            dimension, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
        )
        self._index = faiss.IndexRefine(self._bits, self._bytes)
        self._bits_how = faiss.RaBitQSearchParameters()  # FAISS keeps no hold of one inside another
        self._bits_how.qb = QUERY_BITS + (len(coded) == dimension)
        self._bits_how.centered = True
        self._how_chosen = faiss.SearchParametersPreTransform()
        self._how_chosen.index_params = self._bits_how
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
        """Keys of the `count` most similar by bytes, of the `shortlist` most similar by bits."""
        count, shortlist = (min(wanted, len(self._number_of)) for wanted in (count, shortlist))
        how = faiss.IndexRefineSearchParameters()
        how.base_index_params = self._how_chosen
        how.k_factor = (shortlist + 0.5) / count  # the half keeps rounding from making the shortlist one shorter
        _, numbers = self._index.search(self._in_bytes(row[None]), count, params=how)
        return [self._keys[number] for number in numbers[0].tolist() if number >= 0]

    def _close_gaps(self) -> None:
        """Number anew, as bits of the removed ones are gone already and the order is the same."""
        numbers = np.array(list(self._number_of.values()), dtype=np.int64)
        self._bytes.remove_ids(faiss.IDSelectorNot(faiss.IDSelectorBatch(numbers)))
        self._index.ntotal = self._bytes.ntotal
        self._keys = list(self._number_of)
        self._number_of = {key: number for number, key in enumerate(self._keys)}
        faiss.copy_array_to_vector(np.arange(len(numbers), dtype=np.int64), self._bits.id_map)

    def _in_bytes(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Whole numbers of -127 to 127."""
        return np.asarray(np.rint(descriptors * self._scale).clip(-127, 127), dtype=np.float32)


def _has_gpu() -> bool:
    """Whether FAISS was built for graphics cards and sees one; `slam doctor` says how to get such a FAISS."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


@cache
def _gpu_resources() -> faiss.StandardGpuResources:
    return faiss.StandardGpuResources()


def _on_gpu(index: faiss.Index) -> faiss.Index:
    return faiss.index_cpu_to_gpu(_gpu_resources(), 0, index) if _has_gpu() else index

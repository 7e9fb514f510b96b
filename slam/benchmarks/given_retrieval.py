"""Retrieval from a file: which database images a query is related to.

hloc writes text, one `query database` a line, best first. Reloc3r's evaluation writes a pickled .npy: for each query a
list of dictionaries with `query_path` and `db_path`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from relocalizer.interfaces import Candidate
from slam.benchmarks.array_files import read_array
from slam.benchmarks.benchmark_error import BenchmarkError
from slam.input.text_rows import rows_of


def retrieval_file(given: Path, scene: str) -> Path:
    """The file of a scene: the given file, or the one in the given folder that begins with the scene's name.

    Raises:
        BenchmarkError: the folder has none.
    """
    if not given.is_dir():
        return given
    found = sorted(p for p in given.iterdir() if p.name.startswith(f"{scene}_") and p.suffix in (".txt", ".npy"))
    if not found:
        raise BenchmarkError(f"{given}: no retrieval of {scene} in it; expected {scene}_*.txt or {scene}_*.npy")
    return found[0]


def read_retrieval(path: Path) -> dict[str, list[str]]:
    """Names of database images by name of the query, best first, as the file has them.

    Raises:
        BenchmarkError: it is in neither format.
    """
    found: dict[str, list[str]] = {}
    if path.suffix == ".npy":
        for entry in read_array(path):
            for pair in entry:
                query, database = _paths_of(pair, path)
                found.setdefault(query, []).append(database)
        return found
    for place, names in rows_of(path):
        if len(names) != 2:
            raise BenchmarkError(f"{place}: expected 'query database', got {len(names)} columns")
        found.setdefault(names[0], []).append(names[1])
    return found


def _paths_of(pair: Any, path: Path) -> tuple[str, str]:
    try:
        return str(pair["query_path"]), str(pair["db_path"])
    except (TypeError, KeyError, IndexError):
        raise BenchmarkError(f"{path}: expected dictionaries with 'query_path' and 'db_path'") from None


def rows_by_name(
    listed: Mapping[str, Sequence[str]], queries: Sequence[str], rows: Mapping[str, int]
) -> dict[str, list[int]]:
    """Rows of the database by query. Names in the file may begin with further folders.

    Args:
        listed: of `read_retrieval`.
        queries: names of the queries, relative to the scene.
        rows: row in the database of each name.
    """
    by_query = {_last_parts(name): names for name, names in listed.items()}
    by_name = {_last_parts(name): row for name, row in rows.items()}
    return {
        query: [by_name[key] for name in by_query.get(_last_parts(query), ()) if (key := _last_parts(name)) in by_name]
        for query in queries
    }


def _last_parts(name: str) -> str:
    """Sequence and file, which are unique in a scene."""
    return "/".join(Path(name).parts[-2:])


class GivenRetriever:
    """A retriever that answers with rows that were set before, whatever the descriptor is."""

    def __init__(self) -> None:
        self.rows: Sequence[int] = ()

    def add(self, key: int, descriptor: NDArray[Any]) -> None:
        """Descriptors are not used."""

    def remove(self, key: int) -> None:
        """Descriptors are not used."""

    def query(self, descriptor: NDArray[Any], k: int, exclude: frozenset[int]) -> list[Candidate]:
        return [Candidate(row, 1.0) for row in self.rows if row not in exclude][:k]

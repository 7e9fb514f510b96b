"""What a benchmark suite is: items that are evaluated independently, and a summary of their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from slam.benchmarks.plots import Plot
from slam.config.schema import SlamConfig

Cell = str | float | int | None
Result = Mapping[str, Any]  # Result of one item: plain values, as in its JSON file.


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRequest:
    """A suite, its data and settings; plain values, so that it can be sent to another process.

    Attributes:
        data: root folder of the data set.
        out: folder of the results. Workers on other machines need it under the same path.
        config: settings of the run, as `SlamConfig.model_dump`.
        limit: maximum number of items (for localization, of queries per scene); None is all.
        pairs: list of pairs that replaces that of the suite, or retrieval for localization; empty is none.
        seeds: number of runs of each sequence, with consecutive seeds.
        top_k: number of database images that a query is related to.
        step: every `step`-th database and query image is used.
    """

    suite: str
    data: str
    out: str
    config: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    pairs: str = ""
    seeds: int = 1
    top_k: int = 10
    step: int = 1

    @property
    def root(self) -> Path:
        return Path(self.data)

    @property
    def pairs_file(self) -> Path | None:
        return Path(self.pairs) if self.pairs else None

    @property
    def settings(self) -> SlamConfig:
        return SlamConfig.model_validate(dict(self.config))

    @property
    def identity(self) -> dict[str, Any]:
        """All values on which the results depend: everything but the folder in which they are."""
        return {name: value for name, value in asdict(self).items() if name != "out"}


@dataclass(frozen=True, slots=True)
class Table:
    """A table of results. Numbers are rounded for display only.

    Attributes:
        note: sentences below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Figures, tables and plots of a suite.

    Attributes:
        protocol: what was measured and how: sign convention, ground truth, alignment, frames scored, ...
        figures: the headline figures, for `--fail-above` and `--fail-below`.
        tables: our own results, then the published ones.
    """

    title: str
    protocol: Mapping[str, str]
    figures: Mapping[str, float]
    tables: Sequence[Table]
    plots: Sequence[Plot] = ()


class Suite(Protocol):
    """A suite on one data set."""

    @property
    def faults(self) -> Sequence[str]:
        """What is wrong with the data and leaves no item: lines of lists and scenes that are not usable."""
        ...

    def stages(self) -> Sequence[Sequence[str]]:
        """Names of the items. The items of a stage are independent; a later stage needs the earlier ones."""
        ...

    def evaluate(self, item: str) -> dict[str, Any]:
        """The result of an item, in plain values. `faults` lists what of it could not be evaluated.

        Raises:
            UserError: it cannot be evaluated at all.
        """
        ...

    def summarize(self, results: Mapping[str, Result]) -> Summary:
        """The summary of the results so far, by item."""
        ...

    def rows(self, results: Mapping[str, Result]) -> list[dict[str, Cell]]:
        """The rows of results.csv."""
        ...

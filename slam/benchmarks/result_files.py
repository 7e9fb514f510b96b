"""Contents of results.json and results.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from slam.benchmarks.suite import Cell, Summary


def results_values(summary: Summary, run: Mapping[str, Any]) -> dict[str, Any]:
    """Contents of results.json: the summary without its plots, and what is known about the run."""
    return {
        "title": summary.title,
        "protocol": dict(summary.protocol),
        "figures": {name: value if math.isfinite(value) else None for name, value in summary.figures.items()},
        "tables": [
            {"title": t.title, "columns": list(t.columns), "rows": [list(row) for row in t.rows], "note": t.note}
            for t in summary.tables
        ],
        **run,
    }


def csv_text(rows: Sequence[Mapping[str, Cell]]) -> str:
    """A table with the columns of all rows, in order of first appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return text.getvalue()

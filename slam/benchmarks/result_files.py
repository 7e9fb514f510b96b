"""Contents of results.json, results.csv and results.md."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from slam.benchmarks.html_report import cell_text
from slam.benchmarks.suite import Cell, Summary


def results_values(summary: Summary, run: Mapping[str, Any]) -> dict[str, Any]:
    """Contents of results.json: the summary without its plots, and what is known about the run."""
    return {
        "title": summary.title,
        "protocol": dict(summary.protocol),
        "figures": dict(summary.figures),
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


def markdown_tables(values: Mapping[str, Any], *, level: int = 2) -> str:
    """The tables of results.json in Markdown, for documents and comments.

    Args:
        level: of the headings.
    """
    lines: list[str] = []
    for table in values["tables"]:
        numeric = [any(isinstance(row[k], int | float) for row in table["rows"]) for k in range(len(table["columns"]))]
        lines += [f"{'#' * level} {table['title']}", "", _row(table["columns"])]
        lines += ["|" + "".join("--:|" if number else "---|" for number in numeric)]
        lines += [*(_row(row) for row in table["rows"]), ""]
        lines += [table["note"], ""] if table["note"] else []
    return "\n".join(lines)


def _row(cells: Sequence[Cell]) -> str:
    return "| " + " | ".join(cell_text(cell).replace("|", "\\|") for cell in cells) + " |"

"""The report of a benchmark as one HTML file: no scripts, no files beside it, nothing from the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from slam.benchmarks.suite import Cell, Summary, Table
from slam.web_page import facts, web_page

_CODE = ("command", "commit")
MOST_FAULTS = 200  # Number of faults that are listed.
_STYLE = """
th { border-bottom: 2px solid #70757a; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); gap: 16px; }
.plots svg { width: 100%; height: auto; border: 1px solid #e3e5e8; }
"""


def html_report(summary: Summary, values: Mapping[str, Any]) -> str:
    """The page of a summary; `values` are those of results.json."""
    counts = f"{values['done']} of {values['items']} items evaluated"
    counts += f" in {_duration(values['seconds'])} of computing." if values["seconds"] else "."
    body = [f"<h1>{escape(summary.title)}</h1>", f'<p class="note">{escape(counts)}</p>']
    body += [_faults(values["faults"], values["retried"])]
    body += ['<div class="tables">', *(_table(table) for table in summary.tables), "</div>"]
    if summary.plots:
        body += ["<h2>Plots</h2>", '<div class="plots">', *(plot.svg() for plot in summary.plots), "</div>"]
    body += ["<h2>Protocol</h2>", facts(summary.protocol, code=_CODE), "<h2>Origin</h2>"]
    body += [facts(_origin(session), code=_CODE) for session in values["sessions"]]
    return web_page(summary.title, body, style=_STYLE)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _faults(faults: Sequence[str], retried: Sequence[str]) -> str:
    parts = []
    if faults:
        listed = "".join(f'<li class="fault">{escape(fault)}</li>' for fault in faults[:MOST_FAULTS])
        more = f"<li>and {len(faults) - MOST_FAULTS} more</li>" if len(faults) > MOST_FAULTS else ""
        parts.append(f"<h2>Faults</h2><ul>{listed}{more}</ul>")
    if retried:
        parts.append(f"<h2>Restarted</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in retried)}</ul>")
    return "".join(parts)


def _table(table: Table) -> str:
    numeric = [any(isinstance(row[k], int | float) for row in table.rows) for k in range(len(table.columns))]
    head = "".join(f"<th{_align(n)}>{escape(str(c))}</th>" for c, n in zip(table.columns, numeric, strict=True))
    rows = "".join(f"<tr>{_cells(row, numeric)}</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f"<h2>{escape(table.title)}</h2><table><tr>{head}</tr>{rows}</table>{note}"


def _cells(row: Sequence[Cell], numeric: Sequence[bool]) -> str:
    return "".join(f"<td{_align(n)}>{escape(cell_text(cell))}</td>" for cell, n in zip(row, numeric, strict=True))


def _align(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def cell_text(cell: Cell) -> str:
    """A cell as text: numbers to four significant digits, None as a dash."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.4g}" if abs(cell) < 1e4 else f"{cell:.0f}"
    return str(cell)


def _origin(session: Mapping[str, Any]) -> dict[str, str]:
    network = session["weights_sha256"]
    packages = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
    return {
        "command": session["command"],
        "commit": session["commit"] or "unknown (not run from a repository)",
        **({"predictor": session["predictor"]} if session["predictor"] else {}),
        **({"weights": f"sha256 {network}"} if network else {}),
        "machine": session["machine"],
        "versions": f"Python {session['python']}, {packages}",
    }

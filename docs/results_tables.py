"""Puts the tables of committed results into Markdown pages, between two comments that name the files.

    python docs/results_tables.py [PAGE ...]        # README.md and docs/results.md, unless others are named

Every block of a page

    <!-- results: results/tum.json -->
    ...
    <!-- end of results -->

gets the tables of that results.json, which `slam benchmark` wrote, its path relative to the page, with the command and
the commit that made it. A block `<!-- results: overview of a.json b.json orbslam3.json -->` gets one table with a row
per sequence of SLAM suites, and beside it the results of other systems (`docs/peer_results.py`); `FORMS` has what such
a block can show; files that are missing are left out. `--check` changes nothing and exits with code 1 if a page is not
up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slam.benchmarks.html_report import cell_text
from slam.benchmarks.result_files import markdown_tables

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
BLOCK = re.compile(r"(<!-- results: (?:(\w+) of )?([^>]+?) -->\n).*?(<!-- end of results -->)", re.DOTALL)
NOT_MEASURED = "Not measured for this version."  # Text of a block none of whose files is there.
NO_BREAK = "\N{NO-BREAK SPACE}"  # Between a number and its unit, which narrow tables would part.
Row = Mapping[str, Any]  # The cells of a sequence by column, of all tables of its results.

# Folder of a sequence: what it is, and the unit of its ground truth ("" where it is not a known one).
SEQUENCES = {
    "room_loop": ("bundled room", "m"),
    "room_revisit": ("bundled room, second clip", "m"),
    "room_loop/video.mp4": ("bundled room", "m"),
    "7scenes_redkitchen_seq01": ("7-Scenes redkitchen, seq-01", "m"),
    "tum_fr3_teddy_200": ("TUM fr3_teddy, first 200", "m"),
    "tum_fr1_rpy": ("TUM fr1_rpy", "m"),
    "kitti07_first160": ("KITTI 07, first 160", "m"),
    "fox_instant_ngp": ("fox, phone photographs", ""),
    "office_loop_phone": ("office, phone", ""),
    "strecha_fountain_p11": ("fountain-P11, photographs", "m"),
    "rtabmap_corridor_loop": ("corridor, one image a second", ""),
    "walk_campus/images": ("walk, phone, no calibration", ""),
}


@dataclass(frozen=True)
class Column:
    """A column of an overview: its heading, alignment and text; `peer` where it is repeated for each other system."""

    heading: str
    text: Callable[[Row], str]
    right: bool = True
    peer: bool = False


def length(value: float | None, unit: str) -> str:
    """A length with its unit, to two significant digits; without a known unit as a bare number."""
    if value is None:
        return "–"
    if unit != "m":
        return f"{value:#.2g}"
    text = f"{1e3 * value:#.2g}".rstrip(".") + " mm" if value < 0.0995 else f"{value:#.2g} m"
    return text.replace(" ", NO_BREAK)


def _title(row: Row) -> str:
    return SEQUENCES.get(row["sequence"], (row["sequence"], ""))[0]


def _length(column: str) -> Callable[[Row], str]:
    return lambda row: length(row.get(column), SEQUENCES.get(row["sequence"], ("", ""))[1])


def _number(column: str, form: str = "{:.4g}") -> Callable[[Row], str]:
    return lambda row: "–" if row.get(column) is None else form.format(row[column]).replace(" ", NO_BREAK)


NAME = Column("sequence", _title, right=False)
CLIP = Column("clip", lambda row: row["sequence"], right=False)
FRAMES = Column("frames", _number("frames"))
COVERAGE = Column("coverage", _number("coverage, %", "{:.3g} %"))
ATE = Column("ATE", _length("Sim(3), all frames"))
ATE_PERCENT = Column("of path", _number("ATE, % of path", "{:.2g} %"))
ROTATION = Column("rotation", _number("rotation, deg", "{:.2g}°"))
CPU = Column("CPU, ms per frame", _number("CPU ms/frame", "{:.0f}"))
VERDICT = Column("verdict", lambda row: str(row["verdict"]), right=False)
PEER = Column(
    "{}", lambda row: "no map" if row.get("Sim(3), all frames") is None and not row["coverage, %"] else
    f"{ATE.text(row)} at {COVERAGE.text(row)}", right=False, peer=True,
)  # fmt: skip
PEER_CPU = Column("{}", CPU.text, peer=True)
WITHOUT_ORIGIN = ("summary", "runs")  # Forms of tables that stand beside one with the commands.
FORMS: Mapping[str, Sequence[Column]] = {
    "summary": (NAME, FRAMES, COVERAGE, ATE, PEER),
    "overview": (
        NAME, FRAMES, COVERAGE, ATE, PEER, Column("live poses", _length("Sim(3), live poses")), ATE_PERCENT, ROTATION,
    ),
    "runs": (
        NAME, Column("keyframes", _number("keyframes")), Column("loops", _number("loops")),
        Column("lost", _number("times lost")), CPU, PEER_CPU, VERDICT,
    ),
    "uncalibrated": (NAME, FRAMES, COVERAGE, ATE, ATE_PERCENT, ROTATION, CPU, VERDICT),
    "clips": (
        CLIP, Column("posed", _number("posed, %", "{:.3g} %")), ATE_PERCENT, ROTATION,
        Column("lost", _number("times lost")), CPU, VERDICT,
    ),
}  # fmt: skip


def page_with_tables(page: Path) -> str:
    """The text of a page with its blocks renewed."""

    def renewed(block: re.Match[str]) -> str:
        files = [path for name in block[3].split() if (path := page.parent / name).is_file()]
        values = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        if not values:
            return f"{block[1]}\n{NOT_MEASURED}\n\n{block[4]}"
        text = _overview(block[2], values) if block[2] else "\n\n".join(_whole(one) for one in values)
        return f"{block[1]}\n{text}\n\n{block[4]}"

    return BLOCK.sub(renewed, page.read_text(encoding="utf-8"))


def _whole(values: Mapping[str, Any]) -> str:
    return f"{markdown_tables(values, level=3)}{_origin(values)}"


def _origin(values: Mapping[str, Any]) -> str:
    session = values["sessions"][-1]
    commit = f", commit {session['commit'][:12]}" if session["commit"] else ""
    return f"`{session['command']}`{commit}, {session['machine']}."


def _overview(form: str, files: Sequence[Mapping[str, Any]]) -> str:
    """One table of all sequences; files with a key `system` are columns beside those of this project."""
    own = [values for values in files if "system" not in values]
    peers = {values["system"]: _rows(values) for values in files if "system" in values}
    columns = [(column, name) for column in FORMS[form] for name in (peers if column.peer else [""])]
    lines = [_line(column.heading.format(name) for column, name in columns)]
    lines += ["|" + "".join("--:|" if column.right else "---|" for column, _ in columns)]
    for row in (row for values in own for row in _rows(values).values()):
        shown = [(column, peers[name].get(row["sequence"]) if name else row) for column, name in columns]
        lines.append(_line("" if of is None else column.text(of) for column, of in shown))
    if form in WITHOUT_ORIGIN:
        return "\n".join(lines)
    return "\n".join([*lines, "", *(f"{_origin(values)}  " for values in files)]).rstrip()


def _rows(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The cells of each sequence by column, of all tables; rows of means are left out."""
    rows: dict[str, dict[str, Any]] = {}
    for table in values["tables"]:
        for row in table["rows"]:
            cells = dict(zip(table["columns"], row, strict=True))
            if cells["sequence"] != "mean":
                rows.setdefault(cells["sequence"], {}).update(cells)
    return rows


def _line(cells: Any) -> str:
    return "| " + " | ".join(cell_text(cell).replace("|", "\\|") for cell in cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="*", default=PAGES)
    parser.add_argument("--check", action="store_true", help="say whether the pages are up to date")
    given = parser.parse_args()
    texts = {page: page_with_tables(page) for page in given.pages}
    if given.check:
        return int(any(text != page.read_text(encoding="utf-8") for page, text in texts.items()))
    for page, text in texts.items():
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Puts the tables of benchmark results into a Markdown page, between two comments that name the file.

    python docs/results_tables.py docs/results.md

Every block of the page

    <!-- results: results/tum.json -->
    ...
    <!-- end of results -->

gets the tables of that results.json, which `slam benchmark` wrote, its path relative to the page, with the command and
the commit that made it. `--check` changes nothing and exits with code 1 if the page is not up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from slam.benchmarks.result_files import markdown_tables

BLOCK = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def page_with_tables(page: Path) -> str:
    """The text of a page with its blocks renewed."""

    def renewed(block: re.Match[str]) -> str:
        values = json.loads((page.parent / block[2]).read_text(encoding="utf-8"))
        session = values["sessions"][-1]
        origin = f"`{session['command']}`, commit {session['commit'][:12] or 'unknown'}, {session['machine']}."
        return f"{block[1]}\n{markdown_tables(values, level=3)}{origin}\n\n{block[3]}"

    return BLOCK.sub(renewed, page.read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true", help="say whether the page is up to date")
    given = parser.parse_args()
    text = page_with_tables(given.page)
    if given.check:
        return int(text != given.page.read_text(encoding="utf-8"))
    given.page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The folder of a benchmark's results: one file per item, so that a killed run can be resumed."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relocalizer.errors import OutputError
from slam.run.files import write_atomically, writing

REQUEST, ITEMS, RUNS, MAPS = "benchmark.json", "items", "runs", "maps"
RESULTS, TABLE, MARKDOWN, REPORT = "results.json", "results.csv", "results.md", "report.html"
FORMAT = 1
DONE, FAILED = "done", "failed"  # Status of an item.


class ResultsFolder:
    """Results of one suite with one set of settings."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, identity: Mapping[str, Any], session: Mapping[str, Any]) -> None:
        """Create the folder, or continue in one of the same suite, data and settings.

        Args:
            identity: everything on which the results depend.
            session: command, machine and versions of this run, which are added to those of earlier runs.

        Raises:
            OutputError: it holds something else, results of other settings, or cannot be written.
        """
        path, sessions = self.path / REQUEST, []
        if path.is_file():
            before = _read(path)
            if before.get("format") != FORMAT or before.get("request") != _plain(identity):
                changed = sorted(_changes(before.get("request"), _plain(identity)))
                raise OutputError(
                    f"{self.path}: holds results of other settings ({', '.join(changed[:5])}); choose another --out"
                )
            sessions = before["sessions"]
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise OutputError(f"{self.path}: is there already, and no benchmark's results; choose another --out")
        with writing(self.path):
            (self.path / ITEMS).mkdir(parents=True, exist_ok=True)
        values = {"format": FORMAT, "request": identity, "sessions": [*sessions, session]}
        write_atomically(path, _text(values))

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """Command, machine and versions of each run that added results."""
        return list(_read(self.path / REQUEST)["sessions"])

    def results(self, items: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The results there are of some items. A file that a full disk cut off counts as none."""
        found = {}
        for item in items:
            path = self._item_path(item)
            if path.is_file():
                result = _read(path)
                if result.get("item") == item:
                    found[item] = result
        return found

    def done(self, items: Sequence[str]) -> set[str]:
        """The items that need not be evaluated again: those without an error of the whole item."""
        return {item for item, result in self.results(items).items() if result.get("status") == DONE}

    def write_item(self, item: str, result: Mapping[str, Any]) -> None:
        """Write an item's result atomically. Raises OutputError."""
        write_atomically(self._item_path(item), _text(result))

    def write(self, name: str, text: str) -> None:
        """Replace a file of the folder atomically. Raises OutputError."""
        write_atomically(self.path / name, text)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Replace a JSON file of the folder atomically. Raises OutputError."""
        self.write(name, _text(values))

    def _item_path(self, item: str) -> Path:
        return self.path / ITEMS / f"{file_name(item)}.json"


def file_name(item: str) -> str:
    """A file name for an item; different items have different ones."""
    safe = re.sub(r"[^A-Za-z0-9._@+-]", "_", item).lstrip(".")[:80]
    return safe if safe == item else f"{safe}-{zlib.crc32(item.encode()):08x}"


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(_finite(values), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The value with None in place of numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(values: Mapping[str, Any]) -> Any:
    return json.loads(_text(values))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _changes(before: Any, now: Any, at: str = "") -> list[str]:
    """Names of the values that differ, dotted."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [name for key in keys for name in _changes(before.get(key), now.get(key), f"{at}.{key}" if at else key)]
    return [] if before == now else [at or "format"]

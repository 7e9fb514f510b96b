"""The event log of a run: events.jsonl."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TextIO

from slam.events import Event
from slam.run.files import refused, writing
from slam.run.plain_values import summarize
from slam.run.run_folder import RunFolder

EVENTS = "events.jsonl"


class EventLog:
    """An observer that writes every event to events.jsonl, one line per event, with long arrays summarized."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.path / EVENTS
        with writing(self._path):
            self._file: TextIO = self._path.open("w", encoding="utf-8", buffering=1)

    def __call__(self, event: Event) -> None:
        line = json.dumps({"event": type(event).__name__, **summarize(event)}, allow_nan=False)
        try:
            self._file.write(line + "\n")
        except OSError as error:
            with suppress(OSError):  # closing tries to write the rest again
                self._file.close()
            raise refused(self._path, error) from None

    def close(self) -> None:
        """Close the file; later calls do nothing. Raises OutputError when it cannot be written."""
        with writing(self._path):
            self._file.close()

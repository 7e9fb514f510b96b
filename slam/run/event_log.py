"""The event log of a run: events.jsonl."""

from __future__ import annotations

import json

from slam.events import Event
from slam.run.files import LineFile
from slam.run.plain_values import summarize
from slam.run.run_folder import RunFolder

EVENTS = "events.jsonl"


class EventLog:
    """An observer that writes every event to events.jsonl, one line per event, with long arrays summarized."""

    def __init__(self, folder: RunFolder) -> None:
        self._file = LineFile(folder.path / EVENTS)

    def __call__(self, event: Event) -> None:
        values = {"event": type(event).__name__, **summarize(event)}
        self._file.write(json.dumps(values, allow_nan=False) + "\n")

    def close(self) -> None:
        """Close the file; later calls do nothing. Raises OutputError when it cannot be written."""
        self._file.close()

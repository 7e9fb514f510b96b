"""A run folder: what a run leaves on disk, written so that a crash or Ctrl-C leaves something readable."""

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
    """An observer that streams every event to events.jsonl, a line each, arrays shortened."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.path / EVENTS
        with writing(self._path):
            self._file: TextIO = self._path.open("w", encoding="utf-8", buffering=1)

    def __call__(self, event: Event) -> None:
        line = json.dumps({"event": type(event).__name__, **summarize(event)}, allow_nan=False)
        try:
            self._file.write(line + "\n")
        except OSError as error:
            with suppress(OSError):  # closing tries to write the rest once more
                self._file.close()
            raise refused(self._path, error) from None

    def close(self) -> None:
        """Safe to call twice. Raises OutputError when the disk refuses."""
        with writing(self._path):
            self._file.close()

"""The event log of a run: events.jsonl."""

from __future__ import annotations

import json
from dataclasses import replace

from slam.events import Event, FrameProcessed
from slam.run.files import LineFile
from slam.run.plain_values import summarize
from slam.run.run_folder import RunFolder

EVENTS = "events.jsonl"


class EventLog:
    """An observer that writes every event to events.jsonl, one line per event, with long arrays summarized.

    The tracked points are logged for the frames that became keyframes, whose images the map keeps.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._file = LineFile(folder.path / EVENTS)

    def __call__(self, event: Event) -> None:
        if isinstance(event, FrameProcessed) and not event.is_keyframe:
            event = replace(event, points=None)
        values = {"event": type(event).__name__, **summarize(event)}
        self._file.write(json.dumps(values, allow_nan=False) + "\n")

    def close(self) -> None:
        """Close the file; later calls do nothing. Raises OutputError when it cannot be written."""
        self._file.close()

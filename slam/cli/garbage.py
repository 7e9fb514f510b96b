"""Garbage collection in the process of the command line."""

from __future__ import annotations

import gc

# Number of new objects after which Python looks for cycles among them while modules are imported. At its usual 700 a
# tenth of the start-up went there: the imports make 100,000 objects that all stay.
OBJECTS_AT_START = 10_000
_USUAL = gc.get_threshold()


def collect_rarely() -> None:
    """Look for cyclic garbage a tenth as often as usual, until `collect_as_usual`."""
    gc.set_threshold(OBJECTS_AT_START, *_USUAL[1:])


def collect_as_usual() -> None:
    """Look for cyclic garbage as often as Python does: a run leaves cycles that hold images and maps."""
    gc.set_threshold(*_USUAL)

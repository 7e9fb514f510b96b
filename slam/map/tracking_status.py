"""What happened, as plain frozen values. The core emits them; the console, Rerun, the log and tests listen.

An event carries values, never the system. An observer is any callable that takes one event.
"""

from __future__ import annotations

from enum import StrEnum


class TrackingState(StrEnum):
    INITIALIZING = "initializing"
    TRACKING = "tracking"
    LOST = "lost"

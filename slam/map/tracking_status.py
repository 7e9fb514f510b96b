"""The tracking state as it appears in events and results."""

from __future__ import annotations

from enum import StrEnum


class TrackingState(StrEnum):
    """Tracking state of the system, with the meaning of ORB-SLAM's tracking states."""

    INITIALIZING = "initializing"
    TRACKING = "tracking"
    LOST = "lost"

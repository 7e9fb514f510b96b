"""Memory of this process, in the unit of reports."""

from __future__ import annotations

from relocalizer.process_memory import peak_memory_bytes


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far, megabytes; 0 where Python's library does not tell it."""
    return peak_memory_bytes() / 2**20

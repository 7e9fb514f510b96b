"""The error of benchmark data."""

from __future__ import annotations

from relocalizer.errors import UserError


class BenchmarkError(UserError):
    """Data of a benchmark that are missing, or not as published; one line."""

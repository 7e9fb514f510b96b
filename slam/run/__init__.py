"""Recorded runs: frame loop, interruption, run folder, report, event log and replay."""

"""A run with its folder: the loop, interruption, report, event log and replay."""

"""Visualization of a run in Rerun."""

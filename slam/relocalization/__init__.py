"""Relocalization of frames in the map, live and when a run ends."""

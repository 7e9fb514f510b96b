"""Whole maps: stored, merged, made metric."""

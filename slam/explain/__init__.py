"""Explanation of a finished run: what went wrong, in which frames, why, and what would help."""

"""Clips with exact ground truth of what goes wrong in hand-held footage; `sequences/stress.py` writes them."""

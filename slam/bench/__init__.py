"""Measurements of a run: cost, and ablation."""

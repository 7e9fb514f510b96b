"""Trajectories: their files, and their evaluation against ground truth."""

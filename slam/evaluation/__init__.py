"""Trajectories and their files, alignment, error metrics and the verdict on a run."""

"""Cost of a run, and what each part of the system contributes."""

"""Threads of the linear algebra in the process of the command line."""

from __future__ import annotations

import os
import sys

BLAS_THREADS = "OPENBLAS_NUM_THREADS"  # read by OpenBLAS, which the wheels of NumPy and SciPy contain
CHOSEN_BY_USER = (BLAS_THREADS, "GOTO_NUM_THREADS", "OMP_NUM_THREADS")  # what OpenBLAS reads, in this order


def limit_blas_threads() -> None:
    """Let OpenBLAS use one thread, unless the environment says how many.

    The matrices of a run are small: more threads do not make it faster, but spin while they wait for each other, which
    took a quarter of the processor time. OpenBLAS reads the variable when NumPy is imported; a process that has
    imported NumPy, and all who use the packages as a library, keep their threads. PyTorch and OpenCV have threads of
    their own, which do not change.
    """
    if "numpy" not in sys.modules and not any(name in os.environ for name in CHOSEN_BY_USER):
        os.environ[BLAS_THREADS] = "1"

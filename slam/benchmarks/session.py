"""What produced a result: the command, the commit, the machine, the versions and the weights."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slam.components.predictor_choice import NETWORKS, RANDOM_WEIGHTS
from slam.config.schema import SlamConfig
from slam.run.report import versions

_BLOCK_BYTES = 2**22


def session_values(arguments: Sequence[str], config: SlamConfig) -> dict[str, Any]:
    """Facts of this process for the results of a benchmark.

    Args:
        arguments: of the command line.
        config: with the predictor resolved.
    """
    facts = process_values(arguments)
    name = config.predictor.kind
    if config.predictor.random_weights:
        name = f"{name}, {RANDOM_WEIGHTS}"
    return {**facts, "predictor": name, "weights_sha256": weights_sha256(config)}


def process_values(arguments: Sequence[str]) -> dict[str, Any]:
    """Facts of this process, without a predictor."""
    return {
        "command": "slam " + shlex.join(arguments),
        "commit": commit(),
        "predictor": "",
        "weights_sha256": "",
        "machine": machine(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def commit() -> str:
    """Commit of the source tree that the package is imported from, "+" if files were changed; empty without one."""
    package = Path(__file__).resolve().parent
    try:
        found, changed = (
            subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", ".."])
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or installed from a wheel
        return ""
    return found.strip() + "+" * bool(changed.strip())


def weights_sha256(config: SlamConfig) -> str:
    """Checksum of the weights of the configured network; empty without weights.

    Raises:
        WeightsError: the weights are not on this machine.
    """
    if config.predictor.kind not in NETWORKS or config.predictor.random_weights:
        return ""
    from relocalizer.predictors.checkpoints import resolve

    digest = hashlib.sha256()
    with resolve(config.predictor.weights or config.predictor.kind).weights.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def machine() -> str:
    """Platform, processor, number of cores and memory, in one line."""
    known = f"{platform.platform()}, {_processor()}, {os.cpu_count()} cores"
    if not hasattr(os, "sysconf"):  # Windows
        return known
    return f"{known}, {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())

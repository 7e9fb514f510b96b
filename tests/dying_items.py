"""Evaluations of made-up items, in worker processes: some of them kill their process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def evaluate(request: str, item: str) -> dict[str, Any]:
    """`die-N` kills its process at the first N tries, counted in the folder `request`; `sleep` takes ten minutes."""
    folder = Path(request)
    tries = folder / f"{item}.tries"
    count = len(tries.read_text()) if tries.exists() else 0
    with tries.open("a") as file:
        file.write("x")
    if item.startswith("die-") and count < int(item.split("-")[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "sleep":
        (folder / "sleep.new").write_text(str(os.getpid()))
        (folder / "sleep.new").rename(folder / "sleep.pid")
        time.sleep(600)
    return {
        "item": item,
        "status": "done",
        "faults": [],
        "internal": "",
        "seconds": 0.0,
        "peak_memory_mb": 1e6 if item.startswith("large") else 1.0,
        "machine": "",
        "values": {"process": os.getpid()},
    }

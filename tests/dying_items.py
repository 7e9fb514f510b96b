"""Made-up work for worker processes: some items kill their process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def work(request: str, item: str) -> int:
    """The process. `die-N` kills it at the first N tries, counted in the folder `request`; `sleep` does not end."""
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
    return os.getpid()

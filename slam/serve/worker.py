"""The one thread that owns the relocalizer, whose objects are not thread-safe."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from slam.serve.map_localizer import MapLocalizer
from slam.serve.uploads import Upload


class LocalizationWorker:
    """Answers uploads one after the other, in the order in which they came."""

    def __init__(self, make: Callable[[], MapLocalizer]) -> None:
        """`make` is called in the thread. Raises what it raises."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="localizer")
        try:
            self._localizer = self._thread.submit(make).result()
        except BaseException:
            self.close()
            raise

    async def locate(self, upload: Upload) -> dict[str, Any]:
        """As `MapLocalizer.locate`."""
        return await asyncio.wrap_future(self._thread.submit(self._localizer.locate, upload))

    def close(self) -> None:
        """Let the current image be answered, and no other."""
        self._thread.shutdown(cancel_futures=True)

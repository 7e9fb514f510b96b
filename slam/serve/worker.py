"""The one thread that owns the relocalizer, whose objects are not thread-safe, and one that prepares images for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from slam.serve.map_localizer import MapLocalizer
from slam.serve.uploads import Upload


class LocalizationWorker:
    """Answers uploads one after the other, in the order in which they came.

    While an image is localized, the next one is decoded and its features are extracted, a third of the work.
    """

    def __init__(self, make: Callable[[], MapLocalizer]) -> None:
        """`make` is called in the thread of the relocalizer. Raises what it raises."""
        self._preparing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="images")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="localizer")
        try:
            self._localizer = self._thread.submit(make).result()
        except BaseException:
            self.close()
            raise

    async def locate(self, upload: Upload) -> dict[str, Any]:
        """The answer to an upload. Raises UserError as `MapLocalizer.prepare`."""
        prepared = await asyncio.wrap_future(self._preparing.submit(self._localizer.prepare, upload))
        return await asyncio.wrap_future(self._thread.submit(self._localizer.locate, prepared))

    def close(self) -> None:
        """Let the current images be finished, and no other."""
        for thread in (self._preparing, self._thread):
            thread.shutdown(cancel_futures=True)

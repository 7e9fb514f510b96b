"""Screenshots of the web viewer in headless Chromium, driven by Playwright; Debian's Chromium or any other on PATH."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from relocalizer.images import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
SIZE = (1280, 800)
WAIT_S = 150.0  # Rerun's page is 43 MB of WebAssembly, drawn without a graphics card


def why_no_browser() -> str:
    """Why no screenshot can be taken here; empty if one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "Playwright is not installed: pip install playwright"
    return "" if any(map(shutil.which, NAMES)) else "no Chromium on PATH: apt-get install chromium"


def screenshot(url: str, path: Path, is_ready: Callable[[Image], bool] = lambda image: True) -> Image:
    """A screenshot of a page once `is_ready(image)`, RGB; written to `path` as well.

    Raises:
        TimeoutError: it was not ready in time; the last screenshot is at `path`.
    """
    from playwright.sync_api import sync_playwright

    browser_path = next(found for name in NAMES if (found := shutil.which(name)))
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=list(OPTIONS), timeout=120_000)
        try:
            page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
            page.set_default_timeout(120_000)
            page.route("**/*", _only_local)
            page.goto(f"{url}&renderer=webgl&hide_welcome_screen=1", wait_until="commit")
            return _when_ready(page, path, is_ready)
        finally:
            browser.close()


def _only_local(route: Any) -> None:
    """Let nothing through that leads to other machines, such as fonts."""
    if "://127.0.0.1" in route.request.url or "://localhost" in route.request.url:
        route.continue_()
    else:
        route.abort()


def _when_ready(page: Any, path: Path, is_ready: Callable[[Image], bool]) -> Image:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        time.sleep(3.0)
        page.screenshot(path=str(path))
        read = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert read is not None
        image = np.asarray(cv2.cvtColor(read, cv2.COLOR_BGR2RGB), np.uint8)
        if is_ready(image):
            return image
    raise TimeoutError(f"{path}: not what was expected after {WAIT_S:.0f} s")

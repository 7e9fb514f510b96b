"""How did the camera move, and what does it remember? From a stream of pictures.

Importing this package loads no heavy library; names are fetched when first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Frame": "slam.frames",
    "Slam": "slam.system",
    "SlamConfig": "slam.config",
    "Trajectory": "slam.trajectory",
    "build": "slam.pipeline",
    "open_source": "slam.sequence",
    "run": "slam.pipeline",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'slam' has no attribute {name!r}")

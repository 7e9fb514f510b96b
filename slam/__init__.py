"""How did the camera move, and what does it remember? From a stream of images.

Importing this package loads no heavy library; names are fetched when first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Frame": "slam.map.frames",
    "Slam": "slam.system",
    "SlamConfig": "slam.config.schema",
    "Trajectory": "slam.evaluation.trajectory",
    "build": "slam.run.runner",
    "open_source": "slam.input.open_source",
    "run": "slam.run.runner",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'slam' has no attribute {name!r}")

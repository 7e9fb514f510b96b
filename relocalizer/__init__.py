"""Where was this picture taken? From pictures whose poses are known.

Importing this package loads no heavy library; names are fetched when first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Camera": "relocalizer.images",
    "Candidate": "relocalizer.interfaces",
    "NoEstimate": "relocalizer.interfaces",
    "PairEstimate": "relocalizer.interfaces",
    "PosePredictor": "relocalizer.interfaces",
    "Retriever": "relocalizer.interfaces",
    "Similarity": "relocalizer.geometry",
    "UserError": "relocalizer.errors",
    "View": "relocalizer.interfaces",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'relocalizer' has no attribute {name!r}")

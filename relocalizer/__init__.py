"""Visual relocalization: the camera pose of an image, estimated from images with known poses.

Importing this package loads no heavy library; public names are imported on first use.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "CalibratedImage": "relocalizer.interfaces",
    "Camera": "relocalizer.camera",
    "Candidate": "relocalizer.interfaces",
    "NoEstimate": "relocalizer.interfaces",
    "NotFound": "relocalizer.relocalizer",
    "PairEstimate": "relocalizer.interfaces",
    "PosePredictor": "relocalizer.interfaces",
    "PosedImage": "relocalizer.maps.image_matching",
    "ReferenceMap": "relocalizer.maps.reference_map",
    "Relocalization": "relocalizer.relocalizer",
    "Relocalizer": "relocalizer.relocalizer",
    "Retriever": "relocalizer.interfaces",
    "Similarity": "relocalizer.geometry",
    "UserError": "relocalizer.errors",
    "load_map": "relocalizer.maps.map_reader",
    "save_map": "relocalizer.maps.map_writer",
    "map_from_poses": "relocalizer.maps.map_from_poses",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'relocalizer' has no attribute {name!r}")

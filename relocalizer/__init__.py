"""Visual relocalization: the camera pose of an image, estimated from images with known poses.

What is imported from here is the public interface; docs/api.md describes it. Importing the package loads no heavy
library: a name is imported from its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relocalizer.camera import Camera as Camera
    from relocalizer.camera import Undistorter as Undistorter
    from relocalizer.camera import load_camera as load_camera
    from relocalizer.errors import UserError as UserError
    from relocalizer.geometry import Similarity as Similarity
    from relocalizer.images import read_image as read_image
    from relocalizer.interfaces import CalibratedImage as CalibratedImage
    from relocalizer.interfaces import Candidate as Candidate
    from relocalizer.interfaces import NoEstimate as NoEstimate
    from relocalizer.interfaces import PairEstimate as PairEstimate
    from relocalizer.interfaces import PosePredictor as PosePredictor
    from relocalizer.interfaces import Retriever as Retriever
    from relocalizer.maps.image_matching import PosedImage as PosedImage
    from relocalizer.maps.map_from_poses import map_from_poses as map_from_poses
    from relocalizer.maps.map_reader import load_map as load_map
    from relocalizer.maps.map_writer import save_map as save_map
    from relocalizer.maps.reference_map import ReferenceMap as ReferenceMap
    from relocalizer.predictors.geometric_predictor import GeometricPredictor as GeometricPredictor
    from relocalizer.relocalizer import NotFound as NotFound
    from relocalizer.relocalizer import Relocalization as Relocalization
    from relocalizer.relocalizer import Relocalizer as Relocalizer

__version__ = "0.2.0"

_HOMES = {
    "CalibratedImage": "relocalizer.interfaces",
    "Camera": "relocalizer.camera",
    "Candidate": "relocalizer.interfaces",
    "GeometricPredictor": "relocalizer.predictors.geometric_predictor",
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
    "Undistorter": "relocalizer.camera",
    "UserError": "relocalizer.errors",
    "load_camera": "relocalizer.camera",
    "load_map": "relocalizer.maps.map_reader",
    "map_from_poses": "relocalizer.maps.map_from_poses",
    "read_image": "relocalizer.images",
    "save_map": "relocalizer.maps.map_writer",
}

__all__ = [
    "CalibratedImage",
    "Camera",
    "Candidate",
    "GeometricPredictor",
    "NoEstimate",
    "NotFound",
    "PairEstimate",
    "PosePredictor",
    "PosedImage",
    "ReferenceMap",
    "Relocalization",
    "Relocalizer",
    "Retriever",
    "Similarity",
    "Undistorter",
    "UserError",
    "load_camera",
    "load_map",
    "map_from_poses",
    "read_image",
    "save_map",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'relocalizer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]

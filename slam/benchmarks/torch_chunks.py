"""Scenes in the `.torch` chunks of pixelSplat (RealEstate10K, ACID): JPEG images with a camera each.

A chunk is a list of dictionaries with `key`, `images` (a list of JPEG files as bytes) and `cameras` (N, 18): focal
lengths and principal point over the image's size (4), two zeros, cam_from_world row by row (12). `index.json` beside
the chunks names the chunk of each scene.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from relocalizer.geometry import FloatArray
from relocalizer.images import Image, decode_image
from slam.benchmarks.benchmark_error import BenchmarkError
from slam.benchmarks.pair_data import ListedImage, rigid_inverse, rigid_matrix
from slam.input.text_rows import path_inside

INDEX = "index.json"
CAMERA_NUMBERS = 18


@dataclass(frozen=True, slots=True, eq=False)
class ChunkScene:
    """One scene of a chunk: its images as JPEG data, and the cameras (N, 18)."""

    key: str
    images: list[Any]
    cameras: FloatArray

    def image(self, k: int) -> ListedImage:
        """Image k. Raises BenchmarkError if there is none."""
        if not 0 <= k < len(self.images):
            raise BenchmarkError(f"{self.key}: image {k} is listed, but the scene has {len(self.images)}")
        image = partial(_decoded, self.images[k], f"{self.key}, image {k}")
        height, width = image().shape[:2]
        fx, fy, cx, cy = self.cameras[k, :4] * [width, height, width, height]
        K = np.array([[fx, 0.0, cx - 0.5], [0.0, fy, cy - 0.5], [0.0, 0.0, 1.0]])
        return ListedImage(name=f"{self.key}/{k}", read=image, intrinsics=K)

    def world_from_cam(self, k: int) -> FloatArray:
        """Pose (4, 4) of image k."""
        return rigid_inverse(rigid_matrix(self.cameras[k, 6:], f"{self.key}, image {k}"))


def _decoded(data: Any, name: str) -> Image:
    return decode_image(bytes(np.asarray(data, dtype=np.uint8)), name)


def chunk_folder(root: Path) -> Path:
    """The folder with the chunks of the test split. Raises BenchmarkError if there is none."""
    for folder in (root / "test", root):
        if (folder / INDEX).is_file():
            return folder
    raise BenchmarkError(f"{root}: no test/{INDEX}; expected the chunks of pixelSplat, test/*.torch, with their index")


def read_index(path: Path) -> dict[str, Any]:
    """A JSON file with an object in it. Raises BenchmarkError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchmarkError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise BenchmarkError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise BenchmarkError(f"{path}: expected an object with a value for each scene")
    return data


def read_scene(folder: Path, chunks: Mapping[str, Any], key: str) -> ChunkScene:
    """A scene by its key. Raises BenchmarkError if it is not there, or the chunk cannot be read."""
    if key not in chunks:
        raise BenchmarkError(f"{folder / INDEX}: no scene {key}")
    path = path_inside(folder, str(chunks[key]), str(folder / INDEX))
    found = _scenes_of(path).get(key)
    if found is None:
        raise BenchmarkError(f"{path}: no scene {key} in it, though {INDEX} names it")
    return found


@lru_cache(maxsize=1)  # A chunk has about 100 MB, and its scenes are evaluated one after another.
def _scenes_of(path: Path) -> dict[str, ChunkScene]:
    import torch  # takes two seconds, and only these data sets need it

    try:
        scenes = torch.load(path, map_location="cpu", weights_only=True)
        return {
            str(scene["key"]): ChunkScene(str(scene["key"]), list(scene["images"]), _cameras(scene["cameras"], path))
            for scene in scenes
        }
    except OSError as error:
        raise BenchmarkError(f"{path}: cannot be read ({error.strerror})") from None
    except (pickle.UnpicklingError, RuntimeError, TypeError, KeyError, ValueError, EOFError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BenchmarkError(f"{path}: not a chunk of scenes with key, images and cameras ({first})") from None


def _cameras(values: Any, path: Path) -> FloatArray:
    cameras = np.asarray(values, dtype=np.float64)
    if cameras.ndim != 2 or cameras.shape[1] != CAMERA_NUMBERS:
        raise BenchmarkError(f"{path}: expected cameras of {CAMERA_NUMBERS} numbers, got an array {cameras.shape}")
    return cameras

"""Images that are named one by one, or by patterns such as 'photos/*.jpg'."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from relocalizer.errors import SequenceError
from relocalizer.images import IMAGE_SUFFIXES
from relocalizer.unfetched import why_unfetched
from slam.input.dataset_calibrations import folder_camera
from slam.input.folder_listing import NOMINAL_FPS, in_natural_order, missing_images, nominal_times
from slam.input.mask import ignored_in
from slam.input.name_times import times_in_names
from slam.input.sequence_index import SequenceIndex


def expand(specs: Sequence[str]) -> list[Path]:
    """The paths of names and patterns; those that match a pattern are in natural order.

    Names that a shell has made of a pattern are in alphabetical order, and are put into natural order, too; any other
    order is kept.

    Raises:
        SequenceError: a pattern matches nothing.
    """
    groups = [_matches(os.path.expanduser(spec)) for spec in specs]
    paths = [path for group in groups for path in group]
    return in_natural_order(paths) if paths == sorted(paths) else paths


def _matches(spec: str) -> list[Path]:
    path = Path(spec)
    if os.path.lexists(path) or not glob.has_magic(spec):
        return [path]
    found = in_natural_order([Path(name) for name in glob.glob(spec, recursive=True)])
    images = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and not os.path.isdir(path)]
    if not found:
        raise SequenceError(f"{spec}: nothing matches this pattern")
    return images or found


def index_images(paths: Sequence[Path]) -> SequenceIndex:
    """The index of images that were named; a camera.yaml beside all of them is their camera.

    Raises:
        SequenceError: one of them is no image, is there twice, or none of them exists.
        CameraError, MaskError: the camera.yaml cannot be read.
    """
    for path in paths:
        if not os.path.lexists(path):
            raise SequenceError(f"{path}: no such file or folder")
        if path.suffix.lower() not in IMAGE_SUFFIXES or os.path.isdir(path):
            reason = why_unfetched(path) or "not an image; of several sources each must be one"
            raise SequenceError(f"{path}: {reason}")
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if list(paths).count(path) > 1)
        raise SequenceError(f"{twice}: named twice; expected every image once")
    named = times_in_names(paths)
    ordered = tuple(paths) if named is None else named.paths
    folder = Path(os.path.commonpath([os.path.abspath(path.parent) for path in paths]))
    own_camera = folder / "camera.yaml"
    has_camera = os.path.isfile(own_camera)
    clock = f"no times, so {NOMINAL_FPS} images a second assumed" if named is None else named.note
    return SequenceIndex(
        name=folder.name,
        layout="list of images",
        image_paths=ordered,
        timestamps_ns=nominal_times(range(len(paths)), NOMINAL_FPS) if named is None else named.timestamps_ns,
        camera=folder_camera(own_camera, ordered) if has_camera else None,
        camera_source=str(own_camera) if has_camera else "",
        ignored=ignored_in(own_camera) if has_camera else (),
        notes=(clock, *missing_images(folder, ordered)),
    )

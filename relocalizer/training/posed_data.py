"""Pairs from maps, and from lists of images with poses, split into a part to train on and a part held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from relocalizer.errors import TrainingError
from relocalizer.geometry import FloatArray, stack_matrices
from relocalizer.maps.image_matching import PosedImage
from relocalizer.maps.map_format import JpegImages
from relocalizer.maps.map_reader import load_map
from relocalizer.maps.reference_map import ReferenceMap
from relocalizer.training.pair_data import Ids, PairSet, View, expect_apart
from relocalizer.training.pair_selection import (
    PairRule,
    assumed_depth,
    pairs_by_covisibility,
    pairs_by_frustum,
    with_direction,
)

SplitBy = Literal["time", "sequence"]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Sets to train on, and sets of other images to evaluate on."""

    training: list[PairSet]
    held_out: list[PairSet]


def pairs_of_map(folder: Path, rule: PairRule | None = None) -> PairSet:
    """Pairs of keyframes of a map or a run that see common landmarks. Views are in order of time.

    Raises:
        MapError: there is no map, or it is damaged.
        TrainingError: no two keyframes see enough common landmarks.
    """
    reference_map = load_map(folder)
    keyframes = reference_map.keyframes
    order = np.lexsort((keyframes.timestamps_ns, reference_map.session_of_keyframe))
    seen = [_landmarks_of(reference_map, int(row)) for row in order]
    pairs = pairs_by_covisibility(seen, rule or PairRule())
    segments = keyframes.segment[order]
    pairs = pairs[segments[pairs[:, 0]] == segments[pairs[:, 1]]]  # segments have worlds of their own
    if len(pairs) == 0:
        raise TrainingError(f"{folder}: no two of its {len(keyframes)} keyframes see enough common landmarks")
    depths = np.array([_depth(reference_map, int(row), ids) for row, ids in zip(order, seen, strict=True)])

    def identity(number: int) -> str:
        return _identity_in_map(reference_map, int(order[number]))

    def view(number: int) -> View:
        row = int(order[number])
        return View(
            name=f"{folder}: keyframe {keyframes.ids[row]}",
            identity=identity(number),
            read=lambda: reference_map.image(row),
            camera=reference_map.camera_of(row),
            world_from_cam=_world_from_keyframe(reference_map, row),
        )

    known = with_direction(keyframes.translations[order], pairs, depths)
    return PairSet(name=str(folder), pairs=pairs, view=view, identity=identity, has_direction=known)


def pairs_of_images(name: str, images: Sequence[PosedImage], rule: PairRule | None = None) -> PairSet:
    """Pairs of images with poses, in order of time, by index gap and overlap of their frusta.

    Raises:
        TrainingError: no two frusta overlap enough.
    """
    ordered = sorted(images, key=lambda image: image.timestamp_ns)
    poses = stack_matrices([image.world_from_cam for image in ordered])
    centers = poses[:, :3, 3]
    depth = assumed_depth(centers)
    pairs = pairs_by_frustum([image.camera for image in ordered], poses, depth, rule or PairRule())
    if len(pairs) == 0:
        raise TrainingError(f"{name}: no two of its {len(images)} images overlap enough")
    return _set_of_images(name, ordered, pairs, depth)


def pairs_of_tracks(
    name: str, images: Sequence[PosedImage], points: tuple[Ids, FloatArray], rule: PairRule | None = None
) -> PairSet:
    """Pairs of images with poses, in order of time, that see common landmarks.

    Args:
        points: ids (N,), sorted, and positions (N, 3) of the landmarks, in the world of the poses.

    Raises:
        TrainingError: no two images see enough common landmarks.
    """
    ordered = sorted(images, key=lambda image: image.timestamp_ns)
    ids, positions = points
    nothing = np.zeros(0, np.int64)
    seen = [np.intersect1d(nothing if image.landmarks is None else image.landmarks, ids) for image in ordered]
    pairs = pairs_by_covisibility(seen, rule or PairRule())
    if len(pairs) == 0:
        raise TrainingError(f"{name}: no two of its {len(images)} images see enough common landmarks")
    found = [positions[np.searchsorted(ids, of_image)] for of_image in seen]
    poses = stack_matrices([image.world_from_cam for image in ordered])
    depths = [_median_depth(p, pose[:3, :3], pose[:3, 3]) for p, pose in zip(found, poses, strict=True)]
    return _set_of_images(name, ordered, pairs, np.array(depths))


def _set_of_images(name: str, ordered: Sequence[PosedImage], pairs: Ids, depth: float | FloatArray) -> PairSet:
    """Pairs (P, 2) of posed images, with the scene depth of all or of each (N,)."""
    poses = stack_matrices([image.world_from_cam for image in ordered])

    def identity(number: int) -> str:
        image = ordered[number]
        facts = f"{image.name} {image.timestamp_ns}".encode() + poses[number].tobytes()
        return hashlib.sha256(facts).hexdigest()

    def view(number: int) -> View:
        image = ordered[number]
        return View(
            name=f"{name}: {image.name}",
            identity=identity(number),
            read=image.read,
            camera=image.camera,
            world_from_cam=poses[number],
        )

    known = with_direction(poses[:, :3, 3], pairs, depth)
    return PairSet(name=name, pairs=pairs, view=view, identity=identity, has_direction=known)


def split(sets: Sequence[PairSet], by: SplitBy, share: float) -> Split:
    """Hold out the last `share` of the views of each set, or of the sets.

    A pair with a view in each part is in neither, so no image is in both.

    Raises:
        TrainingError: a part is empty, or an image of one set to train on is also in one that is held out.
    """
    if by == "sequence":
        if len(sets) < 2:
            raise TrainingError(f"{sets[0].name}: one sequence cannot be split by sequence; split by time, or add one")
        count = max(1, round(share * len(sets)))
        parts = Split(list(sets[:-count]), list(sets[-count:]))
    else:
        halves = [_split_by_time(part, share) for part in sets]
        parts = Split([first for first, _ in halves], [second for _, second in halves])
    expect_apart(parts.training, parts.held_out)
    return parts


def _split_by_time(part: PairSet, share: float) -> tuple[PairSet, PairSet]:
    views = np.unique(part.pairs)
    first_held_out = views[min(round((1 - share) * len(views)), len(views) - 1)]
    late = part.pairs >= first_held_out
    found = []
    for chosen, what in ((~late.any(axis=1), "to train on"), (late.all(axis=1), "held out")):
        if not chosen.any():
            raise TrainingError(
                f"{part.name}: no pairs {what} when the last {100 * share:g} % of {len(views)} images are held out; "
                "use a longer sequence, or another share"
            )
        pairs, known = part.pairs[chosen], part.has_direction[chosen]
        found.append(replace(part, name=f"{part.name} ({what})", pairs=pairs, has_direction=known))
    return found[0], found[1]


def _landmarks_of(reference_map: ReferenceMap, row: int) -> Ids:
    """Ids of the triangulated landmarks that a keyframe sees."""
    start, end = reference_map.observations.offsets[row : row + 2].tolist()
    return np.intersect1d(reference_map.observations.landmark[start:end], reference_map.landmarks.ids)


def _depth(reference_map: ReferenceMap, row: int, ids: Ids) -> float:
    """Median depth of the landmarks that a keyframe sees, map units; infinite without any."""
    keyframes = reference_map.keyframes
    points = reference_map.points_world[np.searchsorted(reference_map.landmarks.ids, ids)]
    return _median_depth(points, keyframes.rotations[row], keyframes.translations[row])


def _median_depth(points_world: FloatArray, rotation: FloatArray, center: FloatArray) -> float:
    """Median depth of points (N, 3) in a camera, of which rotation and center are world_from_cam; infinite of none."""
    return float(np.median((points_world - center) @ rotation[:, 2])) if len(points_world) else float("inf")


def _identity_in_map(reference_map: ReferenceMap, row: int) -> str:
    """The image's own bytes: two maps of one recording share images."""
    images = reference_map.image
    data = images.jpeg(row) if isinstance(images, JpegImages) else images(row).tobytes()
    return hashlib.sha256(data).hexdigest()


def _world_from_keyframe(reference_map: ReferenceMap, row: int) -> FloatArray:
    pose = np.eye(4)
    pose[:3, :3] = reference_map.keyframes.rotations[row]
    pose[:3, 3] = reference_map.keyframes.translations[row]
    return pose

"""The upward direction of a map, from how its cameras were held and where they went; and the map turned upright.

Images alone do not show gravity. People hold cameras level: the horizontal axes of the images are horizontal in the
world, and the images' upward directions are up on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from relocalizer.geometry import FloatArray, Similarity
from relocalizer.maps.map_export import segment_number
from relocalizer.maps.reference_map import ReferenceMap

AXES = {"z": (0.0, 0.0, 1.0), "-y": (0.0, -1.0, 0.0)}
MIN_AGREEMENT = 0.5  # minimum length of the mean of the images' upward directions: below it they point all ways
MIN_TURN = 0.06  # minimum second moment of the horizontal axes about their mean direction, as of a turn by 28 degrees
MAX_ROLL = 0.25  # maximum ratio of the smallest second moment to the next one for the axes to be horizontal
MAX_PITCH_DEG = 45.0  # maximum angle between the result and the mean upward direction of the images
MAX_FLATNESS = 0.1  # maximum ratio of the path's height to its width for the path to be one on level ground
MIN_WIDTH = 0.2  # minimum ratio of the path's width to its length for it to have a plane
MAX_TILT_DEG = 30.0  # maximum angle between the path's upward normal and the mean upward direction of the images


@dataclass(frozen=True, slots=True, eq=False)
class UpDirection:
    """An upward direction (3,), unit, in the world; `reason` says what it was estimated from."""

    up: FloatArray
    reason: str


@dataclass(frozen=True, slots=True)
class UpUnknown:
    """No upward direction; `reason` is a sentence with the numbers."""

    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class UprightMap:
    """A map with one segment turned upright, and what its upward direction was estimated from."""

    map: ReferenceMap
    reason: str


def upright(m: ReferenceMap, *, axis: Literal["z", "-y"], segment: int | None = None) -> UprightMap | UpUnknown:
    """A map with one segment, by default the largest, turned by the smallest rotation that makes `axis` its up.

    Raises:
        MapError: there is no such segment.
    """
    chosen = segment_number(m, segment)
    rows = np.flatnonzero(m.keyframes.segment == chosen)
    found = estimate_up(m.keyframes.rotations[rows], m.keyframes.translations[rows])
    if isinstance(found, UpUnknown):
        return found
    rotation = rotation_to(AXES[axis], found.up)
    return UprightMap(transformed(m, chosen, Similarity(rotation, np.zeros(3), 1.0)), found.reason)


def in_east_north_up(m: ReferenceMap, enu_from_world: FloatArray, *, axis: Literal["z", "-y"]) -> ReferenceMap:
    """A metric map with its largest segment in axes east, north and up, or east, down and north where `axis` is -y.

    Args:
        enu_from_world: (4, 4), rigid.
    """
    turn = np.eye(3) if axis == "z" else np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    rotation, translation = turn @ enu_from_world[:3, :3], turn @ enu_from_world[:3, 3]
    return transformed(m, segment_number(m, None), Similarity(rotation, translation, 1.0))


def estimate_up(rotations: FloatArray, positions: FloatArray) -> UpDirection | UpUnknown:
    """The upward direction of a world, from the rotations world_from_cam (N, 3, 3) and positions (N, 3) of its cameras.

    Where the cameras turn, up is the direction most nearly at right angles to the horizontal axes of all images, as
    panoramas are leveled (Brown and Lowe, "Automatic panoramic image stitching", 2007): pitch does not matter. Where
    they all look one way, that leaves the pitch open, and it is the normal of the plane of their path, or, for a path
    without one, the mean upward direction of the images.
    """
    if len(rotations) == 0:
        return UpUnknown("there are no cameras")
    mean_up = -rotations[:, :, 1].mean(axis=0)
    agreement = float(np.linalg.norm(mean_up))
    if agreement < MIN_AGREEMENT:
        return UpUnknown(
            f"the images' upward directions do not agree (mean of length {agreement:.2f}, {MIN_AGREEMENT:g} needed)"
        )
    mean_up /= agreement
    horizontal = rotations[:, :, 0]
    moments, axes = np.linalg.eigh(horizontal.T @ horizontal / len(horizontal))
    if moments[1] >= MIN_TURN and moments[0] <= MAX_ROLL * moments[1]:
        up = _toward(axes[:, 0], mean_up)
        roll_deg = float(np.degrees(np.sqrt(max(moments[0], 0.0))))
        reason = f"the horizontal axes of {len(rotations)} images, level to {roll_deg:.1f} deg"
        return _checked(up, mean_up, reason)
    normal = _normal_of_path(positions)
    if normal is not None:
        up = _toward(normal, mean_up)
        if _angle_deg(up, mean_up) <= MAX_TILT_DEG:
            return UpDirection(up, f"the plane of the path of {len(rotations)} cameras")
    return UpDirection(mean_up, f"the mean of the upward directions of {len(rotations)} images, whose pitch is unknown")


def _checked(up: FloatArray, mean_up: FloatArray, reason: str) -> UpDirection | UpUnknown:
    """The direction, unless it contradicts the images: then the cameras were not held level."""
    tilt_deg = _angle_deg(up, mean_up)
    if tilt_deg > MAX_PITCH_DEG:
        return UpUnknown(f"{reason} are {tilt_deg:.0f} deg from the images' mean upward direction: held upright?")
    return UpDirection(up, reason)


def _normal_of_path(positions: FloatArray) -> FloatArray | None:
    """The normal (3,) of the plane of a path (N, 3); None if it is a line, or not flat."""
    if len(positions) < 4:
        return None
    _, spread, axes = np.linalg.svd(positions - positions.mean(axis=0), full_matrices=False)
    if spread[1] < MIN_WIDTH * spread[0] or spread[2] > MAX_FLATNESS * spread[1]:
        return None
    return np.asarray(axes[2])


def _toward(direction: FloatArray, other: FloatArray) -> FloatArray:
    return direction if float(direction @ other) >= 0 else -direction


def _angle_deg(a: FloatArray, b: FloatArray) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b, -1.0, 1.0))))


def rotation_to(axis: Sequence[float], direction: FloatArray) -> FloatArray:
    """The smallest rotation (3, 3) that turns a unit direction (3,) into an axis (3,)."""
    target = np.asarray(axis, dtype=np.float64)
    cosine, normal = float(direction @ target), np.cross(direction, target)
    if cosine < -1.0 + 1e-12:  # opposite: half a turn about any direction at right angles
        aside = np.eye(3)[int(np.argmin(np.abs(direction)))]
        aside = aside - (aside @ direction) * direction
        aside /= np.linalg.norm(aside)
        return 2.0 * np.outer(aside, aside) - np.eye(3)
    cross = np.array([[0.0, -normal[2], normal[1]], [normal[2], 0.0, -normal[0]], [-normal[1], normal[0], 0.0]])
    return np.asarray(np.eye(3) + cross + cross @ cross / (1.0 + cosine))


def transformed(m: ReferenceMap, segment: int, new_from_world: Similarity) -> ReferenceMap:
    """A map with the world of one segment transformed; landmarks and frames follow their keyframes."""
    rows = np.flatnonzero(m.keyframes.segment == segment)
    R, t, s = new_from_world.rotation, new_from_world.translation, new_from_world.scale
    keyframes = m.keyframes
    rotations, translations, scales = (
        a.copy() for a in (keyframes.rotations, keyframes.translations, keyframes.scales)
    )
    rotations[rows] = R @ rotations[rows]
    translations[rows] = s * translations[rows] @ R.T + t
    scales[rows] = s * scales[rows]
    return replace(m, keyframes=replace(keyframes, rotations=rotations, translations=translations, scales=scales))

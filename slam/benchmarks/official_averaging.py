"""Reloc3r's own motion averaging, as a method to compare with: component-wise median of quaternions, and lines.

Dong et al., "Reloc3r", 2025, section 3.3 and its published code, with one difference: quaternions get the sign of the
first one before the median. Without that a pose is wrong by up to 180 degrees where components tie with opposite signs.
There are no weights and no outlier rejection, and a direction counts as a line, so a camera can be behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.averaging import RelativePoseObservation
from relocalizer.geometry import (
    FloatArray,
    quaternion_xyzw_from_rotation,
    rigid,
    rotation_from_quaternion_xyzw,
    rotation_matrix,
    translation_of,
)
from relocalizer.interfaces import NoEstimate

NAME = "component median + lines"
_COLLINEAR = 1e-9  # Ratio of the smallest to the largest singular value below which the lines do not meet in a point.


def component_median_and_lines(observations: Sequence[RelativePoseObservation]) -> RigidTransform | NoEstimate:
    """The pose of a camera from its relative poses to known cameras, or the reason why there is none."""
    known = [o for o in observations if o.estimate.i_from_j_direction is not None]
    if len(known) < 2:
        return NoEstimate(f"{len(known)} of {len(observations)} views give a direction, 2 needed for a position")
    position = _nearest_to_lines(known)
    if position is None:
        return NoEstimate(f"{len(known)} directions lie on one line")
    rotations = [rotation_matrix(o.world_from_i) @ o.estimate.i_from_j_rotation for o in observations]
    quaternions = quaternion_xyzw_from_rotation(np.array(rotations))
    signs = np.where(quaternions @ quaternions[0] < 0, -1.0, 1.0)
    median = np.median(quaternions * signs[:, None], axis=0)
    return rigid(rotation_from_quaternion_xyzw(median), position)


def _nearest_to_lines(observations: Sequence[RelativePoseObservation]) -> FloatArray | None:
    """The point (3,) with the least sum of squared distances to the lines; None if they are parallel."""
    rows, values = [], []
    for o in observations:
        direction = rotation_matrix(o.world_from_i) @ np.asarray(o.estimate.i_from_j_direction)
        across = np.eye(3) - np.outer(direction, direction)
        rows.append(across)
        values.append(across @ translation_of(o.world_from_i))
    point, _, _, singular = np.linalg.lstsq(np.vstack(rows), np.concatenate(values), rcond=None)
    return None if singular[-1] < _COLLINEAR * singular[0] else np.asarray(point)

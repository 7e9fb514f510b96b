"""The answer of a relocalizer as values for JSON."""

from __future__ import annotations

import math
from typing import Any

from relocalizer.confidence import ErrorBound
from relocalizer.geometry import quaternion_xyzw_from_rotation, rotation_matrix
from relocalizer.maps.reference_map import ReferenceMap
from relocalizer.relocalizer import NotFound, Relocalization


def answer_values(outcome: Relocalization | NotFound, reference_map: ReferenceMap) -> dict[str, Any]:
    """`found`, and the pose with what it rests on, or the `reason` why there is none.

    `position` and `quaternion_xyzw` are of world_from_cam, in the world and the units of `segment`; `covariance` is as
    in `Relocalization`.
    """
    if isinstance(outcome, NotFound):
        return {"found": False, "reason": outcome.reason}
    return {
        "found": True,
        "position": [float(v) for v in outcome.world_from_cam.translation],
        "quaternion_xyzw": quaternion_xyzw_from_rotation(rotation_matrix(outcome.world_from_cam)).tolist(),
        "segment": outcome.segment,
        "confidence": outcome.confidence,
        "confidence_is_of_error_under": bound_values(outcome.bound),
        "inliers": outcome.inliers,
        "keyframes": list(outcome.views),
        "keyframe_images": [reference_map.image_name(reference_map.row_of[k]) for k in outcome.views],
        "how": outcome.how,
        "covariance": outcome.covariance.tolist(),
    }


def bound_values(bound: ErrorBound) -> dict[str, Any]:
    """The error bound of a confidence."""
    return {"distance": bound.distance, "units": bound.units, "angle_deg": round(math.degrees(bound.angle_rad), 6)}

"""The map from above, as values for the page of the service."""

from __future__ import annotations

from typing import Any

import numpy as np

from relocalizer.maps.reference_map import ReferenceMap
from slam.evaluation.top_view import extent, thinned, top_view_axes

MOST_LANDMARKS = 6000  # landmarks of a segment that are sent
DIGITS = 4  # decimals of the coordinates that are sent


def map_outline(reference_map: ReferenceMap, name: str) -> dict[str, Any]:
    """Its keyframes and landmarks, by segment, projected to the ground plane.

    Of each segment: `axes` (2, 3), the directions of the world that are right and ahead in the view; `keyframes` (N, 2)
    and `landmarks` (M, 2), at most MOST_LANDMARKS; and the corners `low` and `high` of the view.
    """
    segments = [_segment(reference_map, int(k)) for k in np.unique(reference_map.keyframes.segment)]
    return {"name": name, "segments": segments}


def _segment(reference_map: ReferenceMap, segment: int) -> dict[str, Any]:
    table = reference_map.keyframes
    rows = np.flatnonzero(table.segment == segment)
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = table.rotations[rows], table.translations[rows]
    axes = top_view_axes(poses)
    anchored = np.isin(reference_map.landmarks.anchor, table.ids[rows])
    landmarks = reference_map.points_world[thinned(np.flatnonzero(anchored), MOST_LANDMARKS)] @ axes.T
    keyframes = table.translations[rows] @ axes.T
    low, high = extent(keyframes, landmarks)
    values = {"axes": axes, "keyframes": keyframes, "landmarks": landmarks, "low": low, "high": high}
    rounded = {key: np.round(value, DIGITS).tolist() for key, value in values.items()}
    return {"segment": segment, "units": reference_map.units_of(segment), **rounded}

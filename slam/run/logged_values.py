"""Restores values of events from the log: the inverse of `slam.run.plain_values`, as far as the log keeps them."""

from __future__ import annotations

from typing import Any

import numpy as np

from relocalizer.interfaces import NoEstimate, PairEstimate
from slam.events import PlaceAttempt
from slam.map.edge_residuals import EdgeResiduals
from slam.map.frame_measurement import FrameMeasurement, Gate
from slam.map.image_points import MatchedPoints, TrackedPoints


def number(value: float | None) -> float:
    """A logged number; NaN for null."""
    return np.nan if value is None else float(value)


def gates(rows: list[list[Any]] | None) -> tuple[Gate, ...]:
    """Gates from their rows."""
    return tuple(Gate(name=n, value=number(v), limit=number(m), passed=bool(p)) for n, v, m, p in rows or ())


def measurement(value: dict[str, float | None] | None) -> FrameMeasurement | None:
    """The measurement of a frame; None in logs of older versions. Values of newer versions are left out."""
    if value is None:
        return None
    known = FrameMeasurement.__dataclass_fields__
    return FrameMeasurement(**{name: number(item) for name, item in value.items() if name in known})


def tracked_points(rows: list[list[float]] | None) -> TrackedPoints | None:
    """The tracked points of a frame; None where the log has none."""
    if rows is None:
        return None
    full = np.array([[*row, np.nan, np.nan][:5] for row in rows], np.float32).reshape(-1, 5)
    is_inlier = np.isfinite(full[:, 3])
    return TrackedPoints(full[:, :2], full[:, :2] + full[:, 3:], full[:, 2].astype(np.int64), is_inlier)


def matched_points(rows: list[list[int]]) -> MatchedPoints:
    """Matches of two images from their rows."""
    full = np.array(rows, np.float32).reshape(-1, 5)
    return MatchedPoints(full[:, :2], full[:, 2:4], full[:, 4] > 0)


def edge_residuals(rows: list[list[float | None]] | None) -> EdgeResiduals | None:
    """The largest residuals of a graph; None where the log has none."""
    if rows is None:
        return None
    full = np.array([[number(value) for value in row] for row in rows]).reshape(-1, 5)
    return EdgeResiduals(full[:, :2].astype(np.int64), full[:, 2] > 0, full[:, 3], full[:, 4])


def attempts(values: list[dict[str, Any]]) -> tuple[PlaceAttempt, ...]:
    """The places where a frame was searched."""
    return tuple(
        PlaceAttempt(
            keyframe_id=value["keyframe_id"],
            similarity=number(value["similarity"]),
            landmarks=value["landmarks"],
            reason=value["reason"],
            direction_world=None if value["direction_world"] is None else tuple(value["direction_world"]),
            confidence=number(value.get("confidence")),
        )
        for value in values
    )


def pair_estimate(value: dict[str, Any]) -> PairEstimate | NoEstimate:
    """What a predictor said of a pair. Rotation and direction are normalized again, because the log rounds them."""
    if value.keys() == {"reason"}:
        return NoEstimate(value["reason"])
    left, _, right = np.linalg.svd(np.array(value["i_from_j_rotation"]))
    direction = value["i_from_j_direction"]
    unit = None if direction is None else np.array(direction) / np.linalg.norm(direction)
    return PairEstimate(**{**value, "i_from_j_rotation": left @ right, "i_from_j_direction": unit})

"""Conversion of events and reports to plain values that JSON can represent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.geometry import Similarity, quaternion_xyzw_of, rigid, translation_of
from slam.map.edge_residuals import EdgeResiduals
from slam.map.frame_measurement import Gate
from slam.map.frames import Frame, Keyframe
from slam.map.image_points import MatchedPoints, TrackedPoints

# Maximum length of an array logged with its values; of longer ones only the shape is logged.
_MAX_LOGGED_VALUES = 16
_MAX_LOGGED_EDGES = 64  # maximum number of edges logged of a graph, those with the largest residuals


def summarize(value: Any) -> dict[str, Any]:
    """The fields of an event (or another dataclass) as plain values in their order; of long arrays only the shape."""
    return {field.name: plain(getattr(value, field.name)) for field in fields(value)}


def plain(value: Any) -> Any:
    """A value that JSON can represent. Numbers are rounded to nine digits; NaN and infinity become null."""
    kind = type(value)
    if kind is float:  # most values of an event log are numbers, and a comparison of types is faster than a match
        return float(f"{value:.9g}") if math.isfinite(value) else None
    if kind is int or kind is str or kind is bool or value is None:
        return value
    match value:
        case Enum():
            return value.value
        case bool() | int() | str():
            return value
        case float() | np.floating():
            return float(f"{value:.9g}") if math.isfinite(value) else None
        case np.integer() | np.bool_():
            return value.item()
        case RigidTransform():
            return [plain(number) for number in (*translation_of(value).tolist(), *quaternion_xyzw_of(value))]
        case Similarity():
            return [*plain(rigid(value.rotation, value.translation)), plain(value.scale)]
        case Frame():
            return {"index": value.index, "timestamp_ns": value.timestamp_ns}
        case Keyframe():
            return {name: getattr(value, name) for name in ("id", "frame_index", "timestamp_ns")}
        case Gate():
            return [value.name, _short(value.value), _short(value.limit), value.passed]
        case TrackedPoints() | MatchedPoints() | EdgeResiduals():
            return _rows(value)
        case np.ndarray():
            return _plain_array(value)
        case Mapping():
            if len(value) > _MAX_LOGGED_VALUES and not all(isinstance(key, str) for key in value):
                return {"count": len(value)}
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case Path():
            return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return summarize(value)
    raise TypeError(f"{type(value).__name__} has no place in a report")


def _plain_array(value: np.ndarray[Any, Any]) -> Any:
    if value.dtype == np.bool_:
        return {"true": int(value.sum()), "of": int(value.size)}
    if value.size <= _MAX_LOGGED_VALUES:
        return plain(value.tolist())
    return {"shape": list(value.shape)}


def _rows(value: TrackedPoints | MatchedPoints | EdgeResiduals) -> list[list[Any]]:
    """One short row per point, match or edge. Pixels are rounded to whole ones, reprojections to tenths.

    The rows are: x, y, age, then the reprojection's offset x, y for inliers; x, y in i, x, y in j, 1 for an inlier;
    i, j, 1 for a loop, chi-square, weight.
    """
    match value:
        case TrackedPoints():
            offset = np.where(value.is_inlier[:, None], value.reprojected - value.pixels, np.nan)
            head = np.column_stack([np.rint(value.pixels).astype(int), value.ages]).tolist()
            return [
                [*row, *(round(v, 1) for v in shift)] if math.isfinite(shift[0]) else row
                for row, shift in zip(head, offset.tolist(), strict=True)
            ]
        case MatchedPoints():
            pixels = np.rint(np.concatenate([value.pixels_i, value.pixels_j], axis=1)).astype(int)
            rows: list[list[Any]] = np.column_stack([pixels, value.is_inlier.astype(int)]).tolist()
            return rows
        case EdgeResiduals():
            worst = value.worst(_MAX_LOGGED_EDGES)
            columns = zip(worst.ends.tolist(), worst.is_loop.tolist(), worst.squared, worst.weights, strict=True)
            return [[i, j, int(loop), _short(square), _short(weight)] for (i, j), loop, square, weight in columns]


def _short(value: float) -> float | None:
    """A number with four significant digits, for what is logged often."""
    return float(f"{value:.4g}") if math.isfinite(value) else None

"""Validity rules of a map."""

from __future__ import annotations

from typing import Any

import numpy as np

from relocalizer.features import DESCRIPTOR_SIZE
from relocalizer.geometry import MAX_COORDINATE, FloatArray
from relocalizer.maps.reference_map import (
    MAX_ID,
    MAX_KEYFRAME_ID,
    ROTATION_TOLERANCE,
    UNITS,
    Ids,
    ReferenceMap,
    Session,
)


def validate(reference_map: ReferenceMap) -> None:
    """Check the invariants of a map: shapes, ranges, order, and that every id refers to an existing row.

    Raises:
        ValueError: states the violated rule.
    """
    for check in (_check_keyframes, _check_features, _check_observations, _check_landmarks, _check_edges):
        check(reference_map)
    _check_frames(reference_map)
    _check_sessions(reference_map)
    names = reference_map.image_names
    _require(not names or len(names) == len(reference_map.keyframes), "image_names: expected one for each keyframe")
    _check_units(reference_map)


def _require(holds: Any, what: str) -> None:
    if not bool(holds):
        raise ValueError(what)


def _check_keyframes(m: ReferenceMap) -> None:
    table, count = m.keyframes, len(m.keyframes.ids)
    for name in ("frame_indices", "timestamps_ns", "camera", "segment", "rotations", "translations", "scales"):
        _require(len(getattr(table, name)) == count, f"keyframes.{name}: expected {count} rows")
    fits = _ascending(table.ids) and _within(table.ids, 0, MAX_KEYFRAME_ID)
    _require(fits, "keyframes.ids: expected 0 or more, ascending, below 1e9")
    _require(_within(table.frame_indices, 0, MAX_ID), "keyframes.frame_indices: out of range")
    _require(_within(table.camera, 0, len(m.cameras)), "keyframes.camera: names a camera that is not there")
    _require(_within(table.segment, 0, MAX_ID), "keyframes.segment: out of range")
    _check_poses("keyframes", table.rotations, table.translations)
    _check_scales("keyframes", table.scales)
    descriptors = table.descriptors
    _require(descriptors.ndim == 2 and len(descriptors) == count, f"keyframes.descriptors: expected {count} rows")
    _require(np.isfinite(descriptors).all(), "keyframes.descriptors: hold NaN or infinity")
    norms = np.linalg.norm(descriptors.astype(np.float64), axis=1)
    _require((np.abs(norms - 1.0) < 1e-3).all(), "keyframes.descriptors: expected unit rows")


def _check_features(m: ReferenceMap) -> None:
    table, count = m.features, len(m.features.pixels)
    for name in ("scales", "descriptors", "landmark"):
        _require(len(getattr(table, name)) == count, f"features.{name}: expected {count} rows")
    _require(table.descriptors.shape == (count, DESCRIPTOR_SIZE), "features.descriptors: expected 128 numbers a row")
    _check_offsets("features", table.offsets, len(m.keyframes), count)
    _require(np.isfinite(table.pixels).all(), "features.pixels: hold NaN or infinity")
    _require(np.isfinite(table.scales).all(), "features.scales: hold NaN or infinity")
    _require(_within(table.landmark, -1, _track_limit(m)), "features.landmark: names a track that cannot be there")


def _check_observations(m: ReferenceMap) -> None:
    table, count = m.observations, len(m.observations.pixels)
    _require(len(table.landmark) == count, f"observations.landmark: expected {count} rows")
    _check_offsets("observations", table.offsets, len(m.keyframes), count)
    _require(np.isfinite(table.pixels).all(), "observations.pixels: hold NaN or infinity")
    _require(_within(table.landmark, 0, _track_limit(m)), "observations.landmark: names a track that cannot be there")
    for row in range(len(m.keyframes)):
        tracks = table.landmark[int(table.offsets[row]) : int(table.offsets[row + 1])]
        _require(len(np.unique(tracks)) == len(tracks), f"observations: keyframe {row} sees one track twice")


def _check_landmarks(m: ReferenceMap) -> None:
    table, count = m.landmarks, len(m.landmarks)
    for name in ("anchor", "points_in_anchor", "inverse_depth_sigma", "descriptors", "colors"):
        _require(len(getattr(table, name)) == count, f"landmarks.{name}: expected {count} rows")
    _require(_ascending(table.ids) and _within(table.ids, 0, _track_limit(m)), "landmarks.ids: out of range or order")
    _require(np.isin(table.anchor, m.keyframes.ids).all(), "landmarks.anchor: names a keyframe that is not there")
    points = table.points_in_anchor
    _require((np.abs(points) < MAX_COORDINATE).all(), "landmarks.points_in_anchor: hold NaN or a huge number")
    _require((table.inverse_depth_sigma > 0).all(), "landmarks.inverse_depth_sigma: expected positive numbers")


def _check_edges(m: ReferenceMap) -> None:
    table, count = m.edges, len(m.edges.i)
    for name in ("j", "rotations", "translations", "scales", "sigmas", "is_loop", "inliers", "shares", "weights"):
        _require(len(getattr(table, name)) == count, f"edges.{name}: expected {count} rows")
    ends = np.concatenate([table.i, table.j])
    _require(np.isin(ends, m.keyframes.ids).all(), "edges: name a keyframe that is not there")
    _require((table.i < table.j).all(), "edges: expected i < j")
    pairs = np.stack([table.i, table.j], axis=1)
    _require(len(np.unique(pairs, axis=0)) == count, "edges: two between the same keyframes")
    _check_poses("edges", table.rotations, table.translations)
    _check_scales("edges", table.scales)
    _require((table.sigmas > 0).all() and np.isfinite(table.sigmas).all(), "edges.sigmas: expected positive numbers")
    _require(((table.shares > 0) & (table.shares <= 1)).all(), "edges.shares: expected more than 0 and at most 1")
    _require(((table.weights >= 0) & (table.weights <= 1)).all(), "edges.weights: expected 0 to 1")


def _check_frames(m: ReferenceMap) -> None:
    table, count = m.frames, len(m.frames.indices)
    for name in ("timestamps_ns", "keyframe", "rotations", "translations"):
        _require(len(getattr(table, name)) == count, f"frames.{name}: expected {count} rows")
    _require(_within(table.indices, 0, MAX_ID), "frames.indices: out of range")
    _require(np.isin(table.keyframe, m.keyframes.ids).all(), "frames.keyframe: names a keyframe that is not there")
    _check_poses("frames", table.rotations, table.translations)


def _check_sessions(m: ReferenceMap) -> None:
    first_keyframes = np.array([session.first_keyframe for session in m.sessions], dtype=np.int64)
    first_frames = np.array([session.first_frame for session in m.sessions], dtype=np.int64)
    _require(len(m.sessions) and m.sessions[0] == Session(0, 0), "sessions: expected the first to begin with 0 and 0")
    ordered = (np.diff(first_keyframes) >= 0).all() and (np.diff(first_frames) >= 0).all()
    _require(ordered and first_frames[-1] <= len(m.frames.indices), "sessions: out of range or order")


def _check_units(m: ReferenceMap) -> None:
    units, unanchored, segments = m.provenance.units, m.provenance.unanchored, set(m.keyframes.segment.tolist())
    _require(units in UNITS, f"units: expected {' or '.join(UNITS)}")
    _require(list(unanchored) == sorted(set(unanchored)), "unanchored: expected segments once each, rising")
    _require(set(unanchored) <= segments, "unanchored: names a segment that is not there")
    _require(not unanchored or units == "meters", "unanchored: expected none in a map in map units")
    _require(not unanchored or set(unanchored) < segments, "unanchored: every segment, so nothing is in meters")


def _check_poses(name: str, rotations: FloatArray, translations: FloatArray) -> None:
    _require(np.isfinite(rotations).all(), f"{name}.rotations: hold NaN or infinity")
    square = np.clip(rotations.reshape(-1, 3, 3), -2.0, 2.0)  # what is clipped is no rotation anyway
    off = np.abs(square @ square.transpose(0, 2, 1) - np.eye(3)).max(initial=0.0)
    _require(off < ROTATION_TOLERANCE and (np.linalg.det(square) > 0).all(), f"{name}.rotations: not rotations")
    _require((np.abs(translations) < MAX_COORDINATE).all(), f"{name}.translations: hold NaN or a huge number")


def _check_scales(name: str, scales: FloatArray) -> None:
    good = (scales > 1 / MAX_COORDINATE) & (scales < MAX_COORDINATE)
    _require(good.all(), f"{name}.scales: expected positive numbers")


def _check_offsets(name: str, offsets: Ids, rows: int, count: int) -> None:
    fits = len(offsets) == rows + 1 and offsets[0] == 0 and offsets[-1] == count and (np.diff(offsets) >= 0).all()
    _require(fits, f"{name}.offsets: expected {rows + 1} numbers from 0 up to {count}")


def _ascending(ids: Ids) -> bool:
    return bool((np.diff(ids) > 0).all())


def _within(values: Ids, low: int, high: int) -> bool:
    return bool(((values >= low) & (values < high)).all())


def _track_limit(m: ReferenceMap) -> int:
    """Upper bound of track ids: the number of rows that can refer to one, so that arrays indexed by id stay small."""
    return len(m.features.landmark) + len(m.observations.landmark) + len(m.landmarks)

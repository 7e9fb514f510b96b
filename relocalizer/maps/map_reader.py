"""Loading and checking of a map folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from relocalizer.camera import Camera
from relocalizer.errors import CameraError, MapError
from relocalizer.maps.map_format import (
    COUNTS,
    FORMAT,
    IMAGE_NAME,
    IMAGES,
    MANIFEST,
    MAX_CAMERAS,
    MAX_MANIFEST_BYTES,
    MAX_NAME,
    MAX_PIXELS,
    MAX_SESSIONS,
    MAX_SIDE,
    SCHEMA,
    VERSION,
    JpegImages,
    checksum_of,
    image_name,
)
from relocalizer.maps.map_rules import validate
from relocalizer.maps.map_writer import is_there, replaced_folder
from relocalizer.maps.reference_map import (
    EdgeTable,
    FeatureTable,
    FrameTable,
    KeyframeTable,
    LandmarkTable,
    ObservationTable,
    Provenance,
    ReferenceMap,
    Session,
)
from relocalizer.maps.table_reader import (
    MAX_COUNT,
    MAX_IMAGE_BYTES,
    MAX_TABLE_BYTES,
    Listed,
    check_folder,
    damaged,
    is_within,
    opened,
    read_listed,
    read_table,
    read_whole,
    require,
)


def load_map(folder: Path) -> ReferenceMap:
    """Load a map folder, or the map of a run folder. All data are checked; images are read on demand.

    Raises:
        MapError: there is no map, it is damaged, or a newer version wrote it. States the problem and the remedy.
    """
    found = folder_of_map(folder)
    if found is None:
        raise MapError(f"{folder}: {_why_no_map(folder)}")
    try:
        return _load(found)
    except OSError as error:
        raise MapError(f"{found}: cannot be read ({error.strerror or error})") from None


def _why_no_map(folder: Path) -> str:
    if not is_there(folder):
        return "no such map or run folder"
    if not folder.is_dir():
        return "a file; expected the map folder or the run folder that slam run wrote"
    if is_there(folder / "report.json"):
        return "a run that left no map, as one does that only localized or ended before it had two keyframes"
    return f"not a map ({MANIFEST} is missing); give the map folder that slam run wrote"


def folder_of_map(folder: Path) -> Path | None:
    """Path of the map: the folder itself, its copy set aside by an interrupted save, or `map` in a run folder."""
    for named in (folder, folder / "map"):
        absolute = Path(os.path.abspath(named))
        for path in (absolute, replaced_folder(absolute) if not is_there(absolute) else None):
            if path is not None and is_there(path / MANIFEST):
                return path
    return None


def _load(folder: Path) -> ReferenceMap:
    manifest = _read_manifest(folder)
    counts, listed = _read_counts(folder, manifest), _read_listing(folder, manifest)
    cameras = _read_cameras(folder, manifest)
    tables = {name: read_table(folder, name, listed, counts) for name in SCHEMA}
    keyframes = KeyframeTable(**tables["keyframes"])
    expected = [image_name(k) for k in keyframes.ids.tolist()]
    _check_listing(folder, set(listed), {f"{name}.npz" for name in SCHEMA} | set(expected))
    check_folder(folder / IMAGES)
    for name in expected:
        with opened(folder / name, name, listed[name]):
            pass
    require(is_within(keyframes.camera, len(cameras)), folder, "keyframes.camera names a camera that is not there")
    sizes = [(cameras[c].width, cameras[c].height) for c in keyframes.camera.tolist()]
    files = [(folder / name, listed[name].sha256) for name in expected]
    frames = FrameTable(**tables["frames"])
    sessions = _read_sessions(folder, manifest) if "sessions" in manifest else _sessions_by_time(keyframes, frames)
    provenance = _read_provenance(folder, manifest)
    if "unanchored" in manifest:
        provenance = replace(provenance, unanchored=_read_unanchored(folder, manifest))
    elif provenance.units == "meters":
        provenance = replace(provenance, unanchored=_likely_unanchored(keyframes, frames, sessions))
    loaded = ReferenceMap(
        provenance=provenance,
        cameras=cameras,
        keyframes=keyframes,
        features=FeatureTable(**tables["features"]),
        observations=ObservationTable(**tables["observations"]),
        landmarks=LandmarkTable(**tables["landmarks"]),
        edges=EdgeTable(**tables["edges"]),
        frames=frames,
        image=JpegImages(lambda row: read_listed(*files[row]), sizes),
        sessions=sessions,
        image_names=_read_image_names(folder, manifest, len(keyframes)),
    )
    try:
        validate(loaded)
    except ValueError as error:
        raise damaged(folder, str(error)) from None
    return loaded


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(read_whole(path, MANIFEST, MAX_MANIFEST_BYTES).decode())
    except (ValueError, RecursionError):
        raise damaged(path, "it is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise MapError(f"{path}: not the manifest of a map; give the map folder that slam run wrote")
    version = manifest.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise damaged(path, f"version is {str(version)[:20]!r}")
    if version > VERSION:
        raise MapError(
            f"{path}: a map of version {str(version)[:20]}, this program reads up to {VERSION}; update reloc3r-slam"
        )
    try:
        checksum = checksum_of(manifest)
    except (ValueError, RecursionError):
        checksum = ""
    require(manifest.get("checksum") == checksum, path, "it does not match its checksum")
    return manifest


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _read_counts(folder: Path, manifest: Mapping[str, Any]) -> dict[str, int]:
    counts = manifest.get("counts")
    good = isinstance(counts, dict) and set(counts) == set(COUNTS) and all(_is_count(c) for c in counts.values())
    require(good, folder / MANIFEST, f"counts: expected {', '.join(COUNTS)}")
    return dict(manifest["counts"])


def _read_listing(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Listed]:
    path, files = folder / MANIFEST, manifest.get("files")
    if not isinstance(files, dict):
        raise damaged(path, "files: expected names with bytes and sha256")
    listed = {}
    for name, entry in files.items():
        known = name.removesuffix(".npz") in SCHEMA and name.endswith(".npz")
        require(known or bool(IMAGE_NAME.fullmatch(name)), path, f"files: {name[:80]!r} is not a file of a map")
        good = isinstance(entry, dict) and set(entry) == {"bytes", "sha256"} and _is_count(entry["bytes"])
        require(good and isinstance(entry["sha256"], str), path, f"files: {name}: expected bytes and sha256")
        limit = MAX_TABLE_BYTES if known else MAX_IMAGE_BYTES
        require(entry["bytes"] <= limit, path, f"files: {name}: {entry['bytes']} bytes, {limit} at most are read")
        listed[name] = Listed(entry["bytes"], entry["sha256"])
    missing = [f"{name}.npz" for name in SCHEMA if f"{name}.npz" not in listed]
    require(not missing, path, f"files: {', '.join(missing)} not listed")
    return listed


def _check_listing(folder: Path, listed: set[str], expected: set[str]) -> None:
    if listed != expected:
        name = sorted(listed ^ expected)[0]
        what = "belongs to no keyframe" if name in listed else "is not listed"
        raise damaged(folder / MANIFEST, f"files: {name} {what}")


def _read_provenance(folder: Path, manifest: Mapping[str, Any]) -> Provenance:
    path = folder / MANIFEST
    texts: dict[str, Any] = {key: manifest.get(key) for key in ("predictor", "descriptor", "weights_sha256", "units")}
    texts["scale_source"] = manifest.get("scale_source", "")  # missing in old maps
    for key, value in texts.items():
        require(isinstance(value, str) and len(value) <= 200, path, f"{key}: expected a short text")
    require(isinstance(manifest.get("features"), dict), path, "features: expected settings")
    return Provenance(**texts, features=manifest["features"])


def _read_sessions(folder: Path, manifest: Mapping[str, Any]) -> tuple[Session, ...]:
    path, entries = folder / MANIFEST, manifest["sessions"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_SESSIONS:
        raise damaged(path, "sessions: expected a list")
    for entry in entries:
        good = isinstance(entry, list) and len(entry) == 2 and all(_is_count(number) for number in entry)
        require(good, path, "sessions: expected the first keyframe and the first frame of each")
    return tuple(Session(keyframe, frame) for keyframe, frame in entries)


def _read_image_names(folder: Path, manifest: Mapping[str, Any], count: int) -> tuple[str, ...]:
    names = manifest.get("image_names", [])  # missing in old maps, and in those of videos
    good = isinstance(names, list) and len(names) in (0, count)
    good = good and all(isinstance(name, str) and len(name) <= MAX_NAME for name in names)
    require(good, folder / MANIFEST, "image_names: expected a name for each keyframe")
    return tuple(names)


def _read_unanchored(folder: Path, manifest: Mapping[str, Any]) -> tuple[int, ...]:
    listed = manifest["unanchored"]
    good = isinstance(listed, list) and len(listed) <= MAX_SESSIONS and all(_is_count(number) for number in listed)
    require(good, folder / MANIFEST, "unanchored: expected a list of segments")
    return tuple(listed)


def _likely_unanchored(keyframes: KeyframeTable, frames: FrameTable, sessions: Sequence[Session]) -> tuple[int, ...]:
    """Unanchored segments of an old metric map without that list: all except the largest of the first session."""
    segments = np.unique(keyframes.segment)
    if len(segments) < 2:
        return ()
    segment_of = dict(zip(keyframes.ids.tolist(), keyframes.segment.tolist(), strict=True))
    rows = frames.keyframe[: sessions[1].first_frame if len(sessions) > 1 else None]
    members = [segment_of[k] for k in rows.tolist() if k in segment_of]
    numbers, counts = np.unique(members if members else keyframes.segment, return_counts=True)
    with_metric_scale = int(numbers[np.lexsort((numbers, -counts))[0]])
    return tuple(int(number) for number in segments if number != with_metric_scale)


def _sessions_by_time(keyframes: KeyframeTable, frames: FrameTable) -> tuple[Session, ...]:
    """Sessions of an old map without that list: a session starts where time decreases between two keyframes."""
    starts = keyframes.ids[1:][np.diff(keyframes.timestamps_ns) < 0].tolist()
    firsts = [np.flatnonzero(frames.keyframe >= start) for start in starts]
    rows = [int(first[0]) if len(first) else len(frames.keyframe) for first in firsts]
    return (Session(0, 0), *(Session(start, row) for start, row in zip(starts, rows, strict=True)))


def _read_cameras(folder: Path, manifest: Mapping[str, Any]) -> tuple[Camera, ...]:
    path, entries = folder / MANIFEST, manifest.get("cameras")
    if not isinstance(entries, list) or not len(entries) <= MAX_CAMERAS:
        raise damaged(path, "cameras: expected a list")
    return tuple(_camera(path, entry) for entry in entries)


def _camera(path: Path, entry: object) -> Camera:
    names = {field.name for field in fields(Camera)}
    if not isinstance(entry, dict) or set(entry) != names:
        raise damaged(path, f"cameras: expected {', '.join(sorted(names))}")
    width, height, distortion = entry["width"], entry["height"], entry["distortion"]
    fits = _is_count(width) and _is_count(height) and max(width, height) <= MAX_SIDE and width * height <= MAX_PIXELS
    require(fits, path, f"cameras: an image of {str(width)[:20]} x {str(height)[:20]} pixels")
    require(isinstance(distortion, list) and entry["model"] == "pinhole", path, "cameras: expected pinhole")
    require(isinstance(entry["assumed"], bool), path, "cameras: assumed: expected true or false")
    numbers = [entry[name] for name in ("fx", "fy", "cx", "cy")]
    real = all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) <= 1e9 for n in numbers)
    require(real, path, "cameras: fx, fy, cx, cy: expected numbers")
    try:
        return Camera(**{**entry, "distortion": tuple(distortion)})
    except (CameraError, TypeError) as error:
        raise damaged(path, str(error)) from None

"""A map on disk: a manifest, tables of arrays, and the keyframes' images. docs/map-format.md describes it.

Saving never leaves half a map, and loading believes nothing: sizes are checked before anything is allocated,
checksums before anything is read, ranges before anything is used.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from relocalizer.errors import CameraError, MapError, OutputError, SequenceError
from relocalizer.features import DESCRIPTOR_SIZE
from relocalizer.images import Camera, Image, decode_image, encode_jpeg
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
    validate,
)

FORMAT, VERSION = "reloc3r-slam map", 1
MANIFEST, IMAGES = "manifest.json", "images"
JPEG_QUALITY = 80

_MAX_MANIFEST_BYTES = 64 << 20
_MAX_COUNT = 1 << 40
_MAX_CAMERAS = _MAX_SESSIONS = 100_000
_MAX_SIDE, _MAX_PIXELS = 16_384, 1 << 26
# What tables may grow to when they are unpacked; those of real maps grow to a little more than twice their size.
_MAX_GROWTH, _SMALL_BYTES = 64, 1 << 20
_CHUNK = 1 << 20
_MAX_HEADER_BYTES = 1024
_MAX_IMAGE_BYTES, _MAX_TABLE_BYTES = 64 << 20, 8 << 30
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack more than was asked for
_IMAGE_NAME = re.compile(r"images/[0-9]{6,12}\.jpg")
_NPY_HEADER = re.compile(r"\{'descr': '([^']{2,8})', 'fortran_order': False, 'shape': \(([0-9, ]*)\), \} *\n")
_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError, NotImplementedError)

_MAKE_ANEW = "copy the map again, or make it anew with slam run"

# Every array of every table: its type on disk and its shape, in numbers and in the manifest's counts.
_SCHEMA: dict[str, dict[str, tuple[str, tuple[str | int, ...]]]] = {
    "keyframes": {
        "ids": ("<i8", ("keyframes",)),
        "frame_indices": ("<i8", ("keyframes",)),
        "timestamps_ns": ("<i8", ("keyframes",)),
        "camera": ("<i8", ("keyframes",)),
        "segment": ("<i8", ("keyframes",)),
        "rotations": ("<f8", ("keyframes", 3, 3)),
        "translations": ("<f8", ("keyframes", 3)),
        "scales": ("<f8", ("keyframes",)),
        "descriptors": ("<f4", ("keyframes", "descriptor_size")),
    },
    "features": {
        "offsets": ("<i8", ("keyframes + 1",)),
        "pixels": ("<f4", ("features", 2)),
        "scales": ("<f4", ("features",)),
        "descriptors": ("|u1", ("features", DESCRIPTOR_SIZE)),
        "landmark": ("<i8", ("features",)),
    },
    "observations": {
        "offsets": ("<i8", ("keyframes + 1",)),
        "landmark": ("<i8", ("observations",)),
        "pixels": ("<f4", ("observations", 2)),
    },
    "landmarks": {
        "ids": ("<i8", ("landmarks",)),
        "anchor": ("<i8", ("landmarks",)),
        "points_in_anchor": ("<f8", ("landmarks", 3)),
        "inverse_depth_sigma": ("<f8", ("landmarks",)),
        "descriptors": ("|u1", ("landmarks", DESCRIPTOR_SIZE)),
        "colors": ("|u1", ("landmarks", 3)),
    },
    "edges": {
        "i": ("<i8", ("edges",)),
        "j": ("<i8", ("edges",)),
        "rotations": ("<f8", ("edges", 3, 3)),
        "translations": ("<f8", ("edges", 3)),
        "scales": ("<f8", ("edges",)),
        "sigmas": ("<f8", ("edges", 7)),
        "is_loop": ("|b1", ("edges",)),
        "inliers": ("<i8", ("edges",)),
        "shares": ("<f8", ("edges",)),
        "weights": ("<f8", ("edges",)),
    },
    "frames": {
        "indices": ("<i8", ("frames",)),
        "timestamps_ns": ("<i8", ("frames",)),
        "keyframe": ("<i8", ("frames",)),
        "rotations": ("<f8", ("frames", 3, 3)),
        "translations": ("<f8", ("frames", 3)),
    },
}
_COUNTS = ("keyframes", "descriptor_size", "features", "observations", "landmarks", "edges", "frames")


def image_name(keyframe_id: int) -> str:
    """Where a keyframe's image lies in a map's folder."""
    return f"{IMAGES}/{keyframe_id:06d}.jpg"


class JpegImages:
    """Keyframes' images kept as JPEG: `images(row)` is RGB, `images.jpeg(row)` the bytes."""

    def __init__(self, jpeg: Callable[[int], bytes], sizes: Sequence[tuple[int, int]]) -> None:
        """`jpeg(row)` reads the bytes, `sizes` are the (width, height) the images must have."""
        self.jpeg, self._sizes = jpeg, sizes

    def __call__(self, row: int) -> Image:
        """Raises MapError when the bytes are no JPEG image, or one of another size than its camera's."""
        data, name = self.jpeg(row), f"image {row} of the map"
        width, height = self._sizes[row]
        try:
            with PillowImage.open(io.BytesIO(data), formats=["JPEG"]) as header:  # the header alone: nothing is decoded
                size = header.size
            if size != (width, height):
                raise MapError(f"{name}: expected {width}x{height} pixels, got {size[0]}x{size[1]}; {_MAKE_ANEW}")
            return decode_image(data, name)
        except (SequenceError, OSError, ValueError, SyntaxError, PillowImage.DecompressionBombError) as error:
            reason = error if isinstance(error, SequenceError) else f"{name}: not a JPEG image"
            raise MapError(f"{reason}; {_MAKE_ANEW}") from None


def jpeg_of(reference_map: ReferenceMap, row: int) -> bytes:
    """A keyframe's image as a JPEG file: as it was stored, for packing it again would lose a little each time."""
    if isinstance(reference_map.image, JpegImages):
        return reference_map.image.jpeg(row)
    return encode_jpeg(reference_map.image(row), JPEG_QUALITY)


# --- saving -------------------------------------------------------------------------------------------


def save_map(folder: Path, reference_map: ReferenceMap) -> None:
    """Write a map as `folder`, replacing the map that is there.

    The new map is written whole beside the old one (.NAME.saving), flushed to the disk, and takes its place by
    renaming: NAME to .NAME.replaced, .NAME.saving to NAME. Between the two `load_map` finds .NAME.replaced, so after
    a crash at any moment there is the old map or the new one.

    What breaks it off, Ctrl-C too, leaves the old map and nothing beside it; a kill leaves what the next save removes.

    Raises:
        OutputError: the disk refuses, or something stands there that is not a map.
        MapError: an image of the map, which may come from another folder, cannot be read any more.
        ValueError: the map breaks a rule of `validate`.
    """
    validate(reference_map)
    folder = Path(os.path.abspath(folder))
    if _is_there(folder) and not (folder.is_dir() and (_is_there(folder / MANIFEST) or not any(folder.iterdir()))):
        raise OutputError(f"{folder}: is there already and is not a map; choose another name or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _replace(folder, reference_map)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{folder}: cannot be written ({reason}); make room or choose another place") from None


def _replace(folder: Path, reference_map: ReferenceMap) -> None:
    """The new map in the place of the old one; whatever breaks it off leaves the old one, and nothing beside it."""
    saving, replaced = _saving(folder), _replaced(folder)
    try:
        _remove(saving)
        _write(saving, reference_map)
        if _is_there(folder):
            _remove(replaced)
            folder.rename(replaced)
        saving.rename(folder)
        _sync(folder.parent)
        _remove(replaced)
    except BaseException:
        with suppress(OSError):
            _remove(saving)
            if not _is_there(folder) and _is_there(replaced):
                replaced.rename(folder)
        raise


def _saving(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.saving")


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _remove(folder: Path) -> None:
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _write(folder: Path, reference_map: ReferenceMap) -> None:
    """All files, the manifest last, each on the disk when this returns."""
    (folder / IMAGES).mkdir(parents=True)
    files: dict[str, dict[str, Any]] = {}
    for table, columns in _SCHEMA.items():
        arrays = _on_disk(getattr(reference_map, table), columns)
        packed = io.BytesIO()
        np.savez_compressed(packed, allow_pickle=False, **arrays)
        files[f"{table}.npz"] = _write_file(folder / f"{table}.npz", packed.getvalue())
    for row, k in enumerate(reference_map.keyframes.ids.tolist()):
        files[image_name(k)] = _write_file(folder / image_name(k), jpeg_of(reference_map, row))
    manifest = _manifest(reference_map, files)
    _write_file(folder / MANIFEST, (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode())
    _sync(folder / IMAGES)
    _sync(folder)


def _on_disk(table: Any, columns: Mapping[str, tuple[str, tuple[str | int, ...]]]) -> dict[str, NDArray[Any]]:
    return {name: np.ascontiguousarray(getattr(table, name), dtype=dtype) for name, (dtype, _) in columns.items()}


def _write_file(path: Path, data: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(reference_map: ReferenceMap, files: Mapping[str, Any]) -> dict[str, Any]:
    from relocalizer import __version__

    m = reference_map
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "written_by": f"reloc3r-slam {__version__}",
        **asdict(m.provenance),
        "counts": counts_of(m),
        "sessions": [[session.first_keyframe, session.first_frame] for session in m.sessions],
        "cameras": [asdict(camera) for camera in m.cameras],
        "files": dict(files),
    }
    return {**manifest, "checksum": _checksum(manifest)}


def counts_of(m: ReferenceMap) -> dict[str, int]:
    """How many rows each table has, and how long a place descriptor is."""
    return {
        "keyframes": len(m.keyframes),
        "descriptor_size": int(m.keyframes.descriptors.shape[1]),
        "features": len(m.features.pixels),
        "observations": len(m.observations.pixels),
        "landmarks": len(m.landmarks),
        "edges": len(m.edges.i),
        "frames": len(m.frames.indices),
    }


def _checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest without its `checksum`, as JSON with sorted keys and no spaces."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# --- loading ------------------------------------------------------------------------------------------


def load_map(folder: Path) -> ReferenceMap:
    """Read a map, or the map of a run folder. Everything is checked; images are read when asked for.

    Raises:
        MapError: there is no map, it is damaged, or a newer version wrote it. Says what is wrong and what to do.
    """
    found = folder_of_map(folder)
    if found is None:
        raise MapError(f"{folder}: {_why_no_map(folder)}")
    try:
        return _load(found)
    except OSError as error:
        raise MapError(f"{found}: cannot be read ({error.strerror or error})") from None


def _why_no_map(folder: Path) -> str:
    if not _is_there(folder):
        return "no such map or run folder"
    if not folder.is_dir():
        return "a file; expected the map folder or the run folder that slam run wrote"
    if _is_there(folder / "report.json"):
        return "a run that left no map, as one does that only localized or ended before it had two keyframes"
    return f"not a map ({MANIFEST} is missing); give the map folder that slam run wrote"


def folder_of_map(folder: Path) -> Path | None:
    """Where the map lies: in the folder, set aside by a save that was cut off, or in `map` below a run folder."""
    for named in (folder, folder / "map"):
        absolute = Path(os.path.abspath(named))
        for place in (absolute, _replaced(absolute) if not _is_there(absolute) else None):
            if place is not None and _is_there(place / MANIFEST):
                return place
    return None


@dataclass(frozen=True, slots=True)
class _Listed:
    """A file as the manifest lists it."""

    bytes: int
    sha256: str


def _load(folder: Path) -> ReferenceMap:
    manifest = _read_manifest(folder)
    counts, listed = _read_counts(folder, manifest), _read_listing(folder, manifest)
    cameras = _read_cameras(folder, manifest)
    tables = {name: _read_table(folder, name, listed, counts) for name in _SCHEMA}
    keyframes = KeyframeTable(**tables["keyframes"])
    expected = [image_name(k) for k in keyframes.ids.tolist()]
    _check_listing(folder, set(listed), {f"{name}.npz" for name in _SCHEMA} | set(expected))
    _check_folder(folder / IMAGES)
    for name in expected:
        with _opened(folder / name, name, listed[name]):
            pass
    _require(_is_within(keyframes.camera, len(cameras)), folder, "keyframes.camera names a camera that is not there")
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
        image=JpegImages(lambda row: _read_listed(*files[row]), sizes),
        sessions=sessions,
    )
    try:
        validate(loaded)
    except ValueError as error:
        raise _damaged(folder, str(error)) from None
    return loaded


def _damaged(where: Path, what: str) -> MapError:
    return MapError(f"{where}: the map is damaged ({what}); {_MAKE_ANEW}")


def _require(holds: bool, where: Path, what: str) -> None:
    if not holds:
        raise _damaged(where, what)


def _is_within(values: NDArray[np.int64], count: int) -> bool:
    return bool(((values >= 0) & (values < count)).all())


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(_read_whole(path, MANIFEST, _MAX_MANIFEST_BYTES).decode())
    except (ValueError, RecursionError):
        raise _damaged(path, "it is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise MapError(f"{path}: not the manifest of a map; give the map folder that slam run wrote")
    version = manifest.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _damaged(path, f"version is {str(version)[:20]!r}")
    if version > VERSION:
        raise MapError(
            f"{path}: a map of version {str(version)[:20]}, this program reads up to {VERSION}; update reloc3r-slam"
        )
    try:
        checksum = _checksum(manifest)
    except (ValueError, RecursionError):
        checksum = ""
    _require(manifest.get("checksum") == checksum, path, "it does not match its checksum")
    return manifest


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT


def _read_counts(folder: Path, manifest: Mapping[str, Any]) -> dict[str, int]:
    counts = manifest.get("counts")
    good = isinstance(counts, dict) and set(counts) == set(_COUNTS) and all(_is_count(c) for c in counts.values())
    _require(good, folder / MANIFEST, f"counts: expected {', '.join(_COUNTS)}")
    return dict(manifest["counts"])


def _read_listing(folder: Path, manifest: Mapping[str, Any]) -> dict[str, _Listed]:
    path, files = folder / MANIFEST, manifest.get("files")
    if not isinstance(files, dict):
        raise _damaged(path, "files: expected names with bytes and sha256")
    listed = {}
    for name, entry in files.items():
        known = name.removesuffix(".npz") in _SCHEMA and name.endswith(".npz")
        _require(known or bool(_IMAGE_NAME.fullmatch(name)), path, f"files: {name[:80]!r} is not a file of a map")
        good = isinstance(entry, dict) and set(entry) == {"bytes", "sha256"} and _is_count(entry["bytes"])
        _require(good and isinstance(entry["sha256"], str), path, f"files: {name}: expected bytes and sha256")
        limit = _MAX_TABLE_BYTES if known else _MAX_IMAGE_BYTES
        _require(entry["bytes"] <= limit, path, f"files: {name}: {entry['bytes']} bytes, {limit} at most are read")
        listed[name] = _Listed(entry["bytes"], entry["sha256"])
    missing = [f"{name}.npz" for name in _SCHEMA if f"{name}.npz" not in listed]
    _require(not missing, path, f"files: {', '.join(missing)} not listed")
    return listed


def _check_listing(folder: Path, listed: set[str], expected: set[str]) -> None:
    if listed != expected:
        name = sorted(listed ^ expected)[0]
        what = "belongs to no keyframe" if name in listed else "is not listed"
        raise _damaged(folder / MANIFEST, f"files: {name} {what}")


def _read_provenance(folder: Path, manifest: Mapping[str, Any]) -> Provenance:
    path = folder / MANIFEST
    texts: dict[str, Any] = {key: manifest.get(key) for key in ("predictor", "descriptor", "weights_sha256", "units")}
    texts["scale_source"] = manifest.get("scale_source", "")  # not noted in the first maps
    for key, value in texts.items():
        _require(isinstance(value, str) and len(value) <= 200, path, f"{key}: expected a short text")
    _require(isinstance(manifest.get("features"), dict), path, "features: expected settings")
    return Provenance(**texts, features=manifest["features"])


def _read_sessions(folder: Path, manifest: Mapping[str, Any]) -> tuple[Session, ...]:
    path, entries = folder / MANIFEST, manifest["sessions"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= _MAX_SESSIONS:
        raise _damaged(path, "sessions: expected a list")
    for entry in entries:
        good = isinstance(entry, list) and len(entry) == 2 and all(_is_count(number) for number in entry)
        _require(good, path, "sessions: expected the first keyframe and the first frame of each")
    return tuple(Session(keyframe, frame) for keyframe, frame in entries)


def _read_unanchored(folder: Path, manifest: Mapping[str, Any]) -> tuple[int, ...]:
    listed = manifest["unanchored"]
    good = isinstance(listed, list) and len(listed) <= _MAX_SESSIONS and all(_is_count(number) for number in listed)
    _require(good, folder / MANIFEST, "unanchored: expected a list of segments")
    return tuple(listed)


def _likely_unanchored(keyframes: KeyframeTable, frames: FrameTable, sessions: Sequence[Session]) -> tuple[int, ...]:
    """Of metric maps of before it was noted: all segments but the largest of the first session, which was anchored."""
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
    """Of the first maps, which did not note them: one begins where time goes back from a keyframe to the next."""
    starts = keyframes.ids[1:][np.diff(keyframes.timestamps_ns) < 0].tolist()
    firsts = [np.flatnonzero(frames.keyframe >= start) for start in starts]
    rows = [int(first[0]) if len(first) else len(frames.keyframe) for first in firsts]
    return (Session(0, 0), *(Session(start, row) for start, row in zip(starts, rows, strict=True)))


def _read_cameras(folder: Path, manifest: Mapping[str, Any]) -> tuple[Camera, ...]:
    path, entries = folder / MANIFEST, manifest.get("cameras")
    if not isinstance(entries, list) or not len(entries) <= _MAX_CAMERAS:
        raise _damaged(path, "cameras: expected a list")
    return tuple(_camera(path, entry) for entry in entries)


def _camera(path: Path, entry: object) -> Camera:
    names = {field.name for field in fields(Camera)}
    if not isinstance(entry, dict) or set(entry) != names:
        raise _damaged(path, f"cameras: expected {', '.join(sorted(names))}")
    width, height, distortion = entry["width"], entry["height"], entry["distortion"]
    fits = _is_count(width) and _is_count(height) and max(width, height) <= _MAX_SIDE and width * height <= _MAX_PIXELS
    _require(fits, path, f"cameras: an image of {str(width)[:20]} x {str(height)[:20]} pixels")
    _require(isinstance(distortion, list) and entry["model"] == "pinhole", path, "cameras: expected pinhole")
    _require(isinstance(entry["assumed"], bool), path, "cameras: assumed: expected true or false")
    numbers = [entry[name] for name in ("fx", "fy", "cx", "cy")]
    real = all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) <= 1e9 for n in numbers)
    _require(real, path, "cameras: fx, fy, cx, cy: expected numbers")
    try:
        return Camera(**{**entry, "distortion": tuple(distortion)})
    except (CameraError, TypeError) as error:
        raise _damaged(path, str(error)) from None


def _read_table(
    folder: Path, table: str, listed: Mapping[str, _Listed], counts: Mapping[str, int]
) -> dict[str, NDArray[Any]]:
    """The arrays of a table; nothing is unpacked before the sizes agree with the manifest and with each other."""
    name = f"{table}.npz"
    path, columns = folder / name, _SCHEMA[table]
    shapes = {column: _shape(shape, counts) for column, (_, shape) in columns.items()}
    sizes = {column: math.prod(shape) * np.dtype(columns[column][0]).itemsize for column, shape in shapes.items()}
    limit = _SMALL_BYTES + _MAX_GROWTH * listed[name].bytes
    _require(sum(sizes.values()) <= limit, path, f"the manifest has it hold {sum(sizes.values())} bytes of arrays")
    with _opened(path, name, listed[name]) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                _check_members(path, archive, sizes)
                return {
                    column: _read_array(path, archive, column, columns[column][0], shapes[column], sizes[column])
                    for column in columns
                }
        except (*_DAMAGED_ZIP, RuntimeError) as error:  # RuntimeError: encrypted
            raise _damaged(path, f"not a table of arrays: {error}") from None


def _shape(shape: tuple[str | int, ...], counts: Mapping[str, int]) -> tuple[int, ...]:
    known = {**counts, "keyframes + 1": counts["keyframes"] + 1}
    return tuple(length if isinstance(length, int) else known[length] for length in shape)


def _check_members(path: Path, archive: zipfile.ZipFile, sizes: Mapping[str, int]) -> None:
    members = archive.infolist()
    names = [member.filename for member in members]
    _require(sorted(names) == sorted(f"{name}.npy" for name in sizes), path, f"expected the arrays {', '.join(sizes)}")
    for member in members:
        _require(member.compress_type in _PACKINGS, path, f"{member.filename} is packed in a way a map never is")
        size = sizes[member.filename.removesuffix(".npy")]
        fits = size < member.file_size <= size + _MAX_HEADER_BYTES
        _require(fits, path, f"{member.filename} has {member.file_size} bytes where {size} are due")


def _read_array(
    path: Path, archive: zipfile.ZipFile, column: str, dtype: str, shape: tuple[int, ...], size: int
) -> NDArray[Any]:
    """An array of a known type and shape. The header is compared, not interpreted."""
    with archive.open(f"{column}.npy") as file:
        data = file.read(size + _MAX_HEADER_BYTES + 1)
    start = data[:10]
    header_bytes = int.from_bytes(start[8:10], "little")
    header = _NPY_HEADER.fullmatch(data[10 : 10 + header_bytes].decode("latin-1"))
    if start[:8] != b"\x93NUMPY\x01\x00" or header is None:
        raise _damaged(path, f"{column} is not an array")
    wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    _require(header[1] == dtype, path, f"{column}: expected type {dtype}, got {header[1]}")
    _require(header[2] == wanted, path, f"{column}: expected shape ({wanted}), got ({header[2][:80]})")
    values = data[10 + header_bytes :]
    _require(len(values) == size, path, f"{column}: expected {size} bytes, got {len(values)}")
    if dtype == "|b1":
        _require(not values.strip(b"\x00\x01"), path, f"{column}: expected true or false")
    array = np.frombuffer(values, dtype=dtype).reshape(shape)
    array.setflags(write=False)
    return array


# --- files --------------------------------------------------------------------------------------------


def _opened(path: Path, name: str, listed: _Listed) -> BinaryIO:
    """A file of the map, after its size and checksum were compared with the manifest's."""
    file = _open_plain(path, name)
    try:
        size = os.fstat(file.fileno()).st_size
        _require(size == listed.bytes, path, f"{size} bytes where {listed.bytes} are due")
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        _require(digest.hexdigest() == listed.sha256, path, "it does not match its checksum")
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _open_plain(path: Path, name: str) -> BinaryIO:
    """A plain file itself: no link that could lead out of the map, nothing that could block."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise _damaged(path, f"{name} is missing") from None
    except OSError as error:
        if path.is_symlink():
            raise _damaged(path, f"{name} is a link") from None
        raise _damaged(path, f"{name} cannot be opened: {error.strerror}") from None
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise _damaged(path, f"{name} is not a file")
    return file


def _read_whole(path: Path, name: str, limit: int) -> bytes:
    with _open_plain(path, name) as file:
        size = os.fstat(file.fileno()).st_size
        _require(size <= limit, path, f"{name} has {size} bytes, {limit} at most are read")
        return file.read(limit + 1)


def _read_listed(path: Path, sha256: str) -> bytes:
    """A file that was there when the map was loaded; it must still be the same."""
    data = _read_whole(path, path.name, _MAX_IMAGE_BYTES)
    _require(hashlib.sha256(data).hexdigest() == sha256, path, "it does not match its checksum")
    return data


def _check_folder(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    _require(stat.S_ISDIR(mode), path, "it is not a folder")

"""Contents of a folder: images in natural order, videos, tables, and missing files."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relocalizer.errors import SequenceError
from relocalizer.heif_images import is_heif
from relocalizer.images import IMAGE_SUFFIXES
from relocalizer.unfetched import FETCH_LINKED, leads_nowhere, why_unfetched

TABLES = ("rgb.txt", "camera.yaml", "groundtruth.txt", "calib.txt", "times.txt", "associations.txt")
NOMINAL_FPS = 30  # Frame rate assumed where a layout has no times, images per second.

_START_BYTES = 400  # number of bytes read to recognize a video; two packets of a transport stream

# Signatures of video files by their offset in the file.
_VIDEO_STARTS: dict[int, tuple[bytes, ...]] = {
    0: (
        b"\x1a\x45\xdf\xa3",  # Matroska, WebM
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF: WMV
        b"\x00\x00\x01\xba",  # MPEG program stream
        b"\x00\x00\x01\xb3",  # MPEG video
        b"\x00\x00\x00\x01\x67", b"\x00\x00\x00\x01\x27", b"\x00\x00\x00\x01\x40\x01",  # H.264, HEVC without container
        b"FLV\x01", b"GIF87a", b"GIF89a", b"OggS", b"DKIF", b"YUV4MPEG2",
        b"\x06\x0e\x2b\x34",  # MXF
    ),
    4: (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"),  # MP4, MOV
}  # fmt: skip
# First byte and length of the packets of MPEG transport streams, the latter also with 4 bytes before each (M2TS).
_TS_SYNC, _TS_PACKETS = 0x47, {0: 188, 4: 192}


def missing_images(folder: Path, paths: Sequence[Path]) -> list[str]:
    """Remarks about images that are listed or linked to, but do not exist.

    Raises:
        SequenceError: none of the images exists.
    """
    missing = [path for path in paths if not os.path.isfile(path)]
    if not missing:
        return []
    links = [path for path in missing if leads_nowhere(path)]
    if len(links) == len(paths):
        raise SequenceError(
            f"{folder}: all {len(links)} images are links that lead nowhere (first: {links[0].name}); {FETCH_LINKED}"
        )
    if len(missing) == len(paths):
        raise SequenceError(
            f"{folder}: none of the {len(missing)} images it lists is there (first: {paths[0]}); "
            "is the download complete?"
        )
    if not links:
        return [f"{len(missing)} of them missing"]
    which = "links" if len(links) == len(missing) else f"{len(links)} are links"
    return [f"{len(missing)} of them missing: {which} that lead nowhere ({FETCH_LINKED})"]


def is_video(path: Path) -> bool:
    """Whether a file has the signature of a video container, independent of its name.

    FFmpeg would also open text, playlists and images as videos.
    """
    if not os.path.isfile(path):  # Opening a pipe would block until there is a writer.
        return False
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
    except OSError:
        return False
    if start[:4] == b"RIFF":
        return start[8:12] == b"AVI "
    if any(
        start[at : at + 1] == start[at + step : at + step + 1] == bytes([_TS_SYNC]) for at, step in _TS_PACKETS.items()
    ):
        return True
    return not is_heif(start) and any(start.startswith(magics, at) for at, magics in _VIDEO_STARTS.items())


def entries_of(folder: Path) -> list[Path]:
    """Sorted entries of a folder without hidden ones. Raises SequenceError when it cannot be read."""
    if not os.path.exists(folder):
        raise SequenceError(f"{folder}: no such file or folder")
    if not os.path.isdir(folder):
        raise SequenceError(f"{folder}: not a folder")
    if not os.access(folder, os.X_OK):
        raise SequenceError(f"{folder}: cannot be read (Permission denied)")
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise SequenceError(f"{folder}: cannot be read ({error.strerror})") from None


def what_was_seen(folder: Path, entries: Sequence[Path]) -> str:
    """Error message for a folder without a known layout: what it contains, and advice."""
    if not entries:
        return f"{folder}: the folder is empty; expected images, a video or a data set"
    folders = [path for path in entries if os.path.isdir(path)]
    with_images = [path.name for path in folders if readable_images(path)]
    if with_images:
        count, named = len(with_images), ", ".join(with_images[:4]) + ", ..." * (len(with_images) > 4)
        return f"{folder}: images are not here but in {count} folders in it ({named}); pass one of them"
    unfetched = [(path, why) for path in entries if (why := why_unfetched(path))]
    if unfetched:
        return f"{unfetched[0][0]}: {unfetched[0][1]}"
    kinds = Counter(path.suffix.lower() or "without suffix" for path in entries if os.path.isfile(path))
    seen = [f"{count} {kind}" for kind, count in kinds.most_common(4)]
    seen += [f"{len(folders)} folders"] * bool(folders)
    sealed = [path.name for path in entries if not os.access(path, os.R_OK)]
    if sealed:
        seen.append(f"{len(sealed)} that cannot be read ({sealed[0]})")
    advice = "; dvc pull fetches what a .dvc file stands for" if ".dvc" in kinds else ""
    return (
        f"{folder}: no images or video found (searched for {' '.join(IMAGE_SUFFIXES)}, mp4, mov, avi, mkv; "
        f"saw {', '.join(seen) or 'nothing that is a file'}){advice}"
    )


def files(folder: Path) -> list[Path]:
    """Files in natural order, including broken links and without hidden files; empty if there is no such folder.

    Raises:
        OSError: the folder cannot be read.
    """
    if not os.path.isdir(folder):
        return []
    if not os.access(folder, os.X_OK):  # Its names could be listed, but all files would seem missing.
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return in_natural_order(
        [p for p in folder.iterdir() if not p.name.startswith(".") and (os.path.isfile(p) or leads_nowhere(p))]
    )


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder in natural order. Raises OSError when the folder cannot be read."""
    return [path for path in files(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def readable_images(folder: Path) -> list[Path]:
    """Image files of a folder in natural order; empty if the folder cannot be read."""
    try:
        return images_in(folder)
    except OSError:
        return []


def in_natural_order(paths: Sequence[Path]) -> list[Path]:
    """Paths with numbers in them in the order of the numbers: 2 before 10."""
    return sorted(paths, key=lambda path: _natural(str(path)))


def _natural(name: str) -> tuple[list[str | int], str]:
    # Splitting at digits alternates text and numbers, so equal types are compared; the name breaks ties.
    parts: list[str | int] = [int(p) if p.isdecimal() else p.lower() for p in re.split(r"([0-9]+)", name)]
    return parts, name


def number_in(path: Path) -> int:
    """The frame number in a name such as frame-000012.color.png or 12.jpg. Raises SequenceError without one."""
    digits = re.findall(r"[0-9]+", path.name)
    if not digits or len(digits[0]) > 9:
        raise SequenceError(f"{path}: expected a frame number in the image's name")
    return int(digits[0])


def nominal_times(numbers: Sequence[int] | range, fps: int) -> NDArray[np.int64]:
    """Timestamps of numbered frames, nanoseconds: frame k is at k / fps seconds.

    Raises:
        SequenceError: the numbers do not increase.
    """
    for before, number in pairwise(numbers):
        if number <= before:
            raise SequenceError(f"frame {number} follows frame {before}; expected every number once")
    return np.array([(k * 1_000_000_000 + fps // 2) // fps for k in numbers], dtype=np.int64)

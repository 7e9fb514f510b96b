"""Downloads of data sets: resumable, verified against what is published, or else against the first download."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from slam.benchmarks.benchmark_error import BenchmarkError
from slam.benchmarks.data_catalog import CATALOG, DataSet, RemoteFile
from slam.progress import Progress, no_progress
from slam.run.files import write_atomically, writing

LOCK = "fetched.json"  # Size and checksum of everything that was fetched into a folder.
PART = ".part"  # Suffix of an unfinished download.
_BLOCK_BYTES = 2**20
_TIMEOUT_S = 30.0
ARCHIVES = (".zip", ".tgz", ".tar.gz", ".tar")


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """What is known about a fetched file."""

    url: str
    size_bytes: int
    sha256: str


def data_set(name: str) -> DataSet:
    """A data set by name. Raises BenchmarkError if there is none."""
    if name not in CATALOG:
        raise BenchmarkError(f"no data set {name}; there are {', '.join(CATALOG)}")
    return CATALOG[name]


def fetch(
    data: DataSet, folder: Path, *, announce: Callable[[str], None], on_progress: Progress = no_progress
) -> list[Path]:
    """Download the files of a data set that are not there yet; those there are only verified.

    Args:
        announce: called with one line before anything is downloaded: title, size and license.

    Raises:
        BenchmarkError: it has no plain address, there is no connection, or a file is not the expected one.
        OutputError: the folder cannot be written.
    """
    if not data.files:
        raise BenchmarkError(f"{data.title}: no plain address. {data.source} License: {data.license}")
    announce(f"{data.title} ({data.size}); license: {data.license}")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for file in data.files:
        path, lock = folder / file.name, read_lock(folder)
        expected = lock.get(file.name)
        if not path.is_file():
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                _download(file, path, on_progress)
        found = FetchedFile(file.url, path.stat().st_size, _sha256(path))
        _verify(path, file, found, expected)
        write_atomically(folder / LOCK, _text({**lock, file.name: found}))
        paths.append(path)
    return paths


def read_lock(folder: Path) -> dict[str, FetchedFile]:
    """What was fetched into a folder before, by file. Raises BenchmarkError if the lock file is damaged."""
    path = folder / LOCK
    if not path.is_file():
        return {}
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {name: FetchedFile(**entry) for name, entry in values.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BenchmarkError(f"{path}: cannot be read ({error}); remove it to take the files as they are") from None


def _text(lock: dict[str, FetchedFile]) -> str:
    return json.dumps({name: asdict(entry) for name, entry in sorted(lock.items())}, indent=2) + "\n"


def _verify(path: Path, file: RemoteFile, found: FetchedFile, expected: FetchedFile | None) -> None:
    """Raises BenchmarkError unless size and checksum are those published, and those of the first download."""
    known = [(file.size_bytes, file.sha256, "as published")]
    if expected is not None:
        known.append((expected.size_bytes, expected.sha256, f"of the first download, in {LOCK}"))
    for size_bytes, sha256, whose in known:
        if size_bytes and size_bytes != found.size_bytes:
            raise BenchmarkError(
                f"{path}: {found.size_bytes} bytes, expected {size_bytes} {whose}; remove it to try again"
            )
        if sha256 and sha256 != found.sha256:
            raise BenchmarkError(
                f"{path}: sha256 {found.sha256[:16]}..., expected {sha256[:16]}... {whose}; remove it to try again"
            )


def _download(file: RemoteFile, path: Path, on_progress: Progress) -> None:
    """Download to PATH.part, resuming an earlier try, and rename it when it is complete."""
    part = path.with_name(path.name + PART)
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(file.url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            if start and response.status != 206:  # the server sends the whole file again
                start = 0
            length = int(response.headers.get("Content-Length") or 0)
            total = start + length
            with part.open("ab" if start else "wb") as out:
                done = start
                while block := response.read(_BLOCK_BYTES):
                    out.write(block)
                    done += len(block)
                    on_progress(f"kB of {path.name}", done // 1000, max(total, done) // 1000)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left to send
            part.replace(path)
            return
        raise BenchmarkError(f"{file.url}: the server answers {error.code} {error.reason}") from None
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise BenchmarkError(
            f"{file.url}: no connection ({reason}); the same command resumes the download, or put the file at {path}"
        ) from None
    if length and done < total:
        raise BenchmarkError(f"{file.url}: ended after {done} of {total} bytes; the same command resumes the download")
    part.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(path: Path) -> None:
    """Unpack an archive beside it, and the archives of sequences in it (7-Scenes).

    Raises:
        BenchmarkError: it is no readable archive, or a name in it leads out of the folder.
    """
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                archive.extractall(path.parent)  # drops absolute names and ".."
            for name in names:
                inner = path.parent / name
                if inner.suffix == ".zip" and inner.is_file():
                    with zipfile.ZipFile(inner) as archive:
                        archive.extractall(inner.parent)
                    os.unlink(inner)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(path.parent, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise BenchmarkError(f"{path}: cannot be unpacked ({error})") from None
    except shutil.Error as error:
        raise BenchmarkError(f"{path}: cannot be unpacked ({error})") from None

"""Files in the place of data that has not been fetched: links to nowhere, pointers of Git LFS and git-annex."""

from __future__ import annotations

import os
from pathlib import Path

FETCH_LINKED = "is the data fetched? git annex get or dvc pull"
POINTERS = {  # how such a file begins: what it is, and what fetches the data
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the file itself; git lfs pull fetches it",
    b"/annex/objects/": "a git-annex pointer, not the file itself; git annex get fetches it",
}
_START_BYTES = 64


def leads_nowhere(path: Path) -> bool:
    """Whether a path is a link to something that is not there, or to itself."""
    return os.path.islink(path) and not os.path.exists(path)


def pointer_words(start: bytes) -> str:
    """What a file that begins with these bytes stands in for; empty when it is no pointer."""
    return next((words for magic, words in POINTERS.items() if start.startswith(magic)), "")


def why_unfetched(path: Path) -> str:
    """What stands in the place of a file's data and what fetches it; empty where nothing does."""
    if leads_nowhere(path):
        return f"a link that leads nowhere (to {os.readlink(path)}); {FETCH_LINKED}"
    if not os.path.isfile(path):
        return ""
    try:
        with path.open("rb") as file:
            return pointer_words(file.read(_START_BYTES))
    except OSError:  # who reads the file itself says it
        return ""

"""Placeholders of data that has not been fetched: broken links, and pointer files of Git LFS and git-annex."""

from __future__ import annotations

import os
from pathlib import Path

FETCH_LINKED = "is the data fetched? git annex get or dvc pull"
POINTERS = {  # first bytes of a pointer file: its description, with the command that fetches the data
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer, not the file itself; git lfs pull fetches it",
    b"/annex/objects/": "a git-annex pointer, not the file itself; git annex get fetches it",
}
_START_BYTES = 64  # number of bytes read from the start of a file


def leads_nowhere(path: Path) -> bool:
    """Whether a path is a broken link, or a link to itself."""
    return os.path.islink(path) and not os.path.exists(path)


def pointer_words(start: bytes) -> str:
    """Description of the pointer file with these first bytes; empty when it is not a pointer file."""
    return next((words for magic, words in POINTERS.items() if start.startswith(magic)), "")


def why_unfetched(path: Path) -> str:
    """Description of the placeholder at a path, with the command that fetches its data; empty when there is none."""
    if leads_nowhere(path):
        return f"a link that leads nowhere (to {os.readlink(path)}); {FETCH_LINKED}"
    if not os.path.isfile(path):
        return ""
    try:
        with path.open("rb") as file:
            return pointer_words(file.read(_START_BYTES))
    except OSError:  # reported when the file itself is read
        return ""

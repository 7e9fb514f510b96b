"""Names as printable text."""

from __future__ import annotations

import re

# Control characters, line breaks of all kinds, and bytes of a file name that cannot be decoded in this locale.
_NOT_PLAIN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def plain(name: str) -> str:
    """A name for titles, sentences and new folders: unprintable characters and line breaks become `_`."""
    return _NOT_PLAIN.sub("_", name)

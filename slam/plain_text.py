"""Names as text that can be shown anywhere."""

from __future__ import annotations

import re

# Control characters, line breaks of all kinds, and the bytes of a file's name that are no text in this locale.
_NOT_PLAIN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def plain(name: str) -> str:
    """A name for titles, sentences and new folders: what is no character, or would break a line, becomes `_`."""
    return _NOT_PLAIN.sub("_", name)

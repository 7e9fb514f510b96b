"""The arguments of `slam run`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from slam.cli.options import say


@dataclass(frozen=True, slots=True, kw_only=True)
class RunArguments:
    """Arguments of `slam run`."""

    sources: tuple[str, ...]
    out: Path | None
    camera: Path | None
    view: str
    wait: bool
    record: Path | None
    start: int
    stride: int
    max_frames: int | None
    quiet: bool
    as_json: bool
    map: Path | None
    localize_only: bool
    fail_under: str

    @property
    def source(self) -> str:
        """The sources as they can be given to a shell."""
        return shlex.join(self.sources)

    def say(self, line: str) -> None:
        if not self.quiet:
            say(line)

    def say_second_pass(self, reason: str) -> None:
        self.say(f"{reason}: the frames are tracked again (not with --one-pass)")

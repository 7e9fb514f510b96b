"""A focal length that changes along the footage, and the frames of which it is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relocalizer.calibration_windows import FocalChange, FocalStretch, largest_change
from slam.input.frame_source import FrameSource, RereadableSource
from slam.input.kept_frames import Kept, KeptFrames
from slam.mapping.lens_examination import LensFinding

KEPT_SHARE = 0.2  # minimum share of the frames in stretches of one focal length, for the others to be left out


@dataclass(frozen=True, slots=True)
class Zoom:
    """A focal length that changes along the footage: only the frames of its longest stretch, and of others with the
    same focal length, are tracked.

    Attributes:
        change: the most significant change; its frames are positions in the source.
        kept: the frames that are tracked.
        length: number of frames of the source.
    """

    change: FocalChange
    kept: tuple[Kept, ...]
    length: int

    @property
    def left_out(self) -> int:
        """Number of frames that are not tracked."""
        return self.length - sum(len(part) for part in self.kept)

    def __str__(self) -> str:
        tracked = " and ".join(str(part) for part in self.kept)
        return f"{self.change}: frames {tracked} are tracked, the other {self.left_out} of {self.length} are left out"


def may_zoom(finding: LensFinding) -> bool:
    """Whether the focal length changes, or may change, so that more images should tell where."""
    return bool(finding.stretches) or finding.is_uneven


def longest_of(stretches: Sequence[FocalStretch]) -> FocalStretch | None:
    """The longest of some stretches; None without any."""
    return max(stretches, key=lambda stretch: stretch.last - stretch.first, default=None)


def zoom_of(
    stretches: Sequence[FocalStretch], longest: FocalStretch | None, length: int, *, scale: float
) -> Zoom | None:
    """What is kept of footage whose focal length changes; None without a change, or if too little would be kept.

    Args:
        longest: the stretch that is kept, with those that have its focal length.
        length: number of images of the footage.
        scale: size of the original images relative to those in whose pixels the focal lengths are.
    """
    change = largest_change(stretches)
    if change is None or longest is None:
        return None
    kept = tuple(Kept(s.first, s.last) for s in stretches if s.agrees_with(longest))
    if sum(len(part) for part in kept) < KEPT_SHARE * length:
        return None
    return Zoom(change.scaled(scale), kept, length)


def without_zoom(source: FrameSource, zoom: Zoom | None) -> FrameSource:
    """The frames of a source that are kept."""
    if zoom is None or not isinstance(source, RereadableSource):
        return source
    return KeptFrames(source, zoom.kept)

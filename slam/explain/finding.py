"""Findings about a run: what happened, in which frames, the figures behind it, and what would help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Cause(StrEnum):
    """What can go wrong in a run."""

    BLACKOUT = "blackout"
    COVERED_LENS = "covered lens"
    BLUR = "blur"
    EXPOSURE_JUMP = "exposure jump"
    DROPPED_FRAMES = "dropped frames"
    REPEATED_TEXTURE = "repeated texture"
    PURE_ROTATION = "pure rotation"
    FEW_FEATURES = "too few features"
    FAST_MOTION = "fast motion"
    STILL_CAMERA = "camera at rest"
    WRONG_FOCAL_LENGTH = "wrong focal length"
    UNKNOWN_FOCAL_LENGTH = "unknown focal length"
    LOSS = "tracking lost"
    WEAK_INITIALIZATION = "weak initialization"
    ROLLING_START = "rolling start"
    SCALE_DRIFT = "scale drift"
    SIMILAR_PLACES = "similar places"
    UNFITTING_LOOP = "loop that does not fit"
    UNJOINED_MAPS = "maps that are not joined"
    UNREADABLE_FRAMES = "unreadable frames"


# What would help, by cause: the way of filming first, then the setting.
ADVICE: Mapping[Cause, str] = {
    Cause.BLACKOUT: "keep the lens free and the camera on; cut the black part out, or run from after it with --start",
    Cause.COVERED_LENS: "keep fingers, straps and wipers off the lens; what always covers the same part: --mask IMAGE",
    Cause.BLUR: "move more slowly, give more light or a shorter exposure; the frame rate does not help",
    Cause.EXPOSURE_JUMP: "lock the exposure and the white balance of the camera, or pan slowly across light and shade",
    Cause.DROPPED_FRAMES: "record to a faster disk or at a lower resolution; live: --set features.max_features=800",
    Cause.REPEATED_TEXTURE: "keep something that is not repeated in view, move slowly past it, or mask it with --mask",
    Cause.PURE_ROTATION: "step sideways while turning: a camera that only turns measures no depth",
    Cause.FEW_FEATURES: "keep textured things in view; --set features.max_features=2000 finds weaker points",
    Cause.FAST_MOTION: "move more slowly, or film with a higher frame rate; --set tracks.window_px=31 reaches farther",
    Cause.STILL_CAMERA: "move the camera sideways at the beginning; cut a standing start off with --start",
    Cause.WRONG_FOCAL_LENGTH: "calibrate the camera (slam calibrate VIDEO -o camera.yaml) and give it with --camera",
    Cause.UNKNOWN_FOCAL_LENGTH: "give the camera with --camera, or film with turns and sideways motion",
    Cause.LOSS: "film the place again, slowly, from where the map is known",
    Cause.WEAK_INITIALIZATION: "begin with a sideways step of a tenth of the distance to the scene, without turning",
    Cause.ROLLING_START: "begin slowly and sideways at something textured; skip what cannot be used with --start",
    Cause.SCALE_DRIFT: "return to known places more often, so that loops correct the scale; turn less on the spot",
    Cause.SIMILAR_PLACES: "nothing, if the places differ; else film what distinguishes them from nearer by",
    Cause.UNFITTING_LOOP: "see it in the Graph and Loops tabs of slam view; keep loop_closing.robust on (the default)",
    Cause.UNJOINED_MAPS: "return to a place that both parts show, from a similar angle, so that a loop can join them",
    Cause.UNREADABLE_FRAMES: "copy the files again; the frames that cannot be read were left out",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that went wrong.

    Attributes:
        cause: what it is.
        first, last: the frames it spans, both included.
        sentence: what happened, with the figures.
        figures: the numbers that led to it, by name.
        because: for a loss, what caused it, the most likely first; empty if no cause was found.
        keyframes: ids of keyframes whose images show it.
    """

    cause: Cause
    first: int
    last: int
    sentence: str
    figures: Mapping[str, float] = field(default_factory=dict)
    because: tuple[Cause, ...] = ()
    keyframes: tuple[int, ...] = ()

    @property
    def frames(self) -> str:
        """The frames in words."""
        return f"frame {self.first}" if self.first == self.last else f"frames {self.first} to {self.last}"

    @property
    def advice(self) -> str:
        """What would help: against the cause of a loss, if one was found."""
        return ADVICE[self.because[0] if self.because else self.cause]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "cause": self.cause.value,
            "first_frame": self.first,
            "last_frame": self.last,
            "sentence": self.sentence,
            "figures": {name: float(f"{value:.4g}") for name, value in self.figures.items()},
            "because": [cause.value for cause in self.because],
            "advice": self.advice,
            "keyframes": list(self.keyframes),
        }

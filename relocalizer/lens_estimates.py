"""What self-calibration estimates of a camera: focal length, distortion and aspect, each with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, field

from relocalizer.calibration_windows import FocalChange, FocalStretch, largest_change

KNOWN_SIGMA = 0.03  # maximum relative standard deviation of a known focal length; larger errors visibly distort a map
# Minimum size of a significant distortion, in standard deviations, and of one that more images may show to be one.
_SIGNIFICANT, _UNDECIDED = 3.0, 1.5
# Minimum size of a clear distortion, in standard deviations and as the division coefficient; or in standard deviations
# alone. A model without distortion is then excluded; a small distortion can also be the effect of a rolling shutter,
# which was seen with up to 4 of them.
_CLEAR_SIGMAS, _CLEAR_DIVISION = 6.0, 0.05
_CERTAIN_SIGMAS = 12.0


@dataclass(frozen=True, slots=True)
class Distortion:
    """Radial distortion of the division model about the principal point, in units of half the image's diagonal.

    undistorted = distorted / (1 + division r^2 + division_r4 r^4) with r = |distorted|, so -0.1 moves the corners out
    by a tenth. `sigma` is the standard deviation of `division`.
    """

    division: float = 0.0
    sigma: float = float("inf")
    division_r4: float = 0.0

    @property
    def is_significant(self) -> bool:
        """Whether the distortion differs significantly from zero."""
        return abs(self.division) > _SIGNIFICANT * self.sigma

    @property
    def is_undecided(self) -> bool:
        """Whether the distortion is not significant, but may be with more images."""
        return not self.is_significant and abs(self.division) > _UNDECIDED * self.sigma

    @property
    def is_clear(self) -> bool:
        """Whether the distortion is so large, or so certain, that other effects cannot explain it."""
        clear = max(_CLEAR_DIVISION, _CLEAR_SIGMAS * self.sigma)
        return abs(self.division) > min(clear, _CERTAIN_SIGMAS * self.sigma)


@dataclass(frozen=True, slots=True)
class AspectEstimate:
    """The estimated ratio of fx to fy, relative to that of the camera; `sigma` is that of its logarithm."""

    ratio: float = 1.0
    sigma: float = float("inf")


@dataclass(frozen=True, slots=True)
class PrincipalEstimate:
    """The estimated principal point (x, y), relative to that of the camera, and the larger of its standard deviations;
    all in pixels. It is only as good as to tell the middle of a cropped image from that of the lens."""

    offset_px: tuple[float, float] = (0.0, 0.0)
    sigma_px: float = float("inf")


@dataclass(frozen=True, slots=True)
class FocalEstimate:
    """An estimated focal length.

    Attributes:
        focal_px: mean of the focal lengths in x and y, pixels.
        sigma: standard deviation of its logarithm.
        distortion: jointly estimated distortion.
        pairs: number of image pairs used.
        flaw: reason to reject the estimate independent of sigma; empty without one.
        center: the principal point.
        stretches: stretches of one focal length, if it changes along the sequence; in order of time.
        is_uneven: whether parts of the sequence determine a focal length that all of it together does not.
    """

    focal_px: float
    sigma: float
    distortion: Distortion
    pairs: int
    flaw: str = ""
    center: PrincipalEstimate = field(default_factory=PrincipalEstimate)
    stretches: tuple[FocalStretch, ...] = ()
    is_uneven: bool = False

    @property
    def change(self) -> FocalChange | None:
        """The most significant change of the focal length along the sequence, if it changes."""
        return largest_change(self.stretches)

    @property
    def is_known(self) -> bool:
        return not self.rejection

    @property
    def rejection(self) -> str:
        """The reason why the focal length does not count as known; empty when it does."""
        if self.flaw or self.sigma <= KNOWN_SIGMA:
            return self.flaw
        return f"its standard deviation is {100 * self.sigma:.1f} %, {100 * KNOWN_SIGMA:.0f} % needed"


@dataclass(frozen=True, slots=True)
class NotDetermined:
    """The focal length could not be estimated."""

    reason: str

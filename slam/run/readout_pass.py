"""Rolling shutter of stored footage: its readout is estimated before the run, and the images are corrected.

Global shutters have no readout time, and slow footage determines none and hardly needs a correction: both are read as
they are.
"""

from __future__ import annotations

from itertools import islice, pairwise

import numpy as np

from relocalizer.geometry import FloatArray
from relocalizer.images import Image
from slam.config.schema import SlamConfig
from slam.input.frame_source import FrameSource, RereadableSource
from slam.input.prefetch import Prefetched
from slam.input.rectification import GivenCamera
from slam.input.rolling_shutter import AXES, CorrectedFrames, SmallImages, TurnRate, corners, follow
from slam.run.readout_fit import FollowedPoints, ReadoutEstimate, displacement_at, fitted_readouts

IMAGES = 6  # number of consecutive images in a window; points are followed from the second to the last but one
WINDOWS, PLACE = (0, 3), 9  # positions of the windows of a place, relative to its first image, and its number of images
# Number of places, spread evenly over the footage, that tell whether the readout can be determined, and number of all
# places if so.
FEW_PLACES, ALL_PLACES = 5, 20
FEWEST_PLACES = 8  # minimum number of places for an estimate to be used
LARGEST_TURN = 0.25  # maximum rotation between two images for that within an image to be interpolated, radians
FEWEST_FOLLOWED = 40  # minimum number of points that are followed through a window
# Minimum of a share in standard deviations, for more places to be examined and to be used, and maximum of these.
PROMISING_SIGMAS, SIGNIFICANT_SIGMAS, LARGEST_SIGMA = 1.5, 5.0, 0.15
SHARES = (0.1, 1.2)  # minimum and maximum share of a readout
LONGEST_READOUT_S = 0.04  # maximum time in which a sensor is read, seconds
FIRST_IMAGES = 10  # number of images whose timestamps tell the time between two
# Minimum displacement of pixels by the readout, as a fraction of the longer side: two pixels of 640. Below it little is
# gained for the time of resampling every image.
LEAST_DISPLACEMENT = 0.003


def correct_readout(source: FrameSource, config: SlamConfig) -> FrameSource:
    """The source with its images corrected for a rolling shutter, if there is one that matters; else the source."""
    if not config.input.correct_rolling_shutter or config.input.unordered:
        return source
    if not isinstance(source, RereadableSource) or not source.can_be_reread or source.length is None:
        return source
    estimate = estimate_readout(source, source.length)
    if estimate is None or not is_used(estimate):
        return source
    if abs(estimate.readout.share) * interval_s(source) > LONGEST_READOUT_S:
        return source  # no sensor is that slow: at a low frame rate, the turns between two images are unknown
    corrected = CorrectedFrames(source, estimate.readout, sentence(estimate))
    ahead = config.input.prefetch_frames
    return Prefetched(corrected, ahead) if ahead else corrected


def interval_s(source: RereadableSource) -> float:
    """Median time between the first images of a source, which is not used up, seconds."""
    again = source.with_calibration(GivenCamera(source.calibration, "as it is"))
    try:
        stamps_ns = [frame.timestamp_ns for frame in islice(again, FIRST_IMAGES)]
    finally:
        again.close()
    return float(np.median(np.diff(stamps_ns))) * 1e-9


def is_used(estimate: ReadoutEstimate) -> bool:
    """Whether there certainly is a rolling shutter, and it matters for this footage."""
    is_certain = estimate.significance >= SIGNIFICANT_SIGMAS and estimate.sigma <= LARGEST_SIGMA
    is_possible = SHARES[0] <= abs(estimate.readout.share) <= SHARES[1]
    return is_certain and is_possible and estimate.displacement >= LEAST_DISPLACEMENT


def sentence(estimate: ReadoutEstimate) -> str:
    """What was found, for the description of the source."""
    readout = estimate.readout
    order = "" if readout.share > 0 else ", the last first"
    return (
        f"rolling shutter corrected: {readout.axis} are read during {100 * abs(readout.share):.0f} % "
        f"(+- {100 * estimate.sigma:.0f} %) of the time between two images{order}"
    )


def estimate_readout(source: RereadableSource, length: int) -> ReadoutEstimate | None:
    """The most significant readout of a source's camera; None where the footage determines none.

    Args:
        length: number of images of the source.
    """
    firsts = _first_images(length)
    if len(firsts) < FEWEST_PLACES:
        return None
    few = {firsts[n] for n in np.linspace(0, len(firsts) - 1, FEW_PLACES).round().astype(int)}
    places = _places(source, sorted(few))
    if _largest_displacement(places) < LEAST_DISPLACEMENT:
        return None
    if not any(_is_promising(estimate) for estimate in fitted_readouts(places)):
        return None
    places += _places(source, [first for first in firsts if first not in few])
    estimates = fitted_readouts(places) if len(places) >= FEWEST_PLACES else []
    return max(estimates, key=lambda estimate: estimate.significance, default=None)


def _largest_displacement(places: list[list[FollowedPoints]]) -> float:
    """Displacement of pixels by a readout of the whole time between two images, as a fraction of the longer side."""
    return max(displacement_at(places, axis) for axis in AXES) if places else 0.0


def _is_small(turn: FloatArray) -> bool:
    return float(np.linalg.norm(turn)) <= LARGEST_TURN


def _is_promising(estimate: ReadoutEstimate) -> bool:
    """Whether more places may make an estimate certain."""
    sigma = estimate.sigma * np.sqrt(FEW_PLACES / ALL_PLACES)
    return bool(estimate.significance >= PROMISING_SIGMAS and sigma <= LARGEST_SIGMA)


def _first_images(length: int) -> list[int]:
    """Positions of the first images of all places, spread evenly and without overlap."""
    count = min(ALL_PLACES, length // PLACE)
    return [int(first) for first in np.linspace(0, length - PLACE, count).round()] if count > 0 else []


def _places(source: RereadableSource, firsts: list[int]) -> list[list[FollowedPoints]]:
    """The points that are followed at places that begin at some positions, without places where too few are."""
    images, places = SmallImages(source.camera), []
    with source.random_access() as read:
        for first in firsts:
            found = [read(first + k) for k in range(PLACE)]
            small = [images.small(image) for image in found if image is not None]
            if len(small) == PLACE and (followed := followed_at(images, small)):
                places.append(followed)
    return places


def followed_at(images: SmallImages, small: list[Image]) -> list[FollowedPoints]:
    """The points that are followed through the windows of `PLACE` consecutive images; none where they are too few."""
    turns = [images.turn(before, after) for before, after in pairwise(small)]
    windows = [followed_through(images, small[n : n + IMAGES], turns[n : n + IMAGES - 1]) for n in WINDOWS]
    return [points for points in windows if points is not None]


def followed_through(images: SmallImages, small: list[Image], turns: list[FloatArray | None]) -> FollowedPoints | None:
    """The points that are followed through `IMAGES` consecutive images; None if they are too few.

    Args:
        turns: rotation vectors (3,) between the images; None where one is not known.
    """
    start = corners(small[1])
    end, is_found = start, np.ones(len(start), bool)
    for before, after in pairwise(small[1:-1]):
        end, returns = follow(before, after, end)
        is_found &= returns
    if is_found.sum() < FEWEST_FOLLOWED or not all(turn is not None and _is_small(turn) for turn in turns):
        return None
    start, end = start[is_found], end[is_found]
    return FollowedPoints(
        camera=images.camera,
        pixels_first=start,
        pixels_last=end,
        first=images.rays(start),
        last=images.rays(end),
        rate_first=TurnRate.between(turns[0], turns[1]),
        rate_last=TurnRate.between(turns[-2], turns[-1]),
    )

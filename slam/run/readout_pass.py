"""Estimation of a rolling shutter before the run, from the images of the source.

Between two images a point moves as the camera turns, and by how much further the camera has turned when its row is
read. That differs the more between the two images the faster the turn changes, and tells the time of the readout. A
global shutter has none, and footage without quick turns determines none and needs no correction.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.spatial.transform import Rotation

from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray
from relocalizer.images import Image
from slam.config.schema import SlamConfig
from slam.input.frame_source import FrameSource, RereadableSource
from slam.input.prefetch import Prefetched
from slam.input.rolling_shutter import (
    AXES,
    CorrectedFrames,
    Readout,
    SmallImages,
    TurnRate,
    corners,
    fitted_turn,
    follow,
)

IMAGES = 6  # number of consecutive images in a window; points are followed from the second to the last but one
# Positions of the windows of a place, relative to its first image, and its number of images.
WINDOWS, PLACE = (0, 3), 9
# Number of places, spread evenly over the footage, that tell whether the readout can be determined, and number of all
# places if so.
FEW_PLACES, ALL_PLACES = 5, 20
FEWEST_PLACES = 4  # minimum number of places for an estimate
FEWEST_FOLLOWED = 40  # minimum number of points that are followed through a window
HUBER_PX, ROUNDS = 1.0, 5  # kernel of the fit in a window, pixels of the small images, and its iterations
SIGNIFICANT_SIGMAS, LARGEST_SIGMA = 5.0, 0.15  # minimum of a readout's share, in standard deviations, and their maximum
SHARES = (0.1, 1.2)  # minimum and maximum share of a readout
# Minimum displacement of pixels by the readout, root mean square over the windows, as a fraction of the longer side.
# Below it the correction changes less than it blurs.
LEAST_DISPLACEMENT = 0.001


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What a window, or all windows of a place, say of the readout along rows and columns.

    Attributes:
        information: (2, 2) of the two shares.
        evidence: (2,) information times their estimate.
        displacement: (2,) mean square displacement in one image by a share of one, pixels of the small images squared.
    """

    information: FloatArray
    evidence: FloatArray
    displacement: FloatArray


@dataclass(frozen=True, slots=True)
class ReadoutEstimate:
    """A readout and the standard deviation of its share; `displacement` as the fraction that it moves pixels by."""

    readout: Readout
    sigma: float
    displacement: float

    @property
    def is_used(self) -> bool:
        """Whether there is a rolling shutter, and it matters for this footage."""
        share = abs(self.readout.share)
        is_known = share >= SIGNIFICANT_SIGMAS * self.sigma and self.sigma <= LARGEST_SIGMA
        return is_known and SHARES[0] <= share <= SHARES[1] and self.displacement >= LEAST_DISPLACEMENT

    def __str__(self) -> str:
        share = 100 * abs(self.readout.share)
        order = "" if self.readout.share > 0 else ", the last first"
        return (
            f"rolling shutter: {self.readout.axis} read during {share:.0f} % (+- {100 * self.sigma:.0f} %) of the time "
            f"between two images{order}; corrected"
        )


def correct_readout(source: FrameSource, config: SlamConfig) -> FrameSource:
    """The source with its images corrected for a rolling shutter, if there is one that matters; else the source."""
    if not config.input.correct_rolling_shutter or config.input.unordered:
        return source
    if not isinstance(source, RereadableSource) or not source.can_be_reread or source.length is None:
        return source
    estimate = estimate_readout(source, source.length)
    if estimate is None or not estimate.is_used:
        return source
    corrected = CorrectedFrames(source, estimate.readout, str(estimate))
    ahead = config.input.prefetch_frames
    return Prefetched(corrected, ahead) if ahead else corrected


def estimate_readout(source: RereadableSource, length: int) -> ReadoutEstimate | None:
    """The readout of a source's camera; None where the footage does not determine it."""
    few = _first_images(length, FEW_PLACES)
    places = _places(source, few)
    estimate = fitted_readout(places, source.camera)
    if estimate is None or estimate.sigma * np.sqrt(FEW_PLACES / ALL_PLACES) > LARGEST_SIGMA:
        return None
    more = sorted(set(_first_images(length, ALL_PLACES)) - set(few))
    return fitted_readout([*places, *_places(source, more)], source.camera)


def _first_images(length: int, most: int) -> list[int]:
    """Positions of the first images of places, spread evenly and without overlap."""
    count = min(most, length // PLACE)
    return [int(first) for first in np.linspace(0, length - PLACE, count).round()] if count > 0 else []


def _places(source: RereadableSource, firsts: list[int]) -> list[Evidence]:
    """The evidence of the places that begin at some positions, without those that tell nothing."""
    images, places = SmallImages(source.camera), []
    with source.random_access() as read:
        for first in firsts:
            found = [read(first + k) for k in range(PLACE)]
            small = [images.small(image) for image in found if image is not None]
            evidence = place_of(images, small) if len(small) == PLACE else None
            if evidence is not None:
                places.append(evidence)
    return places


def place_of(images: SmallImages, small: list[Image]) -> Evidence | None:
    """What `PLACE` consecutive images say; None if too few points are followed."""
    turns = [images.turn(before, after) for before, after in pairwise(small)]
    found = [window_of(images, small[n : n + IMAGES], turns[n : n + IMAGES - 1]) for n in WINDOWS]
    windows = [window for window in found if window is not None]
    return _sum(windows) if windows else None


def _sum(windows: list[Evidence]) -> Evidence:
    return Evidence(
        np.sum([window.information for window in windows], axis=0),
        np.sum([window.evidence for window in windows], axis=0),
        np.mean([window.displacement for window in windows], axis=0),
    )


def window_of(images: SmallImages, small: list[Image], turns: list[FloatArray | None]) -> Evidence | None:
    """What `IMAGES` consecutive images say; None if too few points are followed.

    Args:
        turns: rotation vectors (3,) between them; None where one is not known.
    """
    start = corners(small[1])
    end, is_found = start, np.ones(len(start), bool)
    for before, after in pairwise(small[1:-1]):
        end, returns = follow(before, after, end)
        is_found &= returns
    known = [turn for turn in turns if turn is not None]
    if is_found.sum() < FEWEST_FOLLOWED or len(known) < len(turns):
        return None
    return _evidence_of_points(images, start[is_found], end[is_found], known)


def _evidence_of_points(images: SmallImages, start: FloatArray, end: FloatArray, turns: list[FloatArray]) -> Evidence:
    """What points (N, 2) that are followed from the second image to the last but one say.

    Args:
        turns: rotation vectors (3,) between consecutive images.
    """
    camera, first, last = images.camera, images.rays(start), images.rays(end)
    last_from_first = Rotation.from_rotvec(fitted_turn(first, last)).inv()
    errors = camera.project(last) - camera.project(last_from_first.apply(first))
    early = TurnRate.between(turns[0], turns[1]).velocity
    late = TurnRate.between(turns[-2], turns[-1]).velocity
    moved_first, moved_last = last_from_first.apply(np.cross(early, first)), np.cross(late, last)
    by_share, displacement = [], []
    for axis in AXES:
        unit = Readout(axis, 1.0)
        times_first, times_last = unit.times(start, camera)[:, None], unit.times(end, camera)[:, None]
        by_share.append(_moved(camera, last, times_first * moved_first - times_last * moved_last))
        displacement.append(2.0 * float((_moved(camera, last, times_last * moved_last) ** 2).mean()))
    return _fitted(errors, np.stack(by_share, axis=-1), _turning(camera, last), np.array(displacement))


def _moved(camera: Camera, rays: FloatArray, motion: FloatArray) -> FloatArray:
    """Displacement (N, 2) of the pixels of rays (N, 3) that move by `motion` (N, 3)."""
    x, y, z = rays.T
    dx, dy, dz = motion.T
    moved = np.column_stack([camera.fx * (dx * z - x * dz), camera.fy * (dy * z - y * dz)])
    return np.asarray(moved / z[:, None] ** 2)


def _turning(camera: Camera, rays: FloatArray) -> FloatArray:
    """Displacements (N, 2, 3) of pixels by turns about the three axes."""
    return np.stack([_moved(camera, rays, np.cross(axis, rays)) for axis in np.eye(3)], axis=-1)


def _fitted(errors: FloatArray, by_share: FloatArray, turning: FloatArray, displacement: FloatArray) -> Evidence:
    """The information about the shares from errors (N, 2), without what a rotation (N, 2, 3) explains."""
    weights = np.ones(len(errors))
    for _ in range(ROUNDS):
        root = np.repeat(np.sqrt(weights), 2)[:, None]
        turns, shares, y = (root * a.reshape(2 * len(errors), -1) for a in (turning, by_share, errors))
        basis, _ = np.linalg.qr(turns)
        shares, y = shares - basis @ (basis.T @ shares), y - basis @ (basis.T @ y)
        size = np.linalg.norm((y / np.maximum(root, 1e-9)).reshape(-1, 2), axis=1)
        weights = np.minimum(1.0, HUBER_PX / np.maximum(size, 1e-9))
    return Evidence(shares.T @ shares, (shares.T @ y)[:, 0], displacement)


def fitted_readout(places: list[Evidence], camera: Camera) -> ReadoutEstimate | None:
    """The readout that explains all places best, along rows or along columns; None with too few places.

    Its standard deviation is that of the scatter between places, because errors within one are correlated.
    """
    if len(places) < FEWEST_PLACES:
        return None
    found = []
    for n, axis in enumerate(AXES):
        information = np.array([place.information[n, n] for place in places])
        evidence = np.array([place.evidence[n] for place in places])
        if information.sum() <= 0.0:
            continue
        share = float(evidence.sum() / information.sum())
        scatter = np.sqrt(((evidence - share * information) ** 2).sum() * len(places) / (len(places) - 1))
        mean = float(np.mean([place.displacement[n] for place in places]))
        sigma, displacement = float(scatter / information.sum()), abs(share) * _displaced(mean, camera)
        found.append(ReadoutEstimate(Readout(axis, share), sigma, displacement))
    return max(found, key=lambda estimate: abs(estimate.readout.share) / max(estimate.sigma, 1e-9), default=None)


def _displaced(mean_square: float, camera: Camera) -> float:
    """A mean square displacement in the small images as a fraction of the longer side."""
    small = SmallImages(camera).camera
    return float(np.sqrt(mean_square)) / max(small.width, small.height)

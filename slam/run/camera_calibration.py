"""Calibration of the camera of stored images, without a run: from image pairs, or from views of a board."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from relocalizer.board_calibration import (
    FEWEST_VIEWS,
    Board,
    BoardDetector,
    calibrate_with_board,
    different_views,
)
from relocalizer.camera import Camera, Undistorter
from relocalizer.errors import CameraError, SequenceError
from relocalizer.images import Image
from relocalizer.lens_estimates import KNOWN_SIGMA
from relocalizer.plausible_camera import angles_across_deg, expect_plausible
from slam.config.schema import SlamConfig
from slam.input.frame_source import FrameSource, RereadableSource
from slam.input.rectification import GivenCamera
from slam.map.lens_evidence import LensState
from slam.progress import Progress, no_progress
from slam.run.calibration_pass import estimate_camera

MOST_IMAGES = 300  # maximum number of images in which a board is searched


@dataclass(frozen=True, slots=True)
class FoundCamera:
    """A camera that images determine.

    Attributes:
        camera: the camera of the original images.
        sigma: standard deviation of the logarithm of its focal length.
        evidence: what it was estimated from, such as "51 image pairs".
        reason: why the focal length is a guess; empty when it is known.
        rms_px: root mean square of the reprojection errors of a board, pixels; None without a board.
    """

    camera: Camera
    sigma: float
    evidence: str
    reason: str = ""
    rms_px: float | None = None

    @property
    def state(self) -> str:
        """ "found" or "guess", with the reason."""
        return f"guess: {self.reason}" if self.reason else "found"

    @property
    def sigma_px(self) -> float:
        return self.sigma * self.camera.mean_focal

    @property
    def sentence(self) -> str:
        """The focal length and how far it is known, in one line."""
        focal = f"focal length {self.camera.mean_focal:.1f} px +- {self.sigma_px:.1f} px ({100 * self.sigma:.2g} %)"
        rms = "" if self.rms_px is None else f", reprojection error {self.rms_px:.2f} px"
        return f"{focal}, {self.state}; estimated from {self.evidence}{rms}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        camera = self.camera
        return {
            "state": "guess" if self.reason else "found",
            "reason": self.reason,
            "focal_px": camera.mean_focal,
            "focal_sigma": self.sigma,
            "focal_sigma_px": self.sigma_px,
            "angles_deg": list(angles_across_deg(camera)),
            "model": camera.model,
            "width": camera.width,
            "height": camera.height,
            "fx": camera.fx, "fy": camera.fy, "cx": camera.cx, "cy": camera.cy,
            "distortion": list(camera.distortion),
            "evidence": self.evidence,
            "rms_px": self.rms_px,
        }  # fmt: skip

    def to_yaml(self) -> str:
        """The text of a camera.yaml, with how far the camera is known in a comment."""
        return f"# {self.sentence}\n{self.camera.to_yaml()}"


@dataclass(frozen=True, slots=True)
class NotFound:
    """The images determine no camera."""

    reason: str


def stored(source: FrameSource) -> RereadableSource:
    """The source, of stored images.

    Raises:
        SequenceError: its images cannot be read twice.
    """
    if isinstance(source, RereadableSource) and source.can_be_reread and source.length is not None:
        return source
    raise SequenceError(f"{source.name}: calibration needs stored images: record the stream to a file first")


def without_calibration(source: RereadableSource, config: SlamConfig) -> RereadableSource:
    """The images as the camera took them, with an assumed camera in place of a given one."""
    if source.calibration.assumed:
        return source
    given = source.calibration
    assumed = Camera.assume(given.width, given.height, fov_deg=config.input.assumed_fov_deg)
    return stored(source.with_calibration(GivenCamera(assumed, "its calibration is not used")))


def calibrate_from_pairs(
    source: RereadableSource, config: SlamConfig, *, on_progress: Progress = no_progress
) -> FoundCamera | NotFound:
    """The camera of a source from the epipolar geometry of its image pairs, as before a run."""
    camera, calibration = estimate_camera(source, source.length or 0, config.features, on_progress=on_progress)
    evidence = calibration.evidence
    if not calibration.is_used:
        sigma = evidence.focal_sigma
        uncertain = "" if sigma is None else f"its standard deviation would be {100 * sigma:.0f} %"
        return NotFound(f"{evidence.reason or uncertain} ({calibration.pairs} image pairs)")
    reason = "" if evidence.state is LensState.KNOWN else evidence.reason
    found = replace(camera, assumed=bool(reason))
    return FoundCamera(found, calibration.focal_sigma, f"{calibration.pairs} image pairs", reason)


def calibrate_from_board(
    source: RereadableSource, board: Board, *, on_progress: Progress = no_progress
) -> FoundCamera | NotFound:
    """The camera of a source from the views of a board in its images."""
    detector, views = BoardDetector(board), []
    length = source.length or 0
    positions = np.unique(np.linspace(0, length - 1, min(length, MOST_IMAGES)).round().astype(int)).tolist()
    with source.random_access() as read:
        for count, position in enumerate(positions, start=1):
            image = read(position)
            view = None if image is None else detector.view(image)
            views += [] if view is None else [view]
            on_progress("images searched for the board", count, len(positions))
    width, height = source.camera.width, source.camera.height
    used = different_views(views, float(np.hypot(width, height)))
    seen = f"the board was found in {len(views)} of {len(positions)} images"
    if len(used) < FEWEST_VIEWS:
        return NotFound(f"{seen}, {len(used)} of them from different poses; at least {FEWEST_VIEWS} are needed")
    result = calibrate_with_board(board, used, width, height)
    if result is None:
        return NotFound(f"{seen}, but its views have no common camera; was it always seen from straight ahead?")
    original = result.camera.resized(source.calibration.width, source.calibration.height)
    try:
        expect_plausible(original, "the board")
        Undistorter(original)
    except CameraError as error:
        return NotFound(f"{seen}, but {error}")
    reason = ""
    if result.sigma > KNOWN_SIGMA:
        reason = f"its standard deviation is {100 * result.sigma:.0f} %; tilt the board more"
    return FoundCamera(original, result.sigma, f"{result.views} views of a {board.kind}", reason, result.rms_px)


def comparison(given: Camera, found: FoundCamera) -> str:
    """How a given calibration compares with the camera found, in one line."""
    difference = float(np.log(found.camera.mean_focal / given.mean_focal))
    sigmas = abs(difference) / max(found.sigma, 1e-9)
    distortion = ", ".join(f"{number:.4g}" for number in given.distortion)
    lens = f"{given.model} ({distortion})" if distortion else given.model
    return (
        f"{given.mean_focal:.1f} px, {lens}; the one found is {100 * np.expm1(difference):+.1f} % different, "
        f"{sigmas:.1f} standard deviations"
    )


def side_by_side(source: RereadableSource, camera: Camera) -> Image | None:
    """(H, 2 W, 3): the middle image of a source as taken, and undistorted with a camera; None if it is unreadable.

    Args:
        source: a source without undistortion, as `without_calibration` gives.
    """
    with source.random_access() as read:
        image = read((source.length or 0) // 2)
    if image is None:
        return None
    undistort = Undistorter(camera.resized(source.camera.width, source.camera.height))
    return np.hstack([image, undistort(image)])

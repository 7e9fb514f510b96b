"""Measurements of every frame, recorded for the diagnosis of a run. No decision of the system depends on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One test of a decision: a value against its limit.

    Attributes:
        name: what is tested, in words.
        value, limit: the numbers compared, in the same unit.
        passed: whether the test was passed.
    """

    name: str
    value: float
    limit: float
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameMeasurement:
    """What was measured in one frame. NaN: not measured in this frame, or nothing to measure it on.

    Attributes:
        brightness: mean gray level, 0 to 255.
        sharpness: variance of the Laplacian at half resolution, gray levels squared.
        fineness: `sharpness` relative to the same at quarter resolution; blur lowers it, a scene with little texture
            does not.
        flat: fraction of the image without texture; dark: fraction that is black.
        gain: brightness of the previous image's scene in this image, relative to that in the previous image.
        changed: fraction of the image that differs from the previous one by more than that gain.
        correlation: of the brightness over the two images; 1 for images of the same scene in another exposure.
        repetition: height of the second-highest peak of the autocorrelation of the image above the dip before it, 0 to
            1; 1 for a periodic texture.
        followed: fraction of the previous image's tracks that were found in this one.
        moved_px: median displacement of these tracks.
        surprise_px: median distance of these tracks from where the motion model predicted them.
        turned_px: median displacement of the tracks over the last `ROTATION_FRAMES` frames, and `rotation_only`: the
            fraction of them that a pure rotation of the camera explains.
        landmarks: number of tracks that are landmarks, before the pose was estimated.
        residual_px: median reprojection error of the inlier landmarks.
        memory_mb: peak memory of the process so far, megabytes.
    """

    brightness: float = np.nan
    sharpness: float = np.nan
    fineness: float = np.nan
    flat: float = np.nan
    dark: float = np.nan
    gain: float = np.nan
    changed: float = np.nan
    correlation: float = np.nan
    repetition: float = np.nan
    followed: float = np.nan
    moved_px: float = np.nan
    surprise_px: float = np.nan
    turned_px: float = np.nan
    rotation_only: float = np.nan
    landmarks: float = 0
    residual_px: float = np.nan
    memory_mb: float = np.nan

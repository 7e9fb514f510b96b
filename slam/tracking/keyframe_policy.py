"""Decision whether a frame becomes a keyframe."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from relocalizer.absolute_pose import rotate_pixels
from relocalizer.camera import Camera
from relocalizer.geometry import FloatArray, rotation_angle
from slam.config.schema import KeyframesConfig
from slam.map.frame_measurement import Gate
from slam.map.tracks import Tracks

MAX_PUT_OFF = (
    5  # maximum number of successive blurred frames that are skipped; a blurred keyframe is better than a loss
)
# Fraction of `min_survival` below which a keyframe is inserted at once, however near the last one is: the next step of
# the same size would end in a loss.
URGENT = 0.75
FEW_LANDMARKS = 40  # number of inlier landmarks below which a keyframe is inserted although it is blurred


class KeyframePolicy:
    """Inserts a keyframe on parallax, lost landmarks or rotation; motion blur postpones it by a few frames.

    Attributes:
        criteria: the criteria as they were measured in the last frame; a keyframe is due when one of them is passed.
        is_urgent: whether so few landmarks were left in the last judged frame that a keyframe must not be put off.
    """

    def __init__(self, config: KeyframesConfig) -> None:
        self.criteria: tuple[Gate, ...] = ()
        self.is_urgent = False
        self._config = config
        self._recent_sharpness: deque[float] = deque(maxlen=30)
        self._put_off = 0

    def is_blurred(self, sharpness: float) -> bool:
        """Whether a frame is much less sharp than the recent frames; then adds it to the recent frames."""
        recent = self._recent_sharpness
        blurred = len(recent) >= 5 and sharpness < self._config.blur_ratio * float(np.median(recent))
        recent.append(sharpness)
        return blurred

    def reason_to_keep(
        self,
        *,
        seen: Tracks,
        in_keyframe: Tracks,
        camera: Camera,
        keyframe_from_frame_rotation: FloatArray,
        frames_since: int,
        blurred: bool,
    ) -> str:
        """Why this frame should be inserted as a keyframe, as a sentence; empty if not.

        Args:
            seen: inlier landmarks of the frame's pose.
            in_keyframe: landmarks observed by the reference keyframe.
        """
        before, now = common_pixels(in_keyframe, seen)
        survival = len(before) / max(len(in_keyframe), 1)
        parallax = median_parallax_px(before, now, camera, keyframe_from_frame_rotation)
        turned = float(np.degrees(rotation_angle(keyframe_from_frame_rotation)))
        self.criteria = self._measured(survival, turned, parallax)
        self.is_urgent = survival < URGENT * self._config.min_survival
        if frames_since < self._config.min_gap and not self.is_urgent:
            return ""
        reason = self._criterion(survival, turned, parallax)
        if reason and blurred and len(seen) >= FEW_LANDMARKS and self._put_off < MAX_PUT_OFF:
            self._put_off += 1
            return ""
        if reason:
            self._put_off = 0
        return reason

    def _measured(self, survival: float, turned: float, parallax: float) -> tuple[Gate, ...]:
        config = self._config
        return (
            Gate(
                name="landmarks left", value=survival, limit=config.min_survival, passed=survival < config.min_survival
            ),
            Gate(name="turned, deg", value=turned, limit=config.rotation_deg, passed=turned > config.rotation_deg),
            Gate(name="parallax, px", value=parallax, limit=config.parallax_px, passed=parallax > config.parallax_px),
        )

    def _criterion(self, survival: float, turned: float, parallax: float) -> str:
        config = self._config
        if survival < config.min_survival:
            return f"{survival:.0%} of the keyframe's landmarks are left (limit {config.min_survival:.0%})"
        if turned > config.rotation_deg:
            return f"turned by {turned:.1f} deg (limit {config.rotation_deg:g})"
        if parallax > config.parallax_px:
            return f"parallax {parallax:.1f} px (limit {config.parallax_px:g})"
        return ""


def common_pixels(a: Tracks, b: Tracks) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pixels (N, 2) in a and in b of their common tracks, in order of id."""
    _, in_a, in_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    return a.pixels[in_a], b.pixels[in_b]


def median_parallax_px(
    before: NDArray[np.float32], now: NDArray[np.float32], camera: Camera, before_from_now_rotation: FloatArray
) -> float:
    """Median rotation-compensated motion of the points, pixels; 0 without points."""
    if len(before) == 0:
        return 0.0
    turned_back = rotate_pixels(now, camera, before_from_now_rotation)
    return float(np.median(np.linalg.norm(turned_back - before, axis=1)))

"""Changes of color as an augmentation: brightness, contrast, saturation and hue, in random order."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from relocalizer.images import Image


@dataclass(frozen=True, slots=True)
class ColorJitter:
    """Largest changes; factors are uniform in 1 +- the value, the shift of hue in +- turns. Defaults as published."""

    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """A changed copy of an image, RGB (H, W, 3) uint8."""
        for which in rng.permutation(4).tolist():
            if which == 3:
                turns = rng.uniform(-self.hue, self.hue)
                image = _hue_shifted(image, turns) if self.hue else image
                continue
            limit = (self.brightness, self.contrast, self.saturation)[which]
            factor = rng.uniform(1 - limit, 1 + limit)
            image = _blended(image, (_black, _mean_gray, _gray)[which](image), factor)
        return image


def _blended(image: Image, other: np.ndarray, factor: float) -> Image:
    mixed = factor * image.astype(np.float32) + (1 - factor) * other
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _black(image: Image) -> np.ndarray:
    return np.zeros(3, np.float32)


def _mean_gray(image: Image) -> np.ndarray:
    return np.full(3, cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean(), np.float32)


def _gray(image: Image) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[:, :, None]


def _hue_shifted(image: Image, turns: float) -> Image:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)  # 256 steps a turn, so that the sum wraps around
    hsv[:, :, 0] += np.uint8(round(256 * turns) % 256)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), dtype=np.uint8)

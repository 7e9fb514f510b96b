"""How a camera takes an image: lens, exposure over time, rolling shutter, and sensor.

Light is summed in a linear scale, of which gray levels are the square root: near enough to sRGB, and cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from room.raster import Floats, Pinhole, Rasteriser, Singles

from stress_world.motion import Path
from stress_world.places import Place

Bytes = NDArray[np.uint8]
WIDTH, HEIGHT = 480, 360
BANDS = 36  # of a rolling shutter; each is 10 rows and has one pose
FISHEYE_VIEW = Pinhole(1200, 900, 260.0, 260.0, 599.5, 449.5)  # what fisheye images are resampled from


@dataclass(frozen=True, slots=True, kw_only=True)
class Lens:
    """A lens: pinhole, or equidistant fisheye with an image circle.

    Attributes:
        focal: pixels.
        circle_deg: half the angle of view of a fisheye's image circle; 0 for a pinhole.
        zoom: factor of the focal length at a time in seconds.
    """

    focal: float = 349.0
    circle_deg: float = 0.0
    zoom: Callable[[float], float] | None = None

    def pinhole(self, time_s: float = 0.0) -> Pinhole:
        focal = self.focal * (self.zoom(time_s) if self.zoom else 1.0)
        return Pinhole(WIDTH, HEIGHT, focal, focal, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)

    @property
    def yaml(self) -> str:
        """The text of camera.yaml."""
        model, distortion = ("fisheye", "[0, 0, 0, 0]") if self.circle_deg else ("pinhole", "[]")
        view = self.pinhole()
        return (
            f"# pixel (0, 0) is the center of the top left pixel\nmodel: {model}\nwidth: {WIDTH}\nheight: {HEIGHT}\n"
            f"fx: {view.fx}\nfy: {view.fy}\ncx: {view.cx}\ncy: {view.cy}\ndistortion: {distortion}\n"
        )


def lens_of(view_deg: float) -> Lens:
    """A pinhole lens with an angle of view across the image."""
    return Lens(focal=0.5 * WIDTH / float(np.tan(np.radians(view_deg) / 2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutter:
    """How long a frame is exposed, and how its rows follow one another.

    Attributes:
        open_s: exposure, seconds; 0 for an instant.
        steps: number of instants that an exposure is the mean of.
        readout_s: from the first row to the last, seconds; 0 for a global shutter.
    """

    open_s: float = 0.0
    steps: int = 10
    readout_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor:
    """What becomes of the light.

    Attributes:
        gain: factor of the light at a time in seconds; what exceeds the scale is white.
        vignetting: darkening of the corners, share of the gray levels.
        noise: gray levels, one sigma.
        electrons: of a white pixel, for shot noise with three electrons of read noise; 0 for none.
    """

    gain: Callable[[float], float] | None = None
    vignetting: float = 0.1
    noise: float = 0.6
    electrons: float = 0.0

    def develop(self, rgb: Singles, time_s: float, rng: np.random.Generator) -> Bytes:
        """The image (H, W, 3) of the gray levels that the lens gives, 0 to 255."""
        y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]]
        radius2 = (x - x.mean()) ** 2 + (y - y.mean()) ** 2
        image = rgb * (1 - self.vignetting * radius2 / radius2.max())[..., None].astype(np.float32)
        if self.gain is not None:
            image *= np.float32(np.sqrt(self.gain(time_s)))
        if self.electrons:
            light = np.square(image / 255) * self.electrons
            light += np.sqrt(light + 9) * rng.standard_normal(light.shape, dtype=np.float32)
            image = 255 * np.sqrt(np.clip(light / self.electrons, 0, None))
        image = image + np.float32(self.noise) * rng.standard_normal(image.shape, dtype=np.float32)
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)


class FilmCamera:
    """A camera that films a place along a path."""

    def __init__(self, place: Place, path: Path, lens: Lens, shutter: Shutter) -> None:
        is_averaged = shutter.open_s > 0 or lens.circle_deg > 0
        self._rasteriser = Rasteriser(
            place.quads, lens.pinhole(), supersampling=1 if is_averaged else 2, anisotropic=False
        )
        self._place, self._path, self._lens, self._shutter = place, path, lens, shutter
        self._fisheye = _fisheye_maps(lens) if lens.circle_deg else None

    def light(self, time_s: float) -> Singles:
        """Gray levels (H, W, 3), not rounded, of the frame whose exposure has its middle at a time."""
        if self._shutter.readout_s:
            return self._rolling(time_s)
        if not self._shutter.open_s:
            return self._instant(time_s)
        steps = self._shutter.steps
        total = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for k in range(steps):
            total += np.square(self._instant(time_s + self._shutter.open_s * ((k + 0.5) / steps - 0.5)))
        return np.asarray(np.sqrt(total / steps), np.float32)

    def _instant(self, time_s: float) -> Singles:
        if self._fisheye is None:
            return self._render(time_s, self._lens.pinhole(time_s))
        x, y, mask = self._fisheye
        image = cv2.remap(self._render(time_s, FISHEYE_VIEW), x, y, cv2.INTER_LINEAR)
        return np.asarray(image * mask[..., None], np.float32)

    def _rolling(self, time_s: float) -> Singles:
        """Bands of rows, each at its own time; the middle row is at `time_s`."""
        view, rows = self._lens.pinhole(time_s), HEIGHT // BANDS
        bands = []
        for top in range(0, HEIGHT, rows):
            band = replace(view, height=rows, cy=view.cy - top)
            later = self._shutter.readout_s * ((top + 0.5 * rows) / HEIGHT - 0.5)
            bands.append(self._render(time_s + later, band))
        return np.concatenate(bands)

    def _render(self, time_s: float, view: Pinhole) -> Singles:
        moved = self._place.displacements(time_s)
        image = self._rasteriser.render(self._path.at(time_s), camera=view, displacements=moved)
        image.rgb[image.inverse_depth == 0] = self._place.sky
        return image.rgb


def _fisheye_maps(lens: Lens) -> tuple[Singles, Singles, Singles]:
    """Where each pixel of an equidistant fisheye lies in `FISHEYE_VIEW` (x, y), and the mask of its image circle."""
    view = lens.pinhole()
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    x, y = (x - view.cx) / view.fx, (y - view.cy) / view.fy
    angle = np.hypot(x, y)  # of the ray to the axis, radians
    seen = np.minimum(angle, np.radians(lens.circle_deg))
    stretch = np.tan(seen) / np.maximum(angle, 1e-9)
    mask = np.clip((np.radians(lens.circle_deg) - angle) * view.fx + 0.5, 0, 1)
    to_view: Callable[[Floats, float, float], Singles] = lambda side, focal, center: np.asarray(  # noqa: E731
        side * stretch * focal + center, np.float32
    )
    return (
        to_view(x, FISHEYE_VIEW.fx, FISHEYE_VIEW.cx),
        to_view(y, FISHEYE_VIEW.fy, FISHEYE_VIEW.cy),
        np.asarray(mask, np.float32),
    )

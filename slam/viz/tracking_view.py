"""The tracked points in Rerun: their ages, reprojection residuals as vectors, and the histogram of these."""

from __future__ import annotations

import numpy as np
import rerun as rr

from slam.events import FrameProcessed
from slam.map.image_points import TrackedPoints
from slam.viz.canvas import OUTLIER, Canvas, screen_radius
from slam.viz.colors import ramp

OLD = 60.0  # age of the color at the end of the scale, frames
MAGNIFIED = 10.0  # length of a residual vector, relative to the residual
BINS = np.linspace(0.0, 3.0, 31)  # of the histogram, pixels
LARGE = 2.0  # residual of the color at the end of the scale, pixels


class TrackingView:
    """Draws the points of a frame; the caller decides which frames."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas

    def show(self, event: FrameProcessed, scale: float) -> None:
        """Draw the points of a frame.

        Args:
            scale: pixels of the image as sent per pixel of the frame.
        """
        points = event.points
        if points is None:
            return
        log = self._canvas.recording.log
        # Rerun's pixel (0, 0) is the corner of the image, ours the center of its first pixel.
        pixels = (points.pixels + 0.5) * scale
        landmarks = rr.AnyValues(age_frames=points.ages.astype(np.uint16), residual_px=points.residuals_px)
        ages = rr.Points2D(pixels, colors=ramp(1.0 - points.ages / OLD).astype(np.uint8), radii=_radii(points))
        log("world/camera/image/ages", ages, landmarks)
        self._show_residuals(points, pixels, scale)

    def _show_residuals(self, points: TrackedPoints, pixels: np.ndarray, scale: float) -> None:
        log, inlier = self._canvas.recording.log, points.is_inlier
        residuals = points.residuals_px[inlier]
        vectors = MAGNIFIED * scale * (points.reprojected - points.pixels)[inlier]
        colors = ramp(np.asarray(residuals / LARGE, np.float64)).astype(np.uint8)
        arrows = rr.Arrows2D(vectors=vectors, origins=pixels[inlier], colors=colors, radii=screen_radius(0.8))
        log("world/camera/image/residuals", arrows)
        counts, _ = np.histogram(np.clip(residuals, BINS[0], BINS[-1] - 1e-6), BINS)
        log("tracking/residual_histogram", rr.BarChart(counts, abscissa=BINS[:-1], widths=np.diff(BINS), color=OUTLIER))


def _radii(points: TrackedPoints) -> np.ndarray:
    """Screen radii: landmarks are larger than points that are not triangulated."""
    return np.where(points.is_landmark, screen_radius(3.0), screen_radius(1.5))

"""The drawing of a run from above: path, keyframes, landmarks, loops and lost intervals, with axes and a legend.

Shapes are drawn with OpenCV and text with Pillow, whose own font is legible; matplotlib is not part of a default
installation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageDraw, ImageFont

from relocalizer.geometry import FloatArray
from relocalizer.images import Image
from slam.evaluation.top_view import extent

Color = tuple[int, int, int]

SIZE = (1000, 800)  # width and height of the image, pixels; not larger, so that its text is legible on a phone
FRAME = (98, 122, 980, 656)  # left, top, right and bottom of the axes, pixels
INK, SOFT, GRID, PAPER = (27, 31, 36), (95, 103, 115), (226, 229, 233), (255, 255, 255)
LANDMARK, PATH, KEYFRAME, LOOP, LOST = (163, 170, 180), (31, 119, 180), (12, 60, 105), (210, 40, 150), (214, 39, 40)
START, END = (44, 150, 60), (225, 120, 0)
TEXT = 22  # height of the text, pixels
TICKS = 7  # approximate number of ticks along the longer axis
DASH_PX = 10.0
SHIFT = 4  # fractional bits of OpenCV's coordinates


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TopView:
    """What is drawn; all coordinates are right and ahead in the view, in `units`.

    Attributes:
        title, facts: two lines above the axes.
        path: pieces (n, 2) of the path between which frames have no pose, in order.
        lost: number of frames without a pose between a piece and the next.
        keyframes: (N, 2). landmarks: (M, 2). loops: (L, 2, 2), the two keyframes of each loop closure.
        path_ns, keyframes_ns, landmarks_ns: times of the poses of all pieces, of the keyframes, and of each landmark's
            anchor keyframe, for `until`; empty where they are not known.
    """

    title: str
    facts: str
    units: str
    path: Sequence[FloatArray]
    lost: Sequence[int]
    keyframes: FloatArray
    landmarks: FloatArray
    loops: FloatArray
    path_ns: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    keyframes_ns: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    landmarks_ns: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def until(self, time_ns: int) -> TopView:
        """What there was at a time, at its final place; at least the first pose. Loop closures are left out."""
        left, pieces = max(int((self.path_ns <= time_ns).sum()), 1), []
        for piece in self.path:
            pieces += [piece[:left]] if left > 0 else []
            left -= len(piece)
        return replace(
            self,
            path=pieces,
            lost=self.lost[: len(pieces) - 1],
            keyframes=self.keyframes[self.keyframes_ns <= time_ns],
            landmarks=self.landmarks[self.landmarks_ns <= time_ns],
            loops=np.zeros((0, 2, 2)),
        )


def draw_top_view(view: TopView, *, limits_of: TopView | None = None) -> Image:
    """The drawing, RGB (H, W, 3); its axes are those of `limits_of` if that is given."""
    whole = limits_of or view
    canvas = _Canvas(*extent(np.concatenate([*whole.path, whole.keyframes]), whole.landmarks))
    canvas.grid()
    canvas.dots(view.landmarks, LANDMARK)
    for before, after in zip(view.path, view.path[1:], strict=False):
        canvas.dashes(before[-1], after[0], LOST)
    for piece in view.path:
        canvas.line(piece, PATH, 3)
    canvas.circles(view.keyframes, KEYFRAME, 3.5)
    for loop in view.loops:
        canvas.line(loop, LOOP, 3)
    canvas.circles(view.path[0][:1], START, 9)
    canvas.circles(view.path[-1][-1:], END, 9)
    canvas.frame()
    return canvas.with_text(view)


def ticks(low: float, high: float, step: float) -> FloatArray:
    """Multiples of `step` from `low` to `high`, to within a thousandth of it."""
    return np.arange(np.ceil(low / step - 1e-3), np.floor(high / step + 1e-3) + 1) * step


def tick_step(length: float) -> float:
    """1, 2 or 5 times a power of ten, of which about TICKS fit into a length."""
    power = 10.0 ** np.floor(np.log10(length / TICKS))
    return float(next(k for k in (1, 2, 5, 10) if k * power >= length / TICKS) * power)


class _Canvas:
    """An image with axes of equal scale."""

    def __init__(self, low: FloatArray, high: FloatArray) -> None:
        left, top, right, bottom = FRAME
        self._scale = float(min((right - left) / (high - low)[0], (bottom - top) / (high - low)[1]))
        half = 0.5 * np.array([right - left, bottom - top]) / self._scale
        self._low, self._high = 0.5 * (low + high) - half, 0.5 * (low + high) + half
        self._step = tick_step(float((self._high - self._low).max()))
        self._image = np.full((SIZE[1], SIZE[0], 3), PAPER, np.uint8)

    def _pixels(self, points: FloatArray) -> FloatArray:
        """Pixels (n, 2) of points (n, 2); ahead is up."""
        left, _, _, bottom = FRAME
        return np.asarray([left, bottom] + (points - self._low) * self._scale * np.array([1.0, -1.0]))

    def grid(self) -> None:
        for axis in (0, 1):
            for tick in ticks(self._low[axis], self._high[axis], self._step):
                ends = np.array([self._low, self._high])
                ends[:, axis] = tick
                self.line(ends, GRID, 1)

    def frame(self) -> None:
        left, top, right, bottom = FRAME
        cv2.rectangle(self._image, (left, top), (right, bottom), SOFT, 1)

    def line(self, points: FloatArray, color: Color, thickness: int) -> None:
        self._polyline(self._pixels(points), color, thickness)

    def dashes(self, start: FloatArray, end: FloatArray, color: Color) -> None:
        first, last = self._pixels(np.array([start, end]))
        count = max(1, int(np.linalg.norm(last - first) / DASH_PX))
        for k in range(0, count, 2):
            part = np.array([first + (last - first) * k / count, first + (last - first) * min(k + 1, count) / count])
            self._polyline(part, color, 3)

    def dots(self, points: FloatArray, color: Color) -> None:
        """Squares of two pixels, of the points within the axes."""
        left, top, right, bottom = FRAME
        pixels = np.floor(self._pixels(points)).astype(np.int64)
        inside = ((pixels >= (left, top)) & (pixels < (right, bottom))).all(axis=1)
        for du in (0, 1):
            for dv in (0, 1):
                self._image[pixels[inside, 1] + dv, pixels[inside, 0] + du] = color

    def circles(self, points: FloatArray, color: Color, radius: float) -> None:
        for point in self._pixels(points):
            self._disk(point, color, radius)

    def _disk(self, pixel: FloatArray, color: Color, radius: float) -> None:
        u, v = (pixel * 2**SHIFT).round().astype(int).tolist()
        cv2.circle(self._image, (u, v), round(radius * 2**SHIFT), color, -1, cv2.LINE_AA, SHIFT)

    def _polyline(self, pixels: FloatArray, color: Color, thickness: int) -> None:
        fixed: NDArray[np.int32] = (pixels * 2**SHIFT).round().astype(np.int32).reshape(-1, 1, 2)
        cv2.polylines(self._image, [fixed], False, color, thickness, cv2.LINE_AA, SHIFT)

    def with_text(self, view: TopView) -> Image:
        """The image with title, ticks, names of the axes and legend."""
        entries = legend_of(view)
        left, top, right, bottom = FRAME
        places = _places([text for _, _, text in entries])
        for (shape, color, _), place in zip(entries, places, strict=True):
            self._sample(shape, color, np.array([place[0], place[1]]))
        sheet = pillow.fromarray(self._image)
        pen = ImageDraw.Draw(sheet)
        pen.text((left, 14), _fitting(view.title, 30), INK, _font(30))
        for k, line in enumerate(_two_lines(view.facts)):
            pen.text((left, 54 + 30 * k), _fitting(line, TEXT), SOFT, _font(TEXT))
        self._label_ticks(pen)
        pen.text((0.5 * (left + right), bottom + 34), f"right ({view.units})", INK, _font(TEXT), anchor="ma")
        sideways = pillow.new("RGB", (400, 30), PAPER)
        ImageDraw.Draw(sideways).text((200, 2), f"ahead ({view.units})", INK, _font(TEXT), anchor="ma")
        sheet.paste(sideways.rotate(90, expand=True), (8, int(0.5 * (top + bottom)) - 200))
        for (_, _, text), (u, v) in zip(entries, places, strict=True):
            pen.text((u + 34, v), text, INK, _font(TEXT), anchor="lm")
        return np.asarray(sheet, dtype=np.uint8)

    def _label_ticks(self, pen: ImageDraw.ImageDraw) -> None:
        left, _, _, bottom = FRAME
        decimals = max(0, int(-np.floor(np.log10(self._step) + 1e-9)))
        for axis in (0, 1):
            for tick in ticks(self._low[axis], self._high[axis], self._step):
                point = self._low.copy()
                point[axis] = tick
                u, v = self._pixels(point[None])[0]
                text = f"{tick + 0.0:.{decimals}f}" if abs(tick) > 0.5 * self._step else "0"
                spot, anchor = ((u, bottom + 8), "ma") if axis == 0 else ((left - 10, v), "rm")
                pen.text(spot, text, SOFT, _font(TEXT - 2), anchor=anchor)

    def _sample(self, shape: str, color: Color, place: FloatArray) -> None:
        """The sample of a legend entry, 24 pixels wide, to the right of `place`."""
        strokes = {"line": ((0.0, 24.0),), "dashes": ((0.0, 9.0), (15.0, 24.0))}.get(shape, ())
        for ends in strokes:
            self._polyline(np.array([(place[0] + u, place[1]) for u in ends]), color, 3)
        if not strokes:
            self._disk(place + np.array([12.0, 0.0]), color, 3.5 if shape == "dot" else 8)


def legend_of(view: TopView) -> list[tuple[str, Color, str]]:
    """(shape, color, text) of each entry; what a run does not have is not in its legend, but that it has no loop is."""
    entries: list[tuple[str, Color, str]] = [
        ("line", PATH, "path"),
        ("disk", START, "start"),
        ("disk", END, "end"),
    ]
    if len(view.keyframes):
        entries.append(("dot", KEYFRAME, "keyframes"))
    if len(view.landmarks):
        entries.append(("dot", LANDMARK, "landmarks"))
    if len(view.loops):
        entries.append(("line", LOOP, f"loop closures ({len(view.loops)})"))
    if view.lost:
        times = f"{len(view.lost)} times, " if len(view.lost) > 1 else ""
        entries.append(("dashes", LOST, f"no pose ({times}{sum(view.lost)} frames)"))
    return entries


def _places(texts: Sequence[str]) -> list[tuple[float, float]]:
    """Where the samples of the legend are, in lines below the axes."""
    left, _, right, bottom = FRAME
    u, v, places = float(left), bottom + 90.0, []
    for text in texts:
        width = 34 + _font(TEXT).getlength(text) + 36
        if u > left and u + width > right + 36:
            u, v = float(left), v + 34
        places.append((u, v))
        u += width
    return places


def _two_lines(facts: str) -> list[str]:
    """The facts in two lines, divided at a comma, if they are wider than the axes."""
    parts = facts.split(", ")
    if len(parts) < 2 or _font(TEXT).getlength(facts) <= FRAME[2] - FRAME[0]:
        return [facts]
    half = (len(parts) + 1) // 2
    return [", ".join(parts[:half]) + ",", ", ".join(parts[half:])]


def _fitting(text: str, size: int) -> str:
    """The text, its middle left out if it is wider than the axes."""
    width = FRAME[2] - FRAME[0]
    while _font(size).getlength(text) > width:
        half = len(text) // 2 - 2
        text = f"{text[:half]}...{text[-half:]}"
    return text


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)

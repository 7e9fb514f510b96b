"""Procedural materials: functions from a size in meters to an image of that size, different at every call.

All return (H, W, 3) float32 sRGB in 0..1; colors in the arguments are RGB in 0..1. Randomness comes from the
generator passed in and nothing repeats, so that no two places of the room look alike to a feature matcher.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Singles = NDArray[np.float32]
Color = tuple[float, float, float]
Material = Callable[[float, float], Singles]
Rng = np.random.Generator

TEXEL_M = 0.0016
SHIFT = 4  # cv2 draws with this many fractional bits of a pixel


def pixels(width_m: float, height_m: float, texel_m: float = TEXEL_M) -> tuple[int, int]:
    """Rows and columns of a texture."""
    return max(4, round(height_m / texel_m)), max(4, round(width_m / texel_m))


def noise(shape: tuple[int, int], cell: tuple[float, float], rng: Rng, octaves: int = 4, gain: float = 0.5) -> Singles:
    """Fractal noise of standard deviation about 1; `cell` is the coarsest wavelength (rows, columns) in pixels."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        rows, cols = (max(1.0, c / 2**octave) for c in cell)
        grid = rng.standard_normal((int(shape[0] / rows) + 4, int(shape[1] / cols) + 4)).astype(np.float32)
        scale = np.array([[1 / cols, 0, 1 + rng.random()], [0, 1 / rows, 1 + rng.random()]])
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        total += np.float32(gain**octave) * cv2.warpAffine(grid, scale, shape[::-1], flags=flags)
    return total / np.float32(total.std() + 1e-6)


def array(color: Color) -> Singles:
    return np.array(color, np.float32)


def flat(shape: tuple[int, int], color: Color) -> Singles:
    return np.broadcast_to(array(color), (*shape, 3)).copy()


def jitter(color: Color, amount: float, rng: Rng, hue: float = 0.35) -> Color:
    """A color near this one: brightness varies by `amount` (one sigma), the channels apart by `hue` of that."""
    c = np.array(color) * (1 + amount * rng.standard_normal()) + hue * amount * rng.standard_normal(3)
    red, green, blue = np.clip(c, 0.02, 0.98).tolist()
    return red, green, blue


def shaded(image: Singles, amount: Singles) -> Singles:
    """Brightness times 1 + amount."""
    return np.asarray(np.clip(image * (1 + amount)[..., None], 0, 1), np.float32)


def polygon(image: Singles, points: NDArray[np.float64], color: Color) -> None:
    """Fills a polygon, points (N, 2) as x, y in pixels, antialiased."""
    cv2.fillPoly(image, [np.round(points * 2**SHIFT).astype(np.int32)], color, cv2.LINE_AA, SHIFT)


def stroke(image: Singles, points: NDArray[np.float64], color: Color, width: float) -> None:
    """Draws an open line of some width through (N, 2) points."""
    line = [np.round(points * 2**SHIFT).astype(np.int32)]
    cv2.polylines(image, line, False, color, max(1, round(width)), cv2.LINE_AA, SHIFT)


def ellipse(center: NDArray[np.float64], a: float, b: float, angle: float, n: int = 24) -> NDArray[np.float64]:
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    x, y = a * np.cos(t), b * np.sin(t)
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([center[0] + c * x - s * y, center[1] + s * x + c * y], axis=1)


def leaf(base: NDArray[np.float64], length: float, width: float, angle: float) -> NDArray[np.float64]:
    """Outline of a pointed leaf that grows from `base` in direction `angle`."""
    t = np.linspace(0, 1, 10)
    half = width / 2 * np.sin(np.pi * t**0.8)
    xs, ys = np.concatenate([t, t[::-1]]) * length, np.concatenate([half, -half[::-1]])
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([base[0] + c * xs - s * ys, base[1] + s * xs + c * ys], axis=1)


def scribble(image: Singles, box: tuple[float, float, float, float], size: float, color: Color, rng: Rng) -> None:
    """Lines of marks that look like print from afar, in the box (x0, y0, x1, y1); `size` is the height of a letter."""
    x0, y0, x1, y1 = box
    y = y0 + size
    while y < y1:
        x, end = x0, x0 + (x1 - x0) * rng.uniform(0.55, 1.0)
        while x < end:
            for _ in range(int(rng.integers(2, 8))):
                if x > end:
                    break
                glyph = rng.random((4, 2)) * (0.55 * size, size) + (x, y - size)
                stroke(image, glyph, color, max(1.0, size * 0.16))
                x += 0.75 * size
            x += 0.6 * size
        y += 1.7 * size


# ---- building materials ------------------------------------------------------------------------------------------


def planks(width: float, height: float, rng: Rng) -> Singles:
    """A floor of boards along the columns, each with its own tone, grain and knots."""
    rows, cols = pixels(width, height)
    image = flat((rows, cols), (0.3, 0.2, 0.13))
    board = round(0.125 / TEXEL_M)
    for y in range(0, rows, board):
        x = -int(rng.integers(0, 600))
        while x < cols:
            length = int(rng.integers(450, 1000))
            x0, x1, y1 = max(0, x), min(cols, x + length), min(rows, y + board)
            if x1 - x0 > 3 and y1 - y > 3:
                piece = wood_piece((y1 - y - 2, x1 - x0 - 2), jitter((0.6, 0.42, 0.27), 0.15, rng, 0.08), rng)
                image[y + 1 : y1 - 1, x0 + 1 : x1 - 1] = piece
            x += length
    return shaded(image, 0.05 * noise((rows, cols), (900, 900), rng, 5))


def wood_piece(shape: tuple[int, int], color: Color, rng: Rng) -> Singles:
    """Wood with the grain along the columns: warped rings, pores and a few knots."""
    rows, cols = shape
    y, x = np.mgrid[0:rows, 0:cols].astype(np.float32)
    bend = 9 * noise(shape, (90, 700), rng, 3)
    dark = np.zeros(shape, np.float32)
    for _ in range(int(rng.poisson(rows * cols / 90000 + 0.15))):
        cx, cy, r = rng.uniform(0, cols), rng.uniform(0, rows), rng.uniform(5, 13)
        d2 = ((x - cx) / 2.2) ** 2 + (y - cy) ** 2
        bend += 14 * np.exp(-d2 / (2.5 * r) ** 2)
        dark += np.exp(-d2 / r**2)
    rings = np.sin((y + bend) * np.float32(2 * np.pi / rng.uniform(14, 30)) + rng.uniform(0, 6))
    pores = noise(shape, (3, 60), rng, 2)
    tone = 0.09 * rings + 0.075 * pores + 0.07 * noise(shape, (60, 400), rng, 4) - 0.5 * np.clip(dark, 0, 1)
    return shaded(flat(shape, color), tone)


def wood(color: Color, rng: Rng) -> Material:
    """Furniture wood; the grain runs along the longer side."""

    def make(width: float, height: float) -> Singles:
        rows, cols = pixels(width, height)
        if rows > cols:
            return np.ascontiguousarray(wood_piece((cols, rows), jitter(color, 0.05, rng), rng).transpose(1, 0, 2))
        return wood_piece((rows, cols), jitter(color, 0.05, rng), rng)

    return make


def bricks(width: float, height: float, rng: Rng) -> Singles:
    """A brick wall: each brick with its own color, corners, chips and pores."""
    rows, cols = pixels(width, height)
    mortar = shaded(flat((rows, cols), (0.66, 0.62, 0.56)), 0.12 * noise((rows, cols), (8, 8), rng, 3))
    image, h, w, gap = mortar, 0.078 / TEXEL_M, 0.235 / TEXEL_M, 0.011 / TEXEL_M
    tones: list[Color] = [
        (0.58, 0.29, 0.21),
        (0.66, 0.36, 0.26),
        (0.49, 0.24, 0.19),
        (0.72, 0.47, 0.35),
        (0.42, 0.27, 0.25),
    ]
    mask = np.zeros((rows, cols), np.float32)
    for j in range(int(rows / h) + 1):
        x = -w * (0.5 * (j % 2) + rng.uniform(0, 0.08))
        while x < cols:
            length = w * rng.choice([1.0, 1.0, 1.0, 0.5, 0.92])
            box = np.array([[0, 0], [length - gap, 0], [length - gap, h - gap], [0, h - gap]]) + np.array([x, j * h])
            box += rng.normal(0, 1.3, (4, 2))
            polygon(image, box, jitter(tones[int(rng.integers(len(tones)))], 0.13, rng, 0.1))
            cv2.fillPoly(mask, [np.round(box).astype(np.int32)], 1.0)
            x += length
    texture = 0.09 * noise((rows, cols), (40, 40), rng, 5) + 0.07 * noise((rows, cols), (4, 4), rng, 2)
    chips = np.clip(noise((rows, cols), (26, 30), rng, 4) - 1.9, 0, 1) * mask
    stains = 0.07 * noise((rows, cols), (500, 700), rng, 4)
    relief = cv2.GaussianBlur(mask, (0, 0), 2.0)
    edge = np.roll(relief, 3, 0) - np.roll(relief, -3, 0)
    return shaded(image, texture + stains - 0.45 * chips + 0.28 * edge * (1 - 0.5 * mask))


def plaster(color: Color, rng: Rng, strength: float = 1.0) -> Material:
    """Trowelled plaster: broad strokes, dents, hairline cracks and stains."""

    def make(width: float, height: float) -> Singles:
        rows, cols = pixels(width, height)
        image = flat((rows, cols), color)
        tone = 0.045 * noise((rows, cols), (300, 300), rng, 6, 0.62) + 0.02 * noise((rows, cols), (5, 5), rng, 2)
        layer = np.zeros((rows, cols), np.float32)
        for _ in range(int(width * height * 55)):
            start, angle, n = rng.uniform(0, 1, 2) * (cols, rows), rng.uniform(0, 6.28), int(rng.integers(5, 14))
            steps = angle + np.cumsum(rng.normal(0, 0.35, n))
            path = start + np.cumsum(np.stack([np.cos(steps), np.sin(steps)], 1) * rng.uniform(6, 26), axis=0)
            cv2.polylines(
                layer, [np.round(path).astype(np.int32)], False, float(rng.normal(0, 1)), int(rng.integers(1, 9))
            )
        tone += 0.05 * strength * cv2.GaussianBlur(layer, (0, 0), 0.8)
        image = shaded(image, tone)
        for _ in range(int(width * height * 1.2 * strength)):
            n = int(rng.integers(10, 30))
            heading = rng.uniform(0, 6.28) + np.cumsum(rng.normal(0, 0.5, n))
            path = rng.uniform(0, 1, 2) * (cols, rows) + np.cumsum(
                np.stack([np.cos(heading), np.sin(heading)], 1) * 9, 0
            )
            stroke(image, path, tuple(0.62 * c for c in color), 1)  # type: ignore[arg-type]
        return image

    return make


def botanical(paper: Color, inks: list[Color], rng: Rng, density: float = 34.0) -> Material:
    """Wallpaper of stems with leaves, blossoms and berries, drawn one by one so that none repeats."""

    def make(width: float, height: float) -> Singles:
        rows, cols = pixels(width, height)
        image = shaded(flat((rows, cols), paper), 0.02 * noise((rows, cols), (60, 60), rng, 4))
        for _ in range(int(width * height * density)):
            _sprig(image, rng.uniform(0, 1, 2) * (cols, rows), inks, rng)
        return shaded(
            image, 0.025 * noise((rows, cols), (3, 3), rng, 1) + 0.03 * noise((rows, cols), (700, 700), rng, 3)
        )

    return make


def _sprig(image: Singles, start: NDArray[np.float64], inks: list[Color], rng: Rng) -> None:
    size = rng.uniform(0.07, 0.2) / TEXEL_M
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.16, 14))
    path = start + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1) * size / 14, axis=0)
    green = jitter(inks[int(rng.integers(len(inks)))], 0.12, rng)
    stroke(image, path, green, max(1, size / 50))
    for k in range(2, 14, int(rng.integers(1, 3))):
        for side in (-1, 1):
            if rng.random() < 0.75:
                angle = heading[k] + side * rng.uniform(0.5, 1.1)
                length = size * rng.uniform(0.16, 0.34)
                polygon(image, leaf(path[k], length, length * rng.uniform(0.3, 0.5), angle), jitter(green, 0.1, rng))
    if rng.random() < 0.7:
        petals, r = int(rng.integers(4, 9)), size * rng.uniform(0.09, 0.17)
        tint = jitter(inks[int(rng.integers(len(inks)))], 0.25, rng)
        for q in range(petals):
            polygon(image, leaf(path[-1], r * 1.6, r, heading[-1] + q * 2 * np.pi / petals), tint)
        polygon(image, ellipse(path[-1], r * 0.4, r * 0.4, 0), jitter((0.85, 0.7, 0.3), 0.1, rng))
    for _ in range(int(rng.integers(0, 4))):
        spot = path[int(rng.integers(14))] + rng.normal(0, size * 0.13, 2)
        polygon(image, ellipse(spot, size / 30, size / 30, 0), jitter(inks[-1], 0.15, rng))


def brushed(paper: Color, inks: list[Color], rng: Rng) -> Material:
    """Wallpaper of loose brush marks: arcs, crosses, dabs and triangles in a few inks."""

    def make(width: float, height: float) -> Singles:
        rows, cols = pixels(width, height)
        image = shaded(flat((rows, cols), paper), 0.025 * noise((rows, cols), (80, 80), rng, 5))
        for _ in range(int(width * height * 105)):
            center, s = rng.uniform(0, 1, 2) * (cols, rows), rng.uniform(0.012, 0.045) / TEXEL_M
            ink, angle = jitter(inks[int(rng.integers(len(inks)))], 0.1, rng), rng.uniform(0, 6.28)
            kind = rng.integers(4)
            if kind == 0:
                arc = ellipse(center, s, s * rng.uniform(0.5, 1), angle)[: int(rng.integers(8, 20))]
                stroke(image, arc, ink, s / 6)
            elif kind == 1:
                for turn in (0.0, rng.uniform(1.2, 1.9)):
                    tip = s * np.array([np.cos(angle + turn), np.sin(angle + turn)])
                    stroke(image, np.stack([center - tip, center + tip]), ink, s / 5)
            elif kind == 2:
                polygon(image, ellipse(center, s * 0.7, s * rng.uniform(0.2, 0.6), angle), ink)
            else:
                polygon(image, center + rng.normal(0, 0.6 * s, (3, 2)), ink)
        return shaded(
            image, 0.03 * noise((rows, cols), (3, 30), rng, 2) + 0.03 * noise((rows, cols), (600, 600), rng, 3)
        )

    return make


def ceiling(width: float, height: float, rng: Rng) -> Singles:
    """Mineral-fibre panels 0.6 m wide in a metal grid, with the worm-like fissures these have."""
    rows, cols = pixels(width, height, 0.002)
    tone = 0.02 * noise((rows, cols), (4, 4), rng, 2)
    pits = np.zeros((rows, cols), np.float32)
    for _ in range(int(width * height * 260)):
        start, angle, n = rng.uniform(0, 1, 2) * (cols, rows), rng.uniform(0, 6.28), int(rng.integers(2, 7))
        steps = angle + np.cumsum(rng.normal(0, 0.6, n))
        path = start + np.cumsum(np.stack([np.cos(steps), np.sin(steps)], 1) * 6, axis=0)
        cv2.polylines(
            pits, [np.round(path).astype(np.int32)], False, float(rng.uniform(0.4, 1)), int(rng.integers(2, 6))
        )
    image = shaded(flat((rows, cols), (0.93, 0.85, 0.82)), tone - 0.36 * cv2.GaussianBlur(pits, (0, 0), 0.7))
    panel = 300
    for j in range(0, rows, panel):
        for i in range(0, cols, panel):
            image[j : j + panel, i : i + panel] *= np.float32(1 + rng.normal(0, 0.025))
    for offset, shade in ((0, 0.95), (-4, 0.55), (4, 0.7)):
        for k in range(panel, rows, panel):
            image[k + offset - 3 : k + offset + 3] = shade
        for k in range(panel, cols, panel):
            image[:, k + offset - 3 : k + offset + 3] = shade
    return np.clip(image, 0, 1)


# ---- things ------------------------------------------------------------------------------------------------------


def painted(color: Color, rng: Rng, wear: float = 1.0) -> Material:
    """Painted wood or metal with faint brush marks, scratches and worn edges."""

    def make(width: float, height: float) -> Singles:
        rows, cols = pixels(width, height)
        tone = 0.03 * noise((rows, cols), (60, 60), rng, 5) + 0.02 * noise((rows, cols), (4, 60), rng, 2)
        image = shaded(flat((rows, cols), jitter(color, 0.03, rng)), tone)
        for _ in range(int(rng.poisson(wear * (2 + 60 * width * height)))):
            start, angle, length = rng.uniform(0, 1, 2) * (cols, rows), rng.uniform(0, 6.28), rng.uniform(3, 30)
            end = start + length * np.array([np.cos(angle), np.sin(angle)])
            stroke(image, np.stack([start, end]), jitter(color, 0.35, rng), 1)
        return image

    return make


def fabric(color: Color, rng: Rng, accent: Color | None = None) -> Material:
    """Upholstery: irregular weave, slubs, and a sprinkled motif when an accent color is given."""

    def make(width: float, height: float) -> Singles:
        rows, cols = pixels(width, height)
        weave = 0.1 * noise((rows, cols), (2, 14), rng, 1) + 0.1 * noise((rows, cols), (14, 2), rng, 1)
        image = flat((rows, cols), jitter(color, 0.04, rng))
        for _ in range(int(width * height * 240) if accent else 0):
            center, s, tint = (
                rng.uniform(0, 1, 2) * (cols, rows),
                rng.uniform(5, 17),
                jitter(accent or color, 0.12, rng),
            )
            shape = rng.integers(3)
            if shape == 0:
                polygon(image, ellipse(center, s, s * rng.uniform(0.3, 1), rng.uniform(0, 3)), tint)
            elif shape == 1:
                polygon(image, leaf(center, 2 * s, s, rng.uniform(0, 6.28)), tint)
            else:
                stroke(image, center + np.cumsum(rng.normal(0, 0.6 * s, (4, 2)), 0), tint, 2)
        return shaded(image, weave + 0.06 * noise((rows, cols), (120, 120), rng, 4))

    return make


def plaid(color: Color, inks: list[Color], rng: Rng) -> Material:
    """A blanket of uneven crossing stripes."""

    def make(width: float, height: float) -> Singles:
        rows, cols = pixels(width, height)
        image = flat((rows, cols), color)
        for axis, length in ((0, rows), (1, cols)):
            at = 0
            while at < length:
                size, ink = int(rng.integers(3, 30)), array(jitter(inks[int(rng.integers(len(inks)))], 0.1, rng))
                band = image[at : at + size] if axis == 0 else image[:, at : at + size]
                band[:] = 0.45 * band + 0.55 * ink
                at += size + int(rng.integers(4, 50))
        return shaded(image, 0.11 * noise((rows, cols), (2, 10), rng, 1) + 0.06 * noise((rows, cols), (90, 90), rng, 4))

    return make


def cardboard(rng: Rng) -> Material:
    """A parcel's side: corrugation, tape, a label with print and some marks."""

    def make(width: float, height: float) -> Singles:
        rows, cols = pixels(width, height)
        base = jitter((0.66, 0.5, 0.33), 0.06, rng)
        tone = 0.035 * noise((rows, cols), (200, 4), rng, 2) + 0.04 * noise((rows, cols), (80, 80), rng, 4)
        image = shaded(flat((rows, cols), base), tone)
        if rng.random() < 0.8:
            x, w = cols * rng.uniform(0.35, 0.6), 0.05 / TEXEL_M
            image[:, int(x) : int(x + w)] = 0.6 * image[:, int(x) : int(x + w)] + 0.4 * array((0.8, 0.7, 0.5))
        w, h = cols * rng.uniform(0.25, 0.45), rows * rng.uniform(0.25, 0.5)
        x0, y0 = rng.uniform(0.05, 0.5) * cols, rng.uniform(0.05, 0.45) * rows
        corner = np.array([[x0, y0], [x0 + w, y0 + rng.normal(0, 3)], [x0 + w, y0 + h], [x0, y0 + h]])
        polygon(image, corner, (0.9, 0.89, 0.85))
        scribble(image, (x0 + 6, y0 + 6, x0 + w - 6, y0 + h - 8), max(5.0, h / 9), (0.15, 0.14, 0.16), rng)
        spot = np.array([rng.uniform(0.7, 0.9) * cols, rng.uniform(0.6, 0.85) * rows])
        for q in range(3):
            polygon(image, leaf(spot + np.array([q * 18 - 18, 0]), 22, 9, -1.57), (0.5, 0.2, 0.15))
        return image

    return make


def book_spine(width: float, height: float, rng: Rng) -> Singles:
    """The back of a book: cloth or paper, bands, a title and a mark."""
    rows, cols = pixels(width, height, 0.0012)
    palette: list[Color] = [
        (0.55, 0.16, 0.14), (0.14, 0.25, 0.42), (0.16, 0.36, 0.25), (0.78, 0.68, 0.45), (0.85, 0.82, 0.75),
        (0.2, 0.2, 0.22), (0.75, 0.42, 0.16), (0.4, 0.22, 0.4), (0.3, 0.5, 0.55), (0.6, 0.55, 0.2),
    ]  # fmt: skip
    color = jitter(palette[int(rng.integers(len(palette)))], 0.12, rng)
    ink: Color = (0.92, 0.85, 0.65) if sum(color) < 1.5 else (0.16, 0.13, 0.12)
    image = shaded(flat((rows, cols), color), 0.05 * noise((rows, cols), (4, 4), rng, 2))
    for y in rng.uniform(0.03, 0.97, int(rng.integers(2, 6))):
        thick = int(rng.integers(1, 7))
        image[int(y * rows) : int(y * rows) + thick] = array(jitter(ink, 0.15, rng))
    title = np.zeros((cols, rows, 3), np.float32) + image.transpose(1, 0, 2)
    title = np.ascontiguousarray(title)
    size = max(4.0, cols * rng.uniform(0.3, 0.5))
    x0 = rows * rng.uniform(0.08, 0.25)
    scribble(
        title, (x0, (cols - size) / 2 - 1, x0 + rows * rng.uniform(0.4, 0.6), (cols + size) / 2 + 1), size, ink, rng
    )
    image = np.ascontiguousarray(title.transpose(1, 0, 2))
    polygon(image, ellipse(np.array([cols / 2, rows * 0.9]), cols * 0.25, cols * 0.2, rng.uniform(0, 3), 6), ink)
    edge = np.abs(np.linspace(-1, 1, cols, dtype=np.float32)) ** 4
    return shaded(image, np.broadcast_to(-0.3 * edge, (rows, cols)))


def page_block(width: float, height: float, rng: Rng) -> Singles:
    """The cut edge of a book's pages."""
    rows, cols = pixels(width, height, 0.0012)
    lines = noise((rows, cols), (2, 200) if rows < cols else (200, 2), rng, 1)
    return shaded(flat((rows, cols), (0.85, 0.81, 0.7)), 0.12 * lines)


def rug(width: float, height: float, rng: Rng) -> Singles:
    """A hand-knotted rug: border bands with motifs, a field of kilim shapes and a medallion; no two alike."""
    rows, cols = pixels(width, height)
    inks: list[Color] = [
        (0.58, 0.13, 0.13),
        (0.13, 0.18, 0.33),
        (0.84, 0.74, 0.55),
        (0.25, 0.37, 0.3),
        (0.76, 0.45, 0.2),
    ]
    image = flat((rows, cols), inks[1])
    for k, inset in enumerate((14, 34, 130, 150)):
        image[inset:-inset, inset:-inset] = array(inks[(2, 0, 2, 1)[k]])
    inner = 156
    image[inner:-inner, inner:-inner] = array((0.5, 0.14, 0.14))
    for _ in range(int(width * height * 75)):
        center = rng.uniform(inner + 30, [cols - inner - 30, rows - inner - 30])
        _kilim(image, center, rng.uniform(10, 34), inks, rng)
    middle = np.array([cols / 2, rows / 2])
    for r in np.linspace(1, 0.2, 6):
        polygon(
            image,
            ellipse(middle, 0.26 * cols * r, 0.33 * rows * r, 0.0, 8),
            jitter(inks[int(rng.integers(5))], 0.1, rng),
        )
        for a in rng.uniform(0, 6.28, int(26 * r)):
            spot = middle + 0.9 * r * np.array([0.26 * cols * np.cos(a), 0.33 * rows * np.sin(a)])
            _kilim(image, spot, rng.uniform(7, 17), inks, rng)
    ring = 2 * (cols + rows) - 8 * 82
    for s in np.arange(0, ring, 58):
        _kilim(image, _along_border(float(s), cols, rows, 82), rng.uniform(18, 28), inks, rng)
    pile = 0.1 * noise((rows, cols), (3, 3), rng, 2) + 0.05 * noise((rows, cols), (2, 160), rng, 2)
    return shaded(image, pile + 0.05 * noise((rows, cols), (300, 300), rng, 4))


def _along_border(s: float, cols: int, rows: int, inset: int) -> NDArray[np.float64]:
    w, h = cols - 2 * inset, rows - 2 * inset
    for length, start, step in (
        (w, (0, 0), (1, 0)), (h, (w, 0), (0, 1)), (w, (w, h), (-1, 0)), (h, (0, h), (0, -1)),
    ):  # fmt: skip
        if s < length:
            return np.array(start, float) + s * np.array(step, float) + inset
        s -= length
    return np.array([inset, inset], float)


def _kilim(image: Singles, center: NDArray[np.float64], size: float, inks: list[Color], rng: Rng) -> None:
    """One woven figure: nested polygons with steps, in random inks and orientation."""
    n, turn = int(rng.choice([3, 4, 4, 6, 8])), rng.choice([0.0, np.pi / 4, rng.uniform(0, 3)])
    for scale in np.linspace(1, 0.3, int(rng.integers(2, 4))):
        outline = ellipse(center, size * scale, size * scale * rng.uniform(0.6, 1), turn, n)
        polygon(image, outline, jitter(inks[int(rng.integers(len(inks)))], 0.1, rng))
    for _ in range(int(rng.integers(0, 3))):
        tip = size * 1.2 * np.array([np.cos(turn), np.sin(turn)])
        stroke(image, np.stack([center - tip, center + tip]), inks[2], 3)
        turn += rng.uniform(0.8, 1.6)


def view_outside(width: float, height: float, rng: Rng) -> Singles:
    """What the window shows: sky with clouds, far hills, houses and trees."""
    rows, cols = pixels(width, height, 0.0035)
    t = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    image = (array((0.62, 0.78, 0.95)) * (1 - t) + array((0.93, 0.95, 0.97)) * t) * np.ones((1, cols, 1), np.float32)
    cloud = np.clip(noise((rows, cols), (220, 420), rng, 6) - 0.2, 0, 1.4)[..., None] / 1.4
    image = image * (1 - 0.8 * cloud) + 0.97 * 0.8 * cloud
    image = np.ascontiguousarray(image, np.float32)
    for k, tint in enumerate([(0.55, 0.65, 0.72), (0.42, 0.55, 0.5), (0.33, 0.47, 0.33)]):
        ridge = rows * (0.42 + 0.05 * k) + rows * 0.05 * noise((1, cols), (1, cols / 5), rng, 6)[0]
        outline = np.concatenate([np.stack([np.arange(cols), ridge], 1), [[cols, rows], [0, rows]]])
        polygon(image, outline, tint)
    land = noise((rows, cols), (40, 60), rng, 5, 0.6) * (np.arange(rows, dtype=np.float32) / rows > 0.45)[:, None]
    image = shaded(image, 0.1 * land)
    for _ in range(34):
        _house(image, rng.uniform(0, cols), rows * rng.uniform(0.53, 0.72), rng)
    for _ in range(900):
        spot = np.array([rng.uniform(0, cols), rows * rng.uniform(0.54, 1.0)])
        green = jitter((0.27, 0.4, 0.2), 0.25, rng, 0.1)
        for _ in range(5):
            polygon(
                image,
                ellipse(spot + rng.normal(0, 9, 2), rng.uniform(3, 12), rng.uniform(3, 10), 0),
                jitter(green, 0.2, rng, 0.1),
            )
    return np.clip(image, 0, 1)


def _house(image: Singles, x: float, y: float, rng: Rng) -> None:
    w, h = rng.uniform(50, 110), rng.uniform(40, 80)
    wall = jitter((0.85, 0.78, 0.66), 0.12, rng)
    polygon(image, np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]]), wall)
    roof = jitter((0.6, 0.28, 0.2), 0.15, rng)
    polygon(image, np.array([[x - 6, y], [x + w * 0.5, y - h * 0.5], [x + w + 6, y]]), roof)
    for i in range(3):
        for j in range(2):
            a, b = x + w * (0.12 + 0.3 * i), y + h * (0.15 + 0.42 * j)
            polygon(
                image,
                np.array([[a, b], [a + w * 0.14, b], [a + w * 0.14, b + h * 0.25], [a, b + h * 0.25]]),
                (0.25, 0.3, 0.38),
            )


def leaf_cutout(rng: Rng, color: Color = (0.2, 0.42, 0.18)) -> tuple[Singles, NDArray[np.uint8]]:
    """One leaf pointing right, and its mask."""
    rows, cols = 60, 150
    tint = jitter(color, 0.18, rng)
    image = shaded(flat((rows, cols), tint), 0.1 * noise((rows, cols), (12, 24), rng, 3))
    middle = rows / 2
    stroke(image, np.array([[0, middle], [cols, middle]]), jitter((0.55, 0.65, 0.35), 0.1, rng), 3)
    for x in np.arange(8, cols - 20, rng.uniform(10, 18)):
        for side in (-1, 1):
            stroke(
                image, np.array([[x, middle], [x + 22, middle + side * 24]]), jitter((0.42, 0.55, 0.28), 0.1, rng), 1
            )
    mask = np.zeros((rows, cols), np.uint8)
    outline = leaf(np.array([2.0, middle]), cols - 6, rows * rng.uniform(0.7, 0.95), 0)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 255)
    mask[int(middle) - 2 : int(middle) + 2, :8] = 255
    return image, mask

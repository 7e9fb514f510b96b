"""Images for the walls: each function paints one work, and no work hangs twice."""

from __future__ import annotations

import cv2
import numpy as np

from .textures import (
    Color,
    Rng,
    Singles,
    array,
    ellipse,
    flat,
    jitter,
    leaf,
    noise,
    pixels,
    polygon,
    scribble,
    shaded,
    stroke,
)

ART_TEXEL_M = 0.0014


def _canvas(width: float, height: float, color: Color, rng: Rng) -> Singles:
    shape = pixels(width, height, ART_TEXEL_M)
    return shaded(flat(shape, color), 0.03 * noise(shape, (30, 30), rng, 4))


def mountains(width: float, height: float, rng: Rng) -> Singles:
    """Layered ridges in front of a low sun, with birds and firs."""
    image = _canvas(width, height, (0.93, 0.74, 0.55), rng)
    rows, cols = image.shape[:2]
    polygon(image, ellipse(np.array([cols * 0.63, rows * 0.33]), rows * 0.13, rows * 0.13, 0, 40), (0.92, 0.4, 0.24))
    for k in range(6):
        ridge = rows * (0.36 + 0.11 * k) + rows * 0.06 * noise((1, cols), (1, cols / 3), rng, 6, 0.55)[0]
        mix = k / 5
        tint = (0.75 - 0.65 * mix, 0.5 - 0.36 * mix, 0.5 - 0.26 * mix)
        polygon(image, np.concatenate([np.stack([np.arange(cols), ridge], 1), [[cols, rows], [0, rows]]]), tint)
        for x in rng.uniform(0, cols, 7 * k):
            top = np.array([x, ridge[int(x)] - rng.uniform(8, 26)])
            polygon(image, top + np.array([[0, 0], [7, 30], [-7, 30]]), jitter((0.1, 0.2, 0.18), 0.2, rng))
    for _ in range(9):
        spot = np.array([rng.uniform(0.1, 0.55) * cols, rng.uniform(0.08, 0.3) * rows])
        stroke(image, spot + np.array([[-9, -5], [0, 0], [9, -6]]) * rng.uniform(0.5, 1.2), (0.15, 0.12, 0.15), 2)
    return image


def circles(width: float, height: float, rng: Rng) -> Singles:
    """Overlapping rings, discs and rulers' lines on cream."""
    image = _canvas(width, height, (0.92, 0.88, 0.78), rng)
    rows, cols = image.shape[:2]
    inks: list[Color] = [(0.78, 0.2, 0.16), (0.12, 0.27, 0.5), (0.93, 0.7, 0.2), (0.12, 0.12, 0.13), (0.3, 0.55, 0.5)]
    for _ in range(34):
        center, r = rng.uniform(0, 1, 2) * (cols, rows), rng.uniform(0.02, 0.2) * cols
        ring = ellipse(center, r, r, 0, 48)
        ink = jitter(inks[int(rng.integers(5))], 0.1, rng)
        if rng.random() < 0.45:
            polygon(image, ring, ink)
        else:
            stroke(image, np.concatenate([ring, ring[:1]]), ink, rng.uniform(2, 9))
    for _ in range(22):
        stroke(image, rng.uniform(0, 1, (2, 2)) * (cols, rows), inks[3], rng.uniform(1, 5))
    return image


def glass(width: float, height: float, rng: Rng) -> Singles:
    """Cells of stained glass with lead between them."""
    rows, cols = pixels(width, height, ART_TEXEL_M)
    seeds = (rng.uniform(0, 1, (150, 2)) * (cols, rows)).astype(np.float32)
    tints = np.array([jitter(c, 0.2, rng) for c in rng.uniform(0.1, 0.95, (150, 3)).tolist()], np.float32)
    y, x = np.mgrid[0:rows, 0:cols].astype(np.float32)
    best, second = np.full((2, rows, cols), np.inf, np.float32)
    owner = np.zeros((rows, cols), np.int64)
    for k, (sx, sy) in enumerate(seeds):
        d = np.hypot(x - sx, y - sy)
        nearer = d < best
        second = np.where(nearer, best, np.minimum(second, d))
        owner[nearer] = k
        best = np.minimum(best, d)
    lead = np.clip((second - best) / 4, 0, 1)[..., None]
    image = tints[owner] * lead + 0.08 * (1 - lead)
    return shaded(image.astype(np.float32), 0.09 * noise((rows, cols), (30, 30), rng, 4))


def blocks(width: float, height: float, rng: Rng) -> Singles:
    """Rectangles split again and again, in primaries and grays."""
    image = _canvas(width, height, (0.94, 0.93, 0.9), rng)
    rows, cols = image.shape[:2]
    inks: list[Color] = [
        (0.8, 0.15, 0.12),
        (0.1, 0.22, 0.55),
        (0.95, 0.8, 0.2),
        (0.9, 0.9, 0.87),
        (0.6, 0.62, 0.62),
        (0.92, 0.9, 0.86),
    ]

    def split(x0: float, y0: float, x1: float, y1: float, depth: int) -> None:
        if depth == 0 or min(x1 - x0, y1 - y0) < 22:
            box = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
            polygon(image, box, jitter(inks[int(rng.integers(6))], 0.06, rng))
            stroke(image, np.concatenate([box, box[:1]]), (0.08, 0.08, 0.09), 5)
        elif (x1 - x0) * rng.uniform(0.6, 1.4) > y1 - y0:
            cut = x0 + (x1 - x0) * rng.uniform(0.25, 0.75)
            split(x0, y0, cut, y1, depth - 1)
            split(cut, y0, x1, y1, depth - 1)
        else:
            cut = y0 + (y1 - y0) * rng.uniform(0.25, 0.75)
            split(x0, y0, x1, cut, depth - 1)
            split(x0, cut, x1, y1, depth - 1)

    split(0, 0, cols, rows, 6)
    return image


def chart(width: float, height: float, rng: Rng) -> Singles:
    """A topographic map: height lines, a river, roads, places and a legend."""
    image = _canvas(width, height, (0.87, 0.88, 0.76), rng)
    rows, cols = image.shape[:2]
    field = noise((rows, cols), (rows * 0.7, cols * 0.7), rng, 4, 0.45)
    low = np.clip(-field - 0.6, 0, 1)[..., None] > 0
    image = np.where(low, array((0.62, 0.78, 0.85)), image).astype(np.float32)
    steps = np.abs(((field * 4) % 1) - 0.5)
    gy, gx = np.gradient(field * 4)
    line = np.clip(1.3 - (0.5 - steps) / (np.hypot(gx, gy) + 1e-4) / 1.4, 0, 1)[..., None]
    image = np.ascontiguousarray(image * (1 - 0.6 * line) + array((0.5, 0.33, 0.2)) * 0.6 * line)
    for _ in range(7):
        walk = rng.uniform(0, 1, 2) * (cols, rows) + np.cumsum(rng.normal(0, 22, (30, 2)) + rng.normal(0, 9, 2), axis=0)
        stroke(image, walk, (0.75, 0.2, 0.15), 3)
    for _ in range(24):
        spot = rng.uniform(0.04, 0.92, 2) * (cols, rows)
        polygon(image, ellipse(spot, 5, 5, 0, 12), (0.1, 0.1, 0.1))
        scribble(image, (spot[0] + 8, spot[1] - 8, spot[0] + 70, spot[1] + 3), 9, (0.1, 0.1, 0.12), rng)
    polygon(image, np.array([[0.7, 0.78], [0.97, 0.78], [0.97, 0.97], [0.7, 0.97]]) * (cols, rows), (0.95, 0.94, 0.9))
    scribble(image, (0.72 * cols, 0.8 * rows, 0.95 * cols, 0.95 * rows), 9, (0.1, 0.1, 0.12), rng)
    return image


def bouquet(width: float, height: float, rng: Rng) -> Singles:
    """Flowers in a jug on a dark ground."""
    image = _canvas(width, height, (0.2, 0.22, 0.23), rng)
    rows, cols = image.shape[:2]
    polygon(image, np.array([[0, 0.74], [1, 0.7], [1, 1], [0, 1]]) * (cols, rows), (0.45, 0.3, 0.2))
    polygon(image, ellipse(np.array([cols * 0.5, rows * 0.77]), cols * 0.16, rows * 0.15, 0), (0.75, 0.78, 0.82))
    for _ in range(12):
        polygon(
            image,
            ellipse(rng.normal((cols * 0.5, rows * 0.77), (cols * 0.06, rows * 0.05)), 9, 4, rng.uniform(0, 3)),
            (0.15, 0.25, 0.55),
        )
    for _ in range(60):
        base = rng.normal((cols * 0.5, rows * 0.42), (cols * 0.2, rows * 0.13))
        angle = np.arctan2(base[1] - rows * 0.65, base[0] - cols * 0.5) + rng.normal(0, 0.5)
        polygon(
            image, leaf(base, rng.uniform(30, 75), rng.uniform(10, 24), angle), jitter((0.28, 0.42, 0.22), 0.25, rng)
        )
    for _ in range(20):
        center, r = rng.normal((cols * 0.5, rows * 0.4), (cols * 0.18, rows * 0.13)), rng.uniform(14, 34)
        tint = jitter(
            [(0.85, 0.3, 0.35), (0.93, 0.8, 0.75), (0.93, 0.65, 0.2), (0.6, 0.4, 0.7)][int(rng.integers(4))], 0.1, rng
        )
        for ring in (1.0, 0.65):
            for a in rng.uniform(0, 0.5) + np.arange(8) * np.pi / 4:
                polygon(image, leaf(center, r * ring, r * 0.5 * ring, a), jitter(tint, 0.12, rng))
        polygon(image, ellipse(center, r * 0.2, r * 0.2, 0), (0.3, 0.2, 0.1))
    return image


def handbill(width: float, height: float, rng: Rng) -> Singles:
    """A concert bill: large marks, a figure of rays and small print."""
    image = _canvas(width, height, (0.9, 0.55, 0.2), rng)
    rows, cols = image.shape[:2]
    center = np.array([cols * 0.45, rows * 0.52])
    for a in np.cumsum(rng.uniform(0.1, 0.3, 30)):
        r = rng.uniform(0.25, 0.5) * cols
        tip = center + r * np.array([[np.cos(a), np.sin(a)], [np.cos(a + 0.07), np.sin(a + 0.07)]])
        polygon(image, np.concatenate([center[None], tip]), jitter((0.15, 0.2, 0.35), 0.2, rng))
    polygon(image, ellipse(center, cols * 0.17, cols * 0.17, 0, 40), (0.95, 0.9, 0.75))
    polygon(image, leaf(center + np.array([-20, 60]), cols * 0.3, cols * 0.12, -1.1), (0.75, 0.15, 0.15))
    scribble(image, (0.07 * cols, 0.03 * rows, 0.95 * cols, 0.2 * rows), rows * 0.065, (0.12, 0.1, 0.12), rng)
    scribble(image, (0.07 * cols, 0.85 * rows, 0.95 * cols, 0.97 * rows), rows * 0.018, (0.12, 0.1, 0.12), rng)
    return image


def calendar(width: float, height: float, rng: Rng) -> Singles:
    """A wall calendar: an image above, numbered days with notes below."""
    image = _canvas(width, height, (0.95, 0.94, 0.91), rng)
    rows, cols = image.shape[:2]
    top = mountains(width * 0.92, height * 0.42, rng)
    h, w = top.shape[:2]
    x0 = (cols - w) // 2
    image[12 : 12 + h, x0 : x0 + w] = top
    for j in range(5):
        for i in range(7):
            x, y = cols * (0.04 + 0.133 * i), rows * (0.5 + 0.095 * j)
            box = np.array([[x, y], [x + cols * 0.125, y], [x + cols * 0.125, y + rows * 0.085], [x, y + rows * 0.085]])
            if rng.random() < 0.2:
                polygon(image, box, jitter((0.85, 0.75, 0.4), 0.15, rng))
            stroke(image, np.concatenate([box, box[:1]]), (0.4, 0.4, 0.42), 1)
            scribble(image, (x + 3, y + 2, x + 22, y + 14), 9, (0.6, 0.1, 0.1) if i > 4 else (0.15, 0.15, 0.2), rng)
            if rng.random() < 0.45:
                scribble(image, (x + 4, y + 18, x + cols * 0.11, y + rows * 0.08), 5, (0.2, 0.25, 0.5), rng)
    return image


def harbour(width: float, height: float, rng: Rng) -> Singles:
    """Boats with sails on broken water."""
    image = _canvas(width, height, (0.7, 0.8, 0.86), rng)
    rows, cols = image.shape[:2]
    image[rows // 2 :] = array((0.2, 0.4, 0.5))
    for _ in range(420):
        y = rows * rng.uniform(0.5, 1) ** 0.9
        x, w = rng.uniform(0, cols), rng.uniform(5, 40) * (y / rows)
        stroke(
            image,
            np.array([[x, y], [x + w, y + rng.normal(0, 1)]]),
            jitter((0.45, 0.62, 0.68), 0.3, rng),
            rng.uniform(1, 5),
        )
    for _ in range(11):
        x, y, s = rng.uniform(0.05, 0.9) * cols, rows * rng.uniform(0.45, 0.85), rng.uniform(25, 75)
        hull = np.array([[-0.6, 0], [0.7, 0], [0.45, 0.25], [-0.45, 0.25]]) * s + (x, y)
        sail = np.array([[0, -0.1], [0.02, -1.5], [rng.uniform(0.4, 0.7), -0.15]]) * s + (x, y)
        polygon(image, sail, jitter((0.93, 0.88, 0.8), 0.12, rng))
        polygon(image, sail * (-1, 1) + (2 * x, 0), jitter((0.8, 0.4, 0.25), 0.2, rng))
        polygon(image, hull, jitter((0.35, 0.18, 0.12), 0.3, rng))
    return image


def portrait(width: float, height: float, rng: Rng) -> Singles:
    """A face built of planes, after the fashion of a hundred years ago."""
    image = _canvas(width, height, (0.35, 0.42, 0.4), rng)
    rows, cols = image.shape[:2]
    for _ in range(70):
        center = rng.normal((cols * 0.5, rows * 0.5), (cols * 0.3, rows * 0.3))
        polygon(image, center + rng.normal(0, 40, (int(rng.integers(3, 5)), 2)), jitter((0.5, 0.48, 0.4), 0.3, rng))
    face = ellipse(np.array([cols * 0.5, rows * 0.42]), cols * 0.23, rows * 0.26, 0.1, 11)
    polygon(image, face, (0.83, 0.62, 0.48))
    for _ in range(26):
        spot = rng.normal((cols * 0.5, rows * 0.42), (cols * 0.1, rows * 0.12))
        polygon(image, spot + rng.normal(0, 22, (3, 2)), jitter((0.78, 0.52, 0.4), 0.22, rng))
    for side in (-1, 1):
        eye = np.array([cols * (0.5 + 0.09 * side), rows * 0.36])
        polygon(image, ellipse(eye, 21, 10, 0.2 * side), (0.95, 0.93, 0.88))
        polygon(image, ellipse(eye, 8, 8, 0), (0.1, 0.15, 0.2))
        stroke(image, eye + np.array([[-24, -16], [0, -24], [24, -17]]), (0.15, 0.1, 0.08), 5)
    stroke(image, np.array([[0.5, 0.36], [0.54, 0.48], [0.49, 0.49]]) * (cols, rows), (0.4, 0.2, 0.15), 5)
    polygon(image, ellipse(np.array([cols * 0.5, rows * 0.56]), 34, 11, 0), (0.7, 0.2, 0.2))
    return image


def alphabet(width: float, height: float, rng: Rng) -> Singles:
    """Rows of signs in shrinking size, like an optician's chart."""
    image = _canvas(width, height, (0.93, 0.92, 0.88), rng)
    rows, cols = image.shape[:2]
    y, size = 0.05 * rows, 0.16 * rows
    while size > 5 and y + size < rows:
        scribble(image, (0.1 * cols, y, 0.98 * cols, y + size * 1.2), size, (0.1, 0.1, 0.12), rng)
        y += 1.45 * size
        size *= 0.74
    return image


def laptop(width: float, height: float, rng: Rng) -> Singles:
    """A screen with windows, code-like lines and icons."""
    image = _canvas(width, height, (0.12, 0.22, 0.35), rng)
    rows, cols = image.shape[:2]
    for x0, y0, x1, y1 in ((0.06, 0.1, 0.55, 0.8), (0.45, 0.25, 0.94, 0.9)):
        box = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) * (cols, rows)
        polygon(image, box, jitter((0.9, 0.9, 0.88), 0.05, rng))
        scribble(
            image, (x0 * cols + 6, y0 * rows + 12, x1 * cols - 6, y1 * rows), 5, jitter((0.2, 0.3, 0.4), 0.3, rng), rng
        )
    for i in range(8):
        polygon(
            image,
            ellipse(np.array([cols * (0.1 + 0.1 * i), rows * 0.95]), 5, 5, 0, 5),
            jitter((0.8, 0.5, 0.3), 0.3, rng),
        )
    return image


def clock(width: float, height: float, rng: Rng) -> Singles:
    """A round dial on a square plate."""
    image = _canvas(width, height, (0.25, 0.18, 0.13), rng)
    rows, cols = image.shape[:2]
    center, r = np.array([cols, rows]) / 2, 0.44 * min(rows, cols)
    polygon(image, ellipse(center, r, r, 0, 60), (0.95, 0.93, 0.86))
    for k in range(60):
        a, inner = k * np.pi / 30, 0.8 if k % 5 == 0 else 0.92
        ray = np.array([np.cos(a), np.sin(a)])
        stroke(
            image,
            np.stack([center + inner * r * ray, center + 0.97 * r * ray]),
            (0.1, 0.1, 0.1),
            4 if k % 5 == 0 else 1,
        )
    for a, length, width_px in ((-2.2, 0.5, 7), (0.4, 0.75, 4)):
        stroke(
            image, np.stack([center, center + length * r * np.array([np.cos(a), np.sin(a)])]), (0.1, 0.1, 0.1), width_px
        )
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 0.6), np.float32)

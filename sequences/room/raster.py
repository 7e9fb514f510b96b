"""A z-buffer rasteriser of textured parallelograms, exact in geometry and careful with aliasing.

A parallelogram with corner p and edges r, d (in camera axes) is seen through the homography
s (x, y, 1) = K [r d p] (u, v, 1), where s is the depth. The inverse of K [r d p] applied to a pixel therefore
gives (u/z, v/z, 1/z), three affine functions of the pixel: depth, texture coordinates and their derivatives are
all analytic, no clipping or subdivision is needed, and what a pixel shows is what the pose says.

Textures are sampled with mip levels, blended between levels, and several probes along the longer axis of the
pixel's footprint (the usual anisotropic filter); images are made at twice the size and reduced with the
binomial (1 3 3 1)/8, whose center is the pixel's center.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Bytes = NDArray[np.uint8]

SUPERSAMPLING = 2
NEAR_M = 0.02
MAX_PROBES = 6
EDGE_SLACK = 1e-5  # lets neighbors overlap by a hair, so no pixel falls between two quads
REMAP_WIDTH = 512  # pixels of a quad are handed to cv2.remap in rows of this length
ALPHA_THRESHOLD = 128


@dataclass(frozen=True, slots=True)
class Pinhole:
    """Pinhole camera; pixel (0, 0) is the center of the top left pixel."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    @property
    def K(self) -> Floats:
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]])

    def supersampled(self, factor: int) -> Pinhole:
        """The same view with every pixel cut into factor x factor."""
        return Pinhole(
            self.width * factor,
            self.height * factor,
            self.fx * factor,
            self.fy * factor,
            (self.cx + 0.5) * factor - 0.5,
            (self.cy + 0.5) * factor - 0.5,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Quad:
    """A textured parallelogram in the world.

    Attributes:
        origin: (3,) the corner where the texture's top left is, meters.
        right, down: (3,) edges along the texture's columns and rows, meters. The front is where right points right
            and down points down; the back is not drawn unless `two_sided`.
        albedo: (H, W, 3) RGB uint8, sRGB.
        alpha: (H, W) uint8 cut-out mask, None when solid.
        lit: False for what shines by itself (a window's view, a lamp shade) and is left alone by the lighting.
    """

    origin: Floats
    right: Floats
    down: Floats
    albedo: Bytes
    alpha: Bytes | None = None
    two_sided: bool = False
    lit: bool = True

    @property
    def normal(self) -> Floats:
        """Unit normal towards the front."""
        n = np.cross(self.down, self.right)
        return np.asarray(n / np.linalg.norm(n))


@dataclass(eq=False)
class Image:
    """A rendered view.

    Attributes:
        rgb: (H, W, 3) in 0..255, not yet rounded.
        inverse_depth: (H, W) one over the depth along the optical axis, 1/meters, mean of the pixel's samples; as
            inverse depth is affine on a plane this is the value at the pixel's center, except across an outline.
    """

    rgb: Singles
    inverse_depth: Singles


@dataclass(frozen=True, slots=True)
class _Affine:
    """(u/z, v/z, 1/z) as affine functions of the pixel: rows of the inverse homography."""

    u: Singles
    v: Singles
    w: Singles


@dataclass(eq=False)
class _Target:
    inverse_depth: Singles
    quad: NDArray[np.int32]
    rgb: Singles = field(init=False)


def pyramid(image: Bytes) -> list[Bytes]:
    """Mip levels by area averaging, down to 1 pixel."""
    levels = [np.ascontiguousarray(image)]
    while max(levels[-1].shape[:2]) > 1:
        h, w = levels[-1].shape[:2]
        size = (max(1, w // 2), max(1, h // 2))
        levels.append(np.asarray(cv2.resize(levels[-1], size, interpolation=cv2.INTER_AREA), dtype=np.uint8))
    return levels


class Rasteriser:
    """Draws a set of quads from any camera pose.

    Args:
        supersampling: 2, or 1 for images that are averaged or resampled afterwards.
        anisotropic: filter textures along the pixel's footprint; without it, each quad is sampled from one mip level,
            which takes a quarter of the time and wants floors and walls in pieces of a meter or two.
    """

    def __init__(
        self, quads: Sequence[Quad], camera: Pinhole, *, supersampling: int = SUPERSAMPLING, anisotropic: bool = True
    ) -> None:
        self.camera = camera
        self._supersampling = supersampling
        self._sampled = _sampled if anisotropic else _sampled_once
        self._quads = list(quads)
        self._pyramids = [pyramid(q.albedo) for q in quads]
        self._alphas = [None if q.alpha is None else pyramid(q.alpha) for q in quads]
        self._origins = np.stack([q.origin for q in quads])
        self._rights = np.stack([q.right for q in quads])
        self._downs = np.stack([q.down for q in quads])
        self._two_sided = np.array([q.two_sided for q in quads])

    def render(
        self, world_from_cam: Floats, *, camera: Pinhole | None = None, displacements: Floats | None = None
    ) -> Image:
        """The view of a camera with OpenCV axes at the (4, 4) pose `world_from_cam`.

        Args:
            camera: instead of the rasteriser's own.
            displacements: (N, 3) how far each quad stands from its place, meters.
        """
        view = self.camera if camera is None else camera
        fine = view.supersampled(self._supersampling)
        target = _Target(
            np.zeros((fine.height, fine.width), np.float32), np.full((fine.height, fine.width), -1, np.int32)
        )
        planes = self._draw_depth(world_from_cam, fine, displacements, target)
        self._shade(planes, target)
        samples = target.inverse_depth.reshape(view.height, self._supersampling, view.width, -1)
        return Image(_reduced(target.rgb) if self._supersampling == 2 else target.rgb, samples.mean(axis=(1, 3)))

    def _draw_depth(
        self, world_from_cam: Floats, fine: Pinhole, displacements: Floats | None, target: _Target
    ) -> dict[int, _Affine]:
        cam_from_world = world_from_cam[:3, :3].T
        origins = self._origins if displacements is None else self._origins + displacements
        p = (origins - world_from_cam[:3, 3]) @ cam_from_world.T
        r, d = self._rights @ cam_from_world.T, self._downs @ cam_from_world.T
        facing = np.einsum("ij,ij->i", np.cross(d, r), p) < 0
        corners = np.stack([p, p + r, p + r + d, p + d], axis=1)
        planes = {}
        for k in np.flatnonzero((facing | self._two_sided) & _may_be_seen(corners, fine)):
            box = _screen_box(corners[k], fine)
            edges = np.stack([r[k], d[k], p[k]], axis=1)
            if box is None or abs(np.linalg.det(edges)) < 1e-12:
                continue
            rows = np.linalg.inv(fine.K @ edges).astype(np.float32)
            planes[int(k)] = _Affine(rows[0], rows[1], rows[2])
            self._draw_quad(int(k), planes[int(k)], box, target)
        return planes

    def _draw_quad(self, k: int, plane: _Affine, box: tuple[int, int, int, int], target: _Target) -> None:
        x0, y0, x1, y1 = box
        x = np.arange(x0, x1, dtype=np.float32)
        y = np.arange(y0, y1, dtype=np.float32)[:, None]
        w = y * plane.w[1] + (x * plane.w[0] + plane.w[2])
        window = target.inverse_depth[y0:y1, x0:x1]
        mask = w > window
        mask &= w < 1 / NEAR_M
        if not mask.any():
            return
        slack, top = w * np.float32(-EDGE_SLACK), w * np.float32(1 + EDGE_SLACK)
        u = y * plane.u[1] + (x * plane.u[0] + plane.u[2])
        mask &= (u >= slack) & (u <= top)
        v = y * plane.v[1] + (x * plane.v[0] + plane.v[2])
        mask &= (v >= slack) & (v <= top)
        alphas = self._alphas[k]
        if alphas is not None and mask.any():
            mask &= _is_solid(alphas, u, v, w, mask)
        window[mask] = w[mask]
        target.quad[y0:y1, x0:x1][mask] = k

    def _shade(self, planes: dict[int, _Affine], target: _Target) -> None:
        flat = target.quad.ravel()
        order = np.argsort(flat.astype(np.int16), kind="stable").astype(np.int32)
        owners, starts = np.unique(flat[order], return_index=True)
        ends = np.append(starts[1:], len(order))
        rgb = np.zeros((len(flat), 3), np.float32)
        for k, start, end in zip(owners, starts, ends, strict=True):
            if k >= 0:
                pixels = order[start:end]
                rgb[pixels] = self._sampled(self._pyramids[k], planes[int(k)], pixels, target.quad.shape[1])
        target.rgb = rgb.reshape(*target.quad.shape, 3)


def _may_be_seen(corners: Floats, camera: Pinhole) -> NDArray[np.bool_]:
    """Mask (N,) of the quads, corners (N, 4, 3) in camera axes, that are not all on the far side of a frustum plane."""
    x, y, z = np.moveaxis(corners, 2, 0)
    seen = (z >= NEAR_M).any(axis=1)
    left, top = -camera.cx - 1, -camera.cy - 1
    for side in (
        camera.fx * x - left * z,
        (camera.width - camera.cx + 1) * z - camera.fx * x,
        camera.fy * y - top * z,
        (camera.height - camera.cy + 1) * z - camera.fy * y,
    ):
        seen &= (side >= 0).any(axis=1)
    return np.asarray(seen)


def _screen_box(corners: Floats, camera: Pinhole) -> tuple[int, int, int, int] | None:
    """Pixel box (x0, y0, x1, y1) of a polygon in camera axes, cut at the near plane; None when out of view."""
    z = corners[:, 2]
    if (z < NEAR_M).all():
        return None
    points = [corners[z >= NEAR_M]]
    for i in range(len(corners)):
        a, b = corners[i], corners[(i + 1) % len(corners)]
        if (a[2] < NEAR_M) != (b[2] < NEAR_M):
            points.append((a + (NEAR_M - a[2]) / (b[2] - a[2]) * (b - a))[None])
    visible = np.concatenate(points)
    x = camera.fx * visible[:, 0] / visible[:, 2] + camera.cx
    y = camera.fy * visible[:, 1] / visible[:, 2] + camera.cy
    x0, x1 = max(0, int(np.floor(x.min()))), min(camera.width, int(np.ceil(x.max())) + 1)
    y0, y1 = max(0, int(np.floor(y.min()))), min(camera.height, int(np.ceil(y.max())) + 1)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _is_solid(alphas: list[Bytes], u: Singles, v: Singles, w: Singles, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where the cut-out mask is solid; the level is chosen once for the quad, from its area on screen."""
    texels = alphas[0].size / max(1, int(mask.sum()))
    level = int(np.clip(np.round(0.5 * np.log2(max(texels, 1.0))), 0, len(alphas) - 1))
    h, width = alphas[level].shape
    safe = np.where(mask, w, np.float32(1))
    mapped = cv2.remap(
        alphas[level],
        np.where(mask, u / safe * width - 0.5, 0).astype(np.float32),
        np.where(mask, v / safe * h - 0.5, 0).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(mapped >= ALPHA_THRESHOLD)


def _sampled(levels: list[Bytes], plane: _Affine, pixels: NDArray[np.int32], row: int) -> Singles:
    """Texture colors (N, 3) at flat pixel indices: anisotropic probes, blended between mip levels."""
    y, x = np.divmod(pixels, row)
    x, y = x.astype(np.float32), y.astype(np.float32)
    z = 1 / (plane.w[0] * x + plane.w[1] * y + plane.w[2])
    u = (plane.u[0] * x + plane.u[1] * y + plane.u[2]) * z
    v = (plane.v[0] * x + plane.v[1] * y + plane.v[2]) * z
    h, w = levels[0].shape[:2]
    along_x = ((plane.u[0] - u * plane.w[0]) * z, (plane.v[0] - v * plane.w[0]) * z)
    along_y = ((plane.u[1] - u * plane.w[1]) * z, (plane.v[1] - v * plane.w[1]) * z)
    length_x = np.hypot(along_x[0] * w, along_x[1] * h)
    length_y = np.hypot(along_y[0] * w, along_y[1] * h)
    major, minor = np.maximum(length_x, length_y), np.minimum(length_x, length_y)
    probes = int(np.clip(np.ceil(np.percentile(major / np.maximum(minor, 1e-6), 90)), 1, MAX_PROBES))
    lod = np.log2(np.maximum(np.maximum(major / probes, minor), 1.0))
    is_x = length_x > length_y
    du, dv = np.where(is_x, along_x[0], along_y[0]), np.where(is_x, along_x[1], along_y[1])
    total = np.zeros((len(pixels), 3), np.float32)
    for i in range(probes):
        offset = np.float32((i + 0.5) / probes - 0.5)
        total += _trilinear(levels, u + offset * du, v + offset * dv, lod)
    return total / np.float32(probes)


def _sampled_once(levels: list[Bytes], plane: _Affine, pixels: NDArray[np.int32], row: int) -> Singles:
    """Texture colors (N, 3) at flat pixel indices, all from the mip level that fits the pixel in their middle."""
    y, x = np.divmod(pixels, row)
    x, y = x.astype(np.float32), y.astype(np.float32)
    z = 1 / (plane.w[0] * x + plane.w[1] * y + plane.w[2])
    u = (plane.u[0] * x + plane.u[1] * y + plane.u[2]) * z
    v = (plane.v[0] * x + plane.v[1] * y + plane.v[2]) * z
    h, w = levels[0].shape[:2]
    k = len(pixels) // 2
    lengths = [
        float(np.hypot((plane.u[i] - u[k] * plane.w[i]) * z[k] * w, (plane.v[i] - v[k] * plane.w[i]) * z[k] * h))
        for i in (0, 1)
    ]
    level = round(0.5 * np.log2(max(lengths[0] * lengths[1], 1.0)))
    return _bilinear(levels[min(level, len(levels) - 1)], u, v)


def _trilinear(levels: list[Bytes], u: Singles, v: Singles, lod: Singles) -> Singles:
    lod = np.minimum(lod, np.float32(len(levels) - 1))
    total = np.zeros((len(u), 3), np.float32)
    for level in range(int(lod.min()), int(np.ceil(lod.max())) + 1):
        weight = 1 - np.abs(lod - np.float32(level))
        here = np.flatnonzero(weight > 0)
        if len(here):
            total[here] += weight[here, None] * _bilinear(levels[level], u[here], v[here])
    return total


def _bilinear(image: Bytes, u: Singles, v: Singles) -> Singles:
    h, w = image.shape[:2]
    n = len(u)
    rows = -(-n // REMAP_WIDTH)
    maps = np.zeros((2, rows * REMAP_WIDTH), np.float32)
    maps[0, :n], maps[1, :n] = u * w - 0.5, v * h - 0.5
    grid = maps.reshape(2, rows, REMAP_WIDTH)
    out = cv2.remap(image, grid[0], grid[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return out.reshape(-1, 3)[:n].astype(np.float32)


def _reduced(fine: Singles) -> Singles:
    """Half the size with (1 3 3 1)/8 along both axes; output pixel i is centered between fine pixels 2i and 2i + 1."""
    kernel = np.array([1, 3, 3, 1], np.float32) / 8
    # cv2 anchors an even kernel at tap 2: output j covers j-2..j+1, so pixel i sits at fine index 2i + 1.
    blurred = cv2.sepFilter2D(fine, -1, kernel, kernel, anchor=(2, 2), borderType=cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(blurred[1::2, 1::2])

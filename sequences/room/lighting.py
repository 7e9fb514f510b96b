"""Light baked into the textures: daylight from the window, two lamps, and a sky term with ambient occlusion.

Brightness depends on the place alone (Lambert), so a point looks the same from everywhere, as trackers assume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from .raster import Bytes, Floats, Quad, Singles

GRID_M = 0.045  # spacing of the light samples on a surface
LIFT_M = 0.008  # samples float above their surface, so that it doesn't shade itself
AMBIENT_RANGE_M = 0.9  # what is farther away than this hardly darkens
GAMMA = 2.2
AMBIENT_RAYS = 48
LIGHT_RAYS = 20
CHUNK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """A solid that casts shadows: center (3,), half sizes (3,), `world_from_box` rotation (3, 3), meters."""

    center: Floats
    half: Floats
    world_from_box: Floats


@dataclass(frozen=True, slots=True, eq=False)
class AreaLight:
    """A glowing parallelogram: corner and edges in meters, RGB power; `normal` None shines to all sides."""

    origin: Floats
    right: Floats
    down: Floats
    power: Floats
    normal: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Illumination:
    """Everything the light depends on. `room` is the (3,) size of the room, whose walls darken corners."""

    lights: Sequence[AreaLight]
    boxes: Sequence[Box]
    room: Floats
    ambient: Floats


def lit(quads: Sequence[Quad], illumination: Illumination) -> list[Quad]:
    """The quads with their light multiplied into the albedo; those with lit=False unchanged."""
    grids = [_grid(q) if q.lit else np.zeros((0, 0, 3)) for q in quads]
    counts = [g.shape[0] * g.shape[1] for g in grids]
    points = np.concatenate([g.reshape(-1, 3) for g in grids])
    normals = np.repeat(np.stack([q.normal for q in quads]), counts, axis=0)
    light = np.concatenate(
        [_light(points[i : i + CHUNK], normals[i : i + CHUNK], illumination) for i in range(0, len(points), CHUNK)]
    )
    ends = np.cumsum(counts)
    maps = [light[e - c : e].reshape(*g.shape[:2], 3) for e, c, g in zip(ends, counts, grids, strict=True)]
    return [replace(q, albedo=_baked(q, m)) if q.lit else q for q, m in zip(quads, maps, strict=True)]


def _grid(quad: Quad) -> Floats:
    """Light sample points (rows, cols, 3), cell centered, lifted off the surface."""
    cols = max(2, round(float(np.linalg.norm(quad.right)) / GRID_M))
    rows = max(2, round(float(np.linalg.norm(quad.down)) / GRID_M))
    u, v = (np.arange(cols) + 0.5) / cols, (np.arange(rows) + 0.5) / rows
    plane = quad.origin + u[None, :, None] * quad.right + v[:, None, None] * quad.down
    return np.asarray(plane + LIFT_M * quad.normal)


def _baked(quad: Quad, light: Floats) -> Bytes:
    h, w = quad.albedo.shape[:2]
    coarse = (light ** (1 / GAMMA)).astype(np.float32)
    gain = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_LINEAR)
    if min(light.shape[:2]) > 6:
        gain = cv2.GaussianBlur(gain, (0, 0), 0.5 * h / light.shape[0])
    return np.asarray(np.clip(np.rint(quad.albedo * gain), 0, 255), np.uint8)


def _light(points: Floats, normals: Floats, world: Illumination) -> Floats:
    total = world.ambient * _openness(points, normals, world)[:, None]
    for light in world.lights:
        total += light.power * _direct(points, normals, light, world)[:, None]
    return np.clip(total, 0.04, 1.9)


def _openness(points: Floats, normals: Floats, world: Illumination) -> Floats:
    """Share of the hemisphere (cosine weighted) that is free of near things, (N,)."""
    k = np.arange(AMBIENT_RAYS) + 0.5
    radius, angle = np.sqrt(k / AMBIENT_RAYS), k * np.pi * (3 - np.sqrt(5))
    local = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.sqrt(1 - radius**2)], axis=1)
    helper = np.where(np.abs(normals[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    a = np.cross(helper, normals)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    frame = np.stack([a, np.cross(normals, a), normals], axis=2)
    rays = np.einsum("nij,kj->nki", frame, local).astype(np.float32)
    free = np.minimum(
        _distance(points, rays, world.boxes, 2 * AMBIENT_RANGE_M), _wall_distance(points, rays, world.room)
    )
    return np.asarray((1 - np.exp(-free / AMBIENT_RANGE_M)).mean(axis=1), dtype=np.float64)


def _direct(points: Floats, normals: Floats, light: AreaLight, world: Illumination) -> Floats:
    """Irradiance (N,) from one light, shadowed, for unit power."""
    k = np.arange(LIGHT_RAYS) + 0.5
    uv = np.stack([k / LIGHT_RAYS, (k * 0.618034) % 1.0], axis=1)
    spots = light.origin + uv[:, :1] * light.right + uv[:, 1:] * light.down
    to_light = spots[None] - points[:, None]
    length = np.linalg.norm(to_light, axis=2)
    rays = (to_light / length[..., None]).astype(np.float32)
    cosine = np.clip(np.einsum("nki,ni->nk", rays, normals), 0, None)
    if light.normal is not None:
        cosine *= np.clip(-rays @ light.normal, 0, None)
    seen = _distance(points, rays, world.boxes, float(length.max())) > length - 0.02
    return np.asarray((cosine * seen / (length**2 + 0.05)).mean(axis=1))


def _distance(points: Floats, rays: Singles, boxes: Sequence[Box], reach_m: float) -> Singles:
    """Distance (N, K) along unit rays (N, K, 3) to the nearest box, infinite when free within reach (slab method)."""
    nearest = np.full(rays.shape[:2], np.inf, np.float32)
    for box in boxes:
        p = ((points - box.center) @ box.world_from_box).astype(np.float32)
        reach = np.linalg.norm(np.maximum(np.abs(p) - box.half, 0), axis=1)
        close = np.flatnonzero(reach < reach_m)
        d = rays[close] @ box.world_from_box.astype(np.float32)
        enter, leave = np.full((2, *d.shape[:2]), [[[-np.inf]], [[np.inf]]], np.float32)
        for axis in range(3):
            slope = 1 / np.where(np.abs(d[..., axis]) < 1e-6, np.float32(1e-6), d[..., axis])
            middle, half = -p[close, axis, None] * slope, np.float32(box.half[axis]) * np.abs(slope)
            np.maximum(enter, middle - half, out=enter)
            np.minimum(leave, middle + half, out=leave)
        hit = (enter < leave) & (leave > 0) & (enter > 0)
        nearest[close] = np.where(hit, np.minimum(nearest[close], enter), nearest[close])
    return nearest


def _wall_distance(points: Floats, rays: Singles, room: Floats) -> Singles:
    safe = np.where(np.abs(rays) < 1e-6, np.float32(1e-6), rays)
    to_wall = np.clip(np.where(safe > 0, room[None, None] - points[:, None], -points[:, None]) / safe, 0, None)
    nearest = np.minimum(np.minimum(to_wall[..., 0], to_wall[..., 1]), to_wall[..., 2])
    return np.asarray(nearest, dtype=np.float32)

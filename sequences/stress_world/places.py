"""Places to film: a room, its variants, a corridor, a floor of rooms and corridors, and a street, as textured quads.

World frame as in `room.scene`: meters, z up, the floor at 0. Materials and pictures are those of the bundled room.
Walls and floors are cut into pieces of about a meter, which the rasteriser needs to choose a mip level for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import cv2
import numpy as np
from room import art
from room.raster import Bytes, Floats, Quad
from room.scene import turn
from room.textures import (
    TEXEL_M,
    Color,
    Material,
    Rng,
    botanical,
    bricks,
    brushed,
    cardboard,
    fabric,
    painted,
    plaid,
    planks,
    plaster,
    wood,
)

PIECE_M = 1.3  # longest side of a piece of a wall or floor
PATTERN_SCALE = 0.5  # patterns are twice the size of those in the bundled room, and cost a quarter of the memory
UP = np.array([0.0, 0.0, 1.0])
ROOM = (6.0, 5.0, 2.7)
PAINTERS = (
    art.mountains, art.circles, art.glass, art.blocks, art.chart, art.bouquet, art.handbill, art.calendar, art.harbour,
    art.portrait, art.alphabet,
)  # fmt: skip
Hole = tuple[float, float, float, float]  # of a wall: left, right, bottom, top, meters from its left end and the floor
Motion = Callable[[float], Floats]  # displacement (3,) in meters at a time in seconds


@dataclass(eq=False)
class Place:
    """Quads that stand still, groups of them that move (their indices, and their motion), and the color behind all."""

    quads: list[Quad] = field(default_factory=list)
    actors: list[tuple[range, Motion]] = field(default_factory=list)
    sky: tuple[float, float, float] = (0.0, 0.0, 0.0)  # gray levels

    def displacements(self, time_s: float) -> Floats | None:
        """(N, 3) how far each quad stands from its place, meters; None where nothing moves."""
        if not self.actors:
            return None
        moved = np.zeros((len(self.quads), 3))
        for quads, motion in self.actors:
            moved[quads.start : quads.stop] = motion(time_s)
        return moved


def cut(corner: Floats, right: Floats, down: Floats, image: Bytes, holes: Sequence[Hole] = ()) -> list[Quad]:
    """A textured parallelogram in pieces, without those in the holes; its lower edge is on the floor."""
    width, height = float(np.linalg.norm(right)), float(np.linalg.norm(down))
    xs = _edges(width, [x for hole in holes for x in hole[:2]])
    ys = _edges(height, [height - z for hole in holes for z in hole[2:]])
    rows, columns = image.shape[:2]
    pieces = []
    for x0, x1 in pairwise(xs):
        for y0, y1 in pairwise(ys):
            x, z = (x0 + x1) / 2, height - (y0 + y1) / 2
            if any(left < x < end and low < z < top for left, end, low, top in holes):
                continue
            a, b = round(x0 / width * columns), round(x1 / width * columns)
            c, d = round(y0 / height * rows), round(y1 / height * rows)
            start = corner + right * (a / columns) + down * (c / rows)
            pieces.append(Quad(start, right * ((b - a) / columns), down * ((d - c) / rows), image[c:d, a:b]))
    return pieces


def _edges(length: float, own: Sequence[float]) -> list[float]:
    """Where a side is cut: at its ends, at `own`, and so often that no piece is longer than `PIECE_M`."""
    fixed = sorted({0.0, length, *own})
    edges = [0.0]
    for a, b in pairwise(fixed):
        edges += np.linspace(a, b, max(1, int(np.ceil((b - a) / PIECE_M))) + 1)[1:].tolist()
    return edges


def painting(material: Material, width: float, height: float, scale: float = PATTERN_SCALE) -> Bytes:
    """A material on a wall of width x height meters, its pattern enlarged by 1 / scale."""
    return np.clip(np.rint(material(width * scale, height * scale) * 255), 0, 255).astype(np.uint8)


def repeated(material: Material, period_m: float) -> Material:
    """The material's first `period_m` x `period_m` meters again and again, each time the very same."""

    def make(width: float, height: float) -> np.ndarray:
        tile = material(period_m, period_m)
        rows, columns = (max(4, round(side / TEXEL_M)) for side in (height, width))
        again = np.tile(tile, (rows // tile.shape[0] + 1, columns // tile.shape[1] + 1, 1))
        return np.asarray(again[:rows, :columns])

    return make


def some_color(rng: Rng) -> Color:
    red, green, blue = rng.uniform(0.2, 0.8, 3).tolist()
    return red, green, blue


def some_material(rng: Rng) -> Material:
    """One of the materials that walls have, in colors of its own."""
    inks: list[Color] = [(float(r), float(g), float(b)) for r, g, b in rng.uniform(0.15, 0.75, (4, 3))]
    red, green, blue = rng.uniform(0.45, 0.85, 3).tolist()
    kind = int(rng.integers(5))
    if kind == 0:
        return lambda width, height: bricks(width, height, rng)
    if kind == 1:
        return botanical((red, green, blue), inks, rng)
    if kind == 2:
        return brushed((red, green, blue), inks, rng)
    if kind == 3:
        return plaster((red, green, blue), rng, 1.6)
    return plaid((red, green, blue), inks[:2], rng)


@dataclass(frozen=True, kw_only=True)
class Style:
    """What a room is made of: materials of floor, ceiling and walls; how many things stand and pictures hang in it."""

    floor: Material
    ceiling: Material
    walls: Sequence[Material]
    things: int = 14
    pictures: int = 12
    scale: float = PATTERN_SCALE


def rich(rng: Rng) -> Style:
    """A room with texture everywhere."""
    walls = [some_material(rng) for _ in range(4)]
    return Style(floor=lambda w, h: planks(w, h, rng), ceiling=plaster((0.8, 0.78, 0.74), rng, 1.2), walls=walls)


def bare(rng: Rng) -> Style:
    """A room with painted walls, a plain floor, and little in it."""
    wall, floor = painted((0.78, 0.77, 0.74), rng, 0.0), painted((0.5, 0.48, 0.45), rng, 0.0)
    return Style(floor=floor, ceiling=wall, walls=[wall] * 4, things=3, pictures=4)


def alike(rng: Rng) -> Style:
    """A room whose walls and floor repeat one tile exactly."""
    inks: list[Color] = [(0.2, 0.3, 0.4), (0.7, 0.3, 0.2), (0.2, 0.45, 0.25)]
    paper = repeated(botanical((0.82, 0.8, 0.72), inks, rng, 120), 0.3)
    floor = repeated(brushed((0.5, 0.45, 0.4), [(0.8, 0.8, 0.75), (0.3, 0.2, 0.15)], rng), 0.3)
    return Style(
        floor=floor, ceiling=repeated(plaster((0.8, 0.8, 0.8), rng), 0.3), walls=[paper] * 4, things=3, pictures=0
    )


def room(
    rng: Rng,
    style: Style,
    *,
    origin: tuple[float, float] = (0.0, 0.0),
    size: tuple[float, float, float] = ROOM,
    doors: Sequence[Sequence[Hole]] = ((), (), (), ()),
) -> list[Quad]:
    """A room with things along its walls and pictures on them.

    Args:
        origin: its south-west corner, meters.
        doors: holes of the north, east, south and west wall.
    """
    w, d, h = size
    base = np.array([*origin, 0.0])
    x, y, z = w * np.eye(3)[0], d * np.eye(3)[1], h * UP
    quads = cut(base + y, x, -y, painting(style.floor, w, d, style.scale))
    quads += cut(base + z, x, y, painting(style.ceiling, w, d, style.scale))
    walls = [(base + y + z, x), (base + x + y + z, -y), (base + x + z, -x), (base + z, y)]
    for (corner, right), material, holes in zip(walls, style.walls, doors, strict=True):
        length = float(np.linalg.norm(right))
        quads += cut(corner, right, -z, painting(material, length, h, style.scale), holes)
        share = length / (2 * (w + d))
        quads += _pictures(rng, corner, right / length, length, round(style.pictures * share), holes)
        quads += _things(rng, corner - z, right / length, length, round(style.things * share), holes)
    return lit(quads, base + np.array([0.4 * w, 0.6 * d, 0.9 * h]))


def _free(rng: Rng, length: float, width: float, holes: Sequence[Hole]) -> float | None:
    """A place along a wall for something of a width, clear of the holes; None if none was found."""
    if length < width + 0.4:
        return None
    for _ in range(20):
        x = float(rng.uniform(0.2, length - width - 0.2))
        if all(x + width < left - 0.1 or x > right + 0.1 for left, right, _, _ in holes):
            return x
    return None


def _pictures(rng: Rng, corner: Floats, along: Floats, length: float, count: int, holes: Sequence[Hole]) -> list[Quad]:
    """Pictures on a wall whose upper left corner is `corner`."""
    inward, quads = np.cross(along, UP), []
    for k in range(count):
        w, h = rng.uniform(0.45, 0.8, 2).tolist()
        x = _free(rng, length, w, holes)
        if x is not None:
            image = PAINTERS[int(rng.integers(len(PAINTERS)))](w, h, rng)
            start = corner + along * x - UP * rng.uniform(0.5, 0.9) + inward * (0.012 + 0.004 * k)
            quads.append(Quad(start, along * w, -UP * h, np.clip(image * 255, 0, 255).astype(np.uint8)))
    return quads


def _things(rng: Rng, corner: Floats, along: Floats, length: float, count: int, holes: Sequence[Hole]) -> list[Quad]:
    """Boxes on the floor along a wall whose lower left corner is `corner`."""
    inward, quads = np.cross(along, UP), []
    for _ in range(count):
        w, d, h = float(rng.uniform(0.35, 0.8)), float(rng.uniform(0.25, 0.4)), float(rng.uniform(0.4, 1.3))
        x = _free(rng, length, w, holes)
        if x is not None:
            center = corner + along * (x + w / 2) + inward * (d / 2 + 0.05)
            yaw = float(np.arctan2(along[1], along[0])) + rng.normal(0, 0.1)
            quads += box(rng, center, (w, d, h), yaw)
    return quads


def box(
    rng: Rng, foot: Floats, size: tuple[float, float, float], yaw: float, skin: Material | None = None
) -> list[Quad]:
    """A cuboid that stands with the middle of its foot at `foot`; its five visible faces."""
    skins = (wood((0.5, 0.35, 0.22), rng), cardboard(rng), fabric((0.4, 0.45, 0.5), rng, (0.7, 0.6, 0.5)))
    skin = skins[int(rng.integers(3))] if skin is None else skin
    R, (w, d, h) = turn(yaw), size
    x, y = R[:, 0] * w, R[:, 1] * d
    top = foot + UP * h
    sides = [(-x - y, x, w), (x - y, y, d), (x + y, -x, w), (-x + y, -y, d)]
    quads = [Quad(top + start / 2, along, -UP * h, painting(skin, length, h, 1.0)) for start, along, length in sides]
    return [*quads, Quad(top + (-x + y) / 2, x, -y, painting(skin, w, d, 1.0))]


def lit(quads: Sequence[Quad], lamp: Floats, *, ambient: float = 0.62, power: float = 1.1) -> list[Quad]:
    """The quads with the light of a lamp multiplied into them: Lambert, without shadows."""
    return [replace(quad, albedo=_lit(quad, lamp, ambient, power)) for quad in quads]


def _lit(quad: Quad, lamp: Floats, ambient: float, power: float) -> Bytes:
    u, v = np.meshgrid((np.arange(6) + 0.5) / 6, (np.arange(6) + 0.5) / 6)
    to_lamp = lamp - (quad.origin + u[..., None] * quad.right + v[..., None] * quad.down)
    distance = np.linalg.norm(to_lamp, axis=2)
    cosine = np.clip((to_lamp @ quad.normal) / distance, 0, None)
    light = np.clip(ambient + power * cosine / (0.5 + distance), 0.1, 1.5).astype(np.float32)
    gain = cv2.resize(light, quad.albedo.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return np.clip(np.rint(quad.albedo * gain[..., None]), 0, 255).astype(np.uint8)


def mirrored(quads: Sequence[Quad], x: float) -> list[Quad]:
    """What a mirror in the plane x = `x` shows of the quads: their images behind it."""
    flip = np.array([-1.0, 1.0, 1.0])
    shift = np.array([2 * x, 0.0, 0.0])
    return [
        replace(
            quad,
            origin=(quad.origin + quad.right) * flip + shift,
            right=-quad.right * flip,
            down=quad.down * flip,
            albedo=np.ascontiguousarray(quad.albedo[:, ::-1]),
        )
        for quad in quads
    ]


# --- the places ---------------------------------------------------------------------------------------------------


def rich_room(rng: Rng) -> Place:
    return Place(room(rng, rich(rng)))


def bare_room(rng: Rng) -> Place:
    return Place(room(rng, bare(rng)))


def room_alike(rng: Rng) -> Place:
    return Place(room(rng, alike(rng)))


def room_with_mirror(rng: Rng) -> Place:
    """The room with a mirror of 2.6 x 1.7 m on its east wall, behind which the room stands mirrored."""
    doors: list[list[Hole]] = [[], [(1.2, 3.8, 0.6, 2.3)], [], []]
    quads = room(rng, rich(rng), doors=doors)
    return Place([*quads, *mirrored(quads, ROOM[0])])


Walk = tuple[
    tuple[float, float], tuple[float, float], float
]  # where it begins, how far it goes, seconds there and back
ALONG_THE_WALLS: Sequence[Walk] = (
    ((5.0, 4.3), (-4.0, 0.0), 8.0),
    ((5.5, 1.0), (0.0, 3.0), 7.0),
    ((5.0, 0.7), (-4.0, 0.0), 9.0),
    ((0.65, 1.0), (0.0, 3.0), 7.0),
)
AT_A_DISTANCE: Sequence[Walk] = (*ALONG_THE_WALLS, ((3.3, 2.35), (0.1, 0.4), 6.0))
IN_THE_MIDDLE: Sequence[Walk] = (
    ((3.1, 2.2), (0.9, 0.9), 5.0),
    ((4.6, 3.4), (-1.6, -0.4), 7.0),
    ((2.2, 3.2), (0.4, -1.3), 6.0),
)


def room_with_passers_by(rng: Rng) -> Place:
    """The room with four people along its walls; they cover 6 % of the image, at most 12 %."""
    return _with_people(rich_room(rng), ALONG_THE_WALLS, rng)


def room_with_people(rng: Rng) -> Place:
    """The room with five people, four of them along its walls; they cover a fifth of the image, at most 29 %."""
    return _with_people(rich_room(rng), AT_A_DISTANCE, rng)


def room_with_crowd(rng: Rng) -> Place:
    """The room, and three people who walk about in its middle; they cover a third of the image, at most 60 %."""
    return _with_people(rich_room(rng), IN_THE_MIDDLE, rng)


def _with_people(place: Place, walks: Sequence[Walk], rng: Rng) -> Place:
    for start, step, period in walks:
        shirt = plaid(some_color(rng), [(0.1, 0.1, 0.2), (0.9, 0.8, 0.7)], rng)
        trousers = fabric((0.2, 0.22, 0.3), rng, (0.35, 0.35, 0.4))
        foot = np.array([*start, 0.0])
        first = len(place.quads)
        place.quads += box(rng, foot, (0.4, 0.25, 0.85), 0.4, trousers)
        place.quads += box(rng, foot + 0.85 * UP, (0.45, 0.28, 0.55), 0.4, shirt)
        place.quads += box(rng, foot + 1.4 * UP, (0.18, 0.2, 0.28), 0.4, painted((0.75, 0.58, 0.47), rng, 3))
        place.actors.append((range(first, len(place.quads)), _to_and_fro(np.array([*step, 0.0]), period)))
    return place


def _to_and_fro(step: Floats, period_s: float) -> Motion:
    return lambda time_s: step * 0.5 * (1 - np.cos(2 * np.pi * time_s / period_s))


def corridor(rng: Rng) -> Place:
    """A corridor of 2.2 x 22 m along x."""
    style = replace(rich(rng), things=10, pictures=24)
    return Place(room(rng, style, size=(22.0, 2.2, 2.6)))


COLUMNS, ROWS = (6.0, 2.2, 6.0, 2.2, 6.0), (5.0, 2.2, 5.0, 2.2, 5.0)  # of the floor; the narrow ones are corridors
DOOR_M, DOOR_TOP_M = 1.1, 2.1


def floor(rng: Rng) -> Place:
    """Nine rooms on a grid of two by two corridors; a door in the middle of each room's wall to a corridor."""
    quads: list[Quad] = []
    for i, width in enumerate(COLUMNS):
        for j, depth in enumerate(ROWS):
            origin = (sum(COLUMNS[:i]), sum(ROWS[:j]))
            doors = [_doors(i, j, side) for side in ((0, 1), (1, 0), (0, -1), (-1, 0))]
            is_room = i % 2 == 0 and j % 2 == 0
            style = replace(rich(rng), scale=0.3, things=14 if is_room else 0, pictures=12 if is_room else 5)
            quads += room(rng, style, origin=origin, size=(width, depth, ROOM[2]), doors=doors)
    return Place(quads)


def _doors(i: int, j: int, side: tuple[int, int]) -> list[Hole]:
    """The hole of a cell's wall to its neighbor on that side: none, a door, or all of it between corridors."""
    column, row = i + side[0], j + side[1]
    if not (0 <= column < len(COLUMNS) and 0 <= row < len(ROWS)):
        return []
    length = COLUMNS[i] if side[0] == 0 else ROWS[j]
    if (i % 2 == 0 and j % 2 == 0) or (column % 2 == 0 and row % 2 == 0):
        return [((length - DOOR_M) / 2, (length + DOOR_M) / 2, 0.0, DOOR_TOP_M)]
    return [(0.0, length, 0.0, ROOM[2])]


BLOCK_M, STREET_M, HOUSE_M = (50.0, 36.0), 12.0, 9.0


def street(rng: Rng) -> Place:
    """Two by one blocks of houses, with streets around them, houses beyond the streets, and cars at the curb."""
    width, depth = 2 * BLOCK_M[0] + 3 * STREET_M, BLOCK_M[1] + 2 * STREET_M
    x, y = width * np.eye(3)[0], depth * np.eye(3)[1]
    asphalt = lambda w, h: np.asarray(plaster((0.38, 0.38, 0.4), rng, 2.0)(w, h))  # noqa: E731
    quads = cut_large(y, x, -y, painting(asphalt, width, depth, 0.06))
    for block in range(2):
        low = np.array([STREET_M + block * (BLOCK_M[0] + STREET_M), STREET_M, 0.0])
        quads += _facades(rng, low, BLOCK_M, outward=True)
    quads += _facades(rng, np.zeros(3), (width, depth), outward=False)
    for _ in range(40):
        place, yaw = _at_the_curb(rng)
        skin = painted(some_color(rng), rng, 4)
        quads += box(rng, place, (4.2, 1.8, 1.4), yaw, skin=_scaled(skin, 0.2))
    return Place(quads, sky=(196.0, 212.0, 228.0))


def cut_large(corner: Floats, right: Floats, down: Floats, image: Bytes) -> list[Quad]:
    """As `cut`, in pieces of about 6 m."""
    rows, columns = (max(1, int(np.linalg.norm(side) / 6.0)) for side in (down, right))
    height, width = image.shape[0] // rows, image.shape[1] // columns
    return [
        Quad(
            corner + right * (a / columns) + down * (b / rows),
            right / columns,
            down / rows,
            image[b * height : (b + 1) * height, a * width : (a + 1) * width],
        )
        for a in range(columns)
        for b in range(rows)
    ]


def _scaled(material: Material, scale: float) -> Material:
    return lambda width, height: material(width * scale, height * scale)


def _facades(rng: Rng, low: Floats, size: tuple[float, float], *, outward: bool) -> list[Quad]:
    """Houses around a rectangle, seen from outside of it or from inside."""
    w, d = size
    corners = [low + np.array([*offset, 0.0]) for offset in ((0, 0), (w, 0), (w, d), (0, d))]
    quads = []
    for k in range(4):
        a, b = corners[k], corners[(k + 1) % 4]
        if not outward:
            a, b = b, a
        length = float(np.linalg.norm(b - a))
        count = max(1, round(length / 12))
        for n in range(count):
            start, right = a + (b - a) * (n / count), (b - a) / count
            height = HOUSE_M + float(rng.uniform(-2, 2))
            quads += cut_large(start + height * UP, right, -height * UP, _house(rng, length / count, height))
    return quads


def _house(rng: Rng, width: float, height: float) -> Bytes:
    """A front of plaster or brick with rows of windows that are alike but for a little dirt, and a door."""
    image = painting(some_material(rng), width, height, 0.1)
    texels = image.shape[1] / width
    glass = tuple(int(v) for v in rng.integers(30, 90, 3))
    frame = tuple(int(v) for v in rng.integers(150, 240, 3))
    across, floors = max(2, int(width / 2.6)), max(2, int(height / 3))
    for row in range(floors):
        for column in range(across):
            x = int((column + 0.25) * width / across * texels)
            y = int((row + 0.25) * height / floors * texels)
            far = (x + int(1.2 * texels), y + int(1.5 * texels))
            cv2.rectangle(image, (x, y), far, glass, -1)
            cv2.rectangle(image, (x, y), far, frame, 3)
            cv2.line(image, ((x + far[0]) // 2, y), ((x + far[0]) // 2, far[1]), frame, 2)
    return np.clip(image.astype(np.float32) + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def _at_the_curb(rng: Rng) -> tuple[Floats, float]:
    """A parked car's place beside one of the blocks, and its yaw."""
    low = STREET_M + int(rng.integers(2)) * (BLOCK_M[0] + STREET_M)
    if rng.random() < 0.6:
        y = float(rng.choice([STREET_M - 1.3, STREET_M + BLOCK_M[1] + 1.3]))
        return np.array([low + float(rng.uniform(4, BLOCK_M[0] - 4)), y, 0.0]), 0.0
    x = float(rng.choice([low - 1.3, low + BLOCK_M[0] + 1.3]))
    return np.array([x, STREET_M + float(rng.uniform(4, BLOCK_M[1] - 4)), 0.0]), np.pi / 2

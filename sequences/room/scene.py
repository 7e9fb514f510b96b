"""The room: walls, furniture and things, as textured quads, with the solids that cast shadows and the lights.

World frame: meters, z up, x east (6 m), y north (5 m), the origin on the floor in the south-west corner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from . import art
from .lighting import AreaLight, Box, Illumination, lit
from .raster import Bytes, Floats, Quad
from .textures import (
    Color,
    Material,
    Rng,
    Singles,
    book_spine,
    botanical,
    bricks,
    brushed,
    cardboard,
    ceiling,
    ellipse,
    fabric,
    flat,
    jitter,
    leaf_cutout,
    noise,
    page_block,
    painted,
    pixels,
    plaid,
    planks,
    plaster,
    polygon,
    rug,
    scribble,
    shaded,
    view_outside,
    wood,
)

ROOM = np.array([6.0, 5.0, 2.7])
UP = np.array([0.0, 0.0, 1.0])
WINDOW_Y, WINDOW_Z = (1.55, 3.25), (0.92, 2.25)
ALL_BUT_TOP = "front back left right bottom"
Painter = Callable[[float, float, Rng], Singles]
NORTH, EAST, SOUTH, WEST = 0.0, -np.pi / 2, np.pi, np.pi / 2  # yaw of a thing whose back is at that wall


def turn(yaw: float, tilt: float = 0.0, roll: float = 0.0) -> Floats:
    """Rotation world_from_thing: about z by yaw, then about the thing's x by tilt, then about its y by roll."""
    c, s = np.cos(yaw), np.sin(yaw)
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    c, s = np.cos(tilt), np.sin(tilt)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    c, s = np.cos(roll), np.sin(roll)
    return np.asarray(about_z @ about_x @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]))


def to_bytes(image: Singles) -> Bytes:
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A frame to put things in: its origin in the world and `world_from_place` rotation."""

    origin: Floats
    rotation: Floats

    @classmethod
    def at(cls, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> Place:
        return cls(np.array([x, y, z]), turn(yaw))

    def point(self, x: float, y: float, z: float) -> Floats:
        return np.asarray(self.origin + self.rotation @ np.array([x, y, z]))


@dataclass(eq=False)
class Room:
    """Collects quads and shadow casters."""

    rng: Rng
    quads: list[Quad] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)

    def panel(self, corner: Floats, right: Floats, down: Floats, image: Singles, *, is_lit: bool = True) -> None:
        self.quads.append(Quad(corner, right, down, to_bytes(image), lit=is_lit))

    def box(
        self,
        place: Place,
        center: Sequence[float],
        size: Sequence[float],
        material: Material,
        *,
        faces: dict[str, Material] | None = None,
        tilt: float = 0.0,
        yaw: float = 0.0,
        roll: float = 0.0,
        skip: str = "bottom",
        casts: bool = True,
    ) -> None:
        """A cuboid with its own texture on each face; `center` and turns are in `place`, `faces` overrides some.

        The front is the face towards the thing's -y. Faces named in `skip` (space separated) are left out.
        """
        R, c = place.rotation @ turn(yaw, tilt, roll), place.point(*center)
        x, y, z = (R[:, i] * size[i] for i in range(3))
        w, d, h = size
        sides = {
            "front": (-x - y + z, x, -z, w, h),
            "back": (x + y + z, -x, -z, w, h),
            "left": (-x + y + z, -y, -z, d, h),
            "right": (x - y + z, y, -z, d, h),
            "top": (-x + y + z, x, -y, w, d),
            "bottom": (-x - y - z, x, y, w, d),
        }
        for name, (corner, right, down, width, height) in sides.items():
            if name not in skip.split():
                image = (faces or {}).get(name, material)(width, height)
                self.panel(c + corner / 2, right, down, image)
        if casts:
            self.boxes.append(Box(c, np.array(size) / 2, R))

    def cylinder(
        self,
        place: Place,
        center: Sequence[float],
        radius: float,
        height: float,
        material: Material,
        *,
        top: Material | None = None,
        sides: int = 18,
        is_lit: bool = True,
        casts: bool = True,
    ) -> None:
        """An upright prism that passes for a cylinder; `center` is the middle of its foot."""
        image = material(2 * np.pi * radius, height)
        cuts = np.round(np.linspace(0, image.shape[1], sides + 1)).astype(int)
        angle = np.linspace(0, 2 * np.pi, sides + 1)
        rim = np.stack([np.cos(angle) * radius, np.sin(angle) * radius], axis=1)
        for k in range(sides):
            a = place.point(center[0] + rim[k, 0], center[1] + rim[k, 1], center[2] + height)
            b = place.point(center[0] + rim[k + 1, 0], center[1] + rim[k + 1, 1], center[2] + height)
            self.panel(a, b - a, -height * UP, image[:, cuts[k] : cuts[k + 1]], is_lit=is_lit)
        if top is not None:
            self._disc(place.point(center[0], center[1], center[2] + height), radius, top, sides)
        if casts:
            half = np.array([0.8 * radius, 0.8 * radius, height / 2])
            self.boxes.append(Box(place.point(center[0], center[1], center[2] + height / 2), half, place.rotation))

    def _disc(self, center: Floats, radius: float, material: Material, sides: int) -> None:
        image = to_bytes(material(2 * radius, 2 * radius))
        rows, cols = image.shape[:2]
        mask = np.zeros((rows, cols, 3), np.float32)
        polygon(mask, ellipse(np.array([cols / 2, rows / 2]), cols / 2, rows / 2, 0, sides), (255, 255, 255))
        corner = center + np.array([-radius, radius, 0])
        right, down = np.array([2 * radius, 0, 0]), np.array([0, -2 * radius, 0])
        self.quads.append(Quad(corner, right, down, image, alpha=mask[..., 0].astype(np.uint8)))

    def cutout(self, center: Floats, right: Floats, down: Floats, image: Singles, mask: Bytes) -> None:
        """A thin two-sided thing such as a leaf, drawn from both sides."""
        for edge in (right, -right):
            flip = slice(None) if edge is right else slice(None, None, -1)
            corner = center - edge / 2 - down / 2
            pixels_, alpha = to_bytes(image)[:, flip], mask[:, flip]
            self.quads.append(Quad(corner, edge, down, np.ascontiguousarray(pixels_), np.ascontiguousarray(alpha)))


def paint(painter: Painter, rng: Rng) -> Material:
    """A material from a function that also takes the generator."""
    return lambda width, height: painter(width, height, rng)


def build(seed: int) -> list[Quad]:
    """All quads of the room, lit. The same seed gives the same bytes."""
    room = Room(np.random.default_rng(seed))
    _shell(room)
    _north(room)
    _east(room)
    _south(room)
    _west(room)
    _table(room)
    _floor_things(room)
    return lit(room.quads, _illumination(room))


def _illumination(room: Room) -> Illumination:
    y0, y1 = WINDOW_Y
    z0, z1 = WINDOW_Z
    window = AreaLight(
        np.array([6.0, y0, z1]), np.array([0, y1 - y0, 0]), np.array([0, 0, z0 - z1]),
        3.6 * np.array([0.95, 1.0, 1.07]), np.array([-1.0, 0, 0]),
    )  # fmt: skip
    pendant = AreaLight(
        np.array([2.6, 2.2, 2.45]), np.array([0.5, 0, 0]), np.array([0, 0.5, 0]), 2.2 * np.array([1.05, 1.0, 0.88])
    )
    floor_lamp = AreaLight(
        np.array([0.45, 0.4, 1.6]), np.array([0.2, 0, 0]), np.array([0, 0.2, 0]), 0.35 * np.array([1.15, 0.95, 0.7])
    )
    return Illumination([window, pendant, floor_lamp], room.boxes, ROOM, 0.54 * np.array([1.0, 0.99, 0.97]))


# ---- the shell ---------------------------------------------------------------------------------------------------


def _shell(room: Room) -> None:
    rng, (w, d, h) = room.rng, ROOM
    x, y, z = w * np.eye(3)[0], d * np.eye(3)[1], h * UP
    room.panel(np.array([0, d, 0]), x, -y, planks(w, d, rng))
    room.panel(np.array([0, 0, h]), x, y, ceiling(w, d, rng))
    greens: list[Color] = [
        (0.35, 0.45, 0.33),
        (0.5, 0.52, 0.36),
        (0.62, 0.4, 0.34),
        (0.3, 0.4, 0.42),
        (0.68, 0.3, 0.27),
    ]
    room.panel(np.array([0, d, h]), x, -z, botanical((0.83, 0.81, 0.72), greens, rng)(w, h))
    room.panel(np.array([w, 0, h]), -x, -z, bricks(w, h, rng))
    blues: list[Color] = [
        (0.25, 0.33, 0.45),
        (0.75, 0.74, 0.68),
        (0.7, 0.5, 0.32),
        (0.36, 0.45, 0.55),
        (0.2, 0.24, 0.32),
    ]
    room.panel(np.array([0, 0, h]), y, -z, brushed((0.55, 0.62, 0.68), blues, rng)(d, h))
    _east_wall(room, plaster((0.84, 0.76, 0.62), rng, 1.6))
    oak = wood((0.5, 0.36, 0.24), rng)
    for place, length, gaps in (
        (Place.at(0, d, 0, NORTH), w, ()), (Place.at(w, d, 0, EAST), d, ()), (Place.at(w, 0, 0, SOUTH), w, ()),
        (Place.at(0, 0, 0, WEST), d, ()),
    ):  # fmt: skip
        room.box(place, (length / 2, -0.008, 0.05), (length, 0.016, 0.1), oak, casts=False, skip="bottom back")
        room.box(
            place, (length / 2, -0.02, h - 0.03), (length, 0.04, 0.06), painted((0.8, 0.77, 0.7), rng), casts=False
        )
        del gaps


def _east_wall(room: Room, material: Material) -> None:
    """The wall with the window's hole in it: one image, cut into four panels."""
    _, d, h = ROOM
    image = material(d, h)
    rows, cols = image.shape[:2]

    def piece(y_high: float, y_low: float, z_high: float, z_low: float) -> None:
        a, b = round((d - y_high) / d * cols), round((d - y_low) / d * cols)
        top, bottom = round((h - z_high) / h * rows), round((h - z_low) / h * rows)
        corner = np.array([6.0, d - a / cols * d, h - top / rows * h])
        room.panel(
            corner,
            np.array([0, -(b - a) / cols * d, 0]),
            np.array([0, 0, -(bottom - top) / rows * h]),
            image[top:bottom, a:b],
        )

    (y0, y1), (z0, z1) = WINDOW_Y, WINDOW_Z
    piece(d, y1, h, 0)
    piece(y0, 0, h, 0)
    piece(y1, y0, h, z1)
    piece(y1, y0, z0, 0)


# ---- walls with their furniture: x runs along the wall to the right, y points into the wall -----------------------


def _north(room: Room) -> None:
    rng, wall = room.rng, Place.at(0, 5, 0, NORTH)
    _bookshelf(room, wall, 0.55, 2.15, 2.05)
    _frame(room, wall, 2.75, 1.72, 0.66, 0.86, art.mountains, (0.2, 0.15, 0.12))
    _frame(room, wall, 3.55, 1.95, 0.5, 0.5, art.circles, (0.75, 0.6, 0.3))
    _frame(room, wall, 3.55, 1.3, 0.46, 0.56, art.bouquet, (0.42, 0.28, 0.16))
    _frame(room, wall, 5.5, 1.65, 0.52, 0.74, art.handbill, (0.12, 0.12, 0.13))
    _desk(room, wall, 4.0, 5.1)
    _shelf_board(room, wall, 4.55, 1.62, 1.0)
    room.box(wall, (2.75, -0.19, 0.24), (0.55, 0.36, 0.46), cardboard(rng), faces={"top": cardboard(rng)})
    room.box(wall, (2.72, -0.2, 0.58), (0.38, 0.3, 0.22), cardboard(rng), yaw=0.2)
    _plant(room, Place.at(5.6, 4.55), 0.17, 0.34, 46, 0.8)


def _bookshelf(room: Room, wall: Place, x0: float, x1: float, height: float) -> None:
    rng, depth, board = room.rng, 0.32, 0.025
    oak = wood((0.46, 0.31, 0.19), rng)
    width, middle = x1 - x0, (x0 + x1) / 2
    for x in (x0 + board / 2, x1 - board / 2, middle):
        room.box(wall, (x, -depth / 2, height / 2), (board, depth, height), oak)
    room.box(wall, (middle, -0.006, height / 2), (width, 0.012, height), oak)
    levels = [0.08, 0.48, 0.86, 1.22, 1.58]
    for z in [*levels, height - board / 2]:
        room.box(wall, (middle, -depth / 2, z), (width, depth, board), oak, skip="")
    for z in levels:
        top = min([t for t in [*levels, height] if t > z]) - z - board
        for a, b in ((x0 + board, middle - board / 2), (middle + board / 2, x1 - board)):
            _books(room, wall, a + 0.005, b - 0.005, z + board / 2, top, depth)


def _books(room: Room, wall: Place, x0: float, x1: float, z: float, room_above: float, depth: float) -> None:
    """A row of books with a leaning one, a lying pile or a vase where it ends."""
    rng, x = room.rng, x0
    end = x1 - rng.choice([0.0, 0.12, 0.2])
    while True:
        w, h, d = rng.uniform(0.016, 0.05), rng.uniform(0.62, 0.93) * room_above, rng.uniform(0.16, 0.24)
        if x + w > end:
            break
        _book(room, wall, (x + w / 2, -depth + d / 2 + rng.uniform(0.015, 0.06), z + h / 2), (w, d, h))
        x += w + rng.choice([0.001, 0.002, 0.006])
    room.boxes.append(
        Box(
            wall.point((x0 + x) / 2, -depth / 2 + 0.03, z + 0.35 * room_above),
            np.array([(x - x0) / 2, 0.1, 0.33 * room_above]),
            wall.rotation,
        )
    )
    if x1 - x > 0.17:
        level = z
        for _ in range(int(rng.integers(2, 5))):
            t = rng.uniform(0.02, 0.045)
            _book(room, wall, (x + 0.09, -depth / 2, level + t / 2), (0.14, 0.2, t), lying=True)
            level += t
    elif x1 - x > 0.1:
        pot = painted(jitter((0.4, 0.5, 0.55), 0.3, rng), rng, 60)
        room.cylinder(
            wall, (x + 0.06, -depth / 2, z), 0.04, 0.15, pot, top=painted((0.15, 0.12, 0.1), rng), casts=False
        )


def _book(
    room: Room, place: Place, center: Sequence[float], size: Sequence[float], *, lying: bool = False, yaw: float = 0.0
) -> None:
    rng = room.rng
    spine = paint(book_spine, rng)

    def lying_spine(width: float, height: float) -> Singles:
        return np.ascontiguousarray(spine(height, width).transpose(1, 0, 2)[:, ::-1])

    cover: Material = _cover(rng)
    pages = paint(page_block, rng)
    if lying:
        faces = {"front": lying_spine, "back": pages, "left": pages, "right": pages, "top": cover}
    else:
        faces = {"front": spine, "back": pages, "left": cover, "right": cover, "top": pages}
    room.box(place, center, size, spine, faces=faces, yaw=yaw, casts=False)


def _cover(rng: Rng) -> Material:
    """A book's front: ground, a figure, a title."""

    def make(width: float, height: float) -> Singles:
        rows, cols = pixels(width, height, 0.0014)
        ground = jitter(tuple(rng.uniform(0.15, 0.85, 3)), 0.05, rng)
        image = shaded(flat((rows, cols), ground), 0.05 * noise((rows, cols), (20, 20), rng))
        for _ in range(5):
            center = rng.uniform(0.2, 0.8, 2) * (cols, rows)
            radius = rng.uniform(0.06, 0.25) * cols
            polygon(
                image,
                ellipse(center, radius, radius * rng.uniform(0.4, 1), rng.uniform(0, 3), int(rng.integers(3, 9))),
                jitter((0.7, 0.5, 0.4), 0.4, rng),
            )
        scribble(
            image, (0.08 * cols, 0.05 * rows, 0.95 * cols, 0.25 * rows), max(4, rows * 0.07), (0.95, 0.93, 0.85), rng
        )
        return image

    return make


def _frame(room: Room, wall: Place, x: float, z: float, w: float, h: float, painter: Painter, color: Color) -> None:
    """A painting of w x h meters with a wooden frame, hung with its middle at (x, z)."""
    rng, rim = room.rng, 0.035
    moulding = wood(color, rng)
    room.panel(
        wall.point(x - w / 2, -0.016, z + h / 2), wall.rotation @ np.array([w, 0, 0]), -h * UP, painter(w, h, rng)
    )
    for dx, dz, sx, sz in (
        (0, h / 2 + rim / 2, w + 2 * rim, rim), (0, -h / 2 - rim / 2, w + 2 * rim, rim),
        (w / 2 + rim / 2, 0, rim, h), (-w / 2 - rim / 2, 0, rim, h),
    ):  # fmt: skip
        room.box(wall, (x + dx, -0.016, z + dz), (sx, 0.032, sz), moulding, skip="back")


def _shelf_board(room: Room, wall: Place, x: float, z: float, width: float) -> None:
    rng = room.rng
    room.box(wall, (x, -0.1, z), (width, 0.2, 0.025), wood((0.55, 0.4, 0.25), rng), skip="")
    for dx in (-0.35, 0.35):
        room.box(wall, (x + dx * width, -0.06, z - 0.07), (0.03, 0.12, 0.12), painted((0.15, 0.15, 0.16), rng))
    at, base = x - width / 2 + 0.03, z + 0.0125
    while at < x + 0.05:
        w, h = rng.uniform(0.02, 0.045), rng.uniform(0.17, 0.28)
        _book(room, wall, (at + w / 2, -0.1, base + h / 2), (w, 0.15, h))
        at += w + 0.002
    jar = painted((0.75, 0.6, 0.4), rng, 90)
    room.cylinder(wall, (x + 0.18, -0.1, base), 0.05, 0.13, jar, top=painted((0.2, 0.15, 0.1), rng))
    room.box(
        wall, (x + 0.36, -0.1, base + 0.09), (0.14, 0.1, 0.18), fabric((0.7, 0.35, 0.3), rng, (0.9, 0.85, 0.7)), yaw=0.3
    )


def _desk(room: Room, wall: Place, x0: float, x1: float) -> None:
    rng, top_z, depth = room.rng, 0.74, 0.6
    pine, dark = wood((0.72, 0.55, 0.36), rng), painted((0.2, 0.22, 0.25), rng)
    middle, width = (x0 + x1) / 2, x1 - x0
    room.box(wall, (middle, -depth / 2, top_z), (width, depth, 0.035), pine, skip="")
    for x in (x0 + 0.04, x1 - 0.36):
        for y in (-0.05, -depth + 0.05):
            room.box(wall, (x, y, top_z / 2), (0.05, 0.05, top_z), dark)
    room.box(wall, (x1 - 0.17, -depth / 2, 0.36), (0.34, depth - 0.04, 0.7), pine)
    for k in range(3):
        z = 0.14 + 0.225 * k
        room.box(
            wall,
            (x1 - 0.17, -depth + 0.01, z),
            (0.3, 0.02, 0.2),
            wood((0.66, 0.48, 0.3), rng),
            skip="back",
            casts=False,
        )
        room.box(wall, (x1 - 0.17, -depth - 0.012, z + 0.03), (0.1, 0.02, 0.018), dark, casts=False)
    surface = top_z + 0.0175
    room.box(
        wall,
        (middle - 0.12, -0.3, surface + 0.009),
        (0.36, 0.25, 0.018),
        dark,
        faces={"top": paint(art.alphabet, rng)},
        yaw=0.1,
    )
    screen = {"front": paint(art.laptop, rng)}
    room.box(wall, (middle - 0.12, -0.16, surface + 0.13), (0.36, 0.012, 0.25), dark, faces=screen, yaw=0.1, tilt=-0.25)
    room.cylinder(
        wall,
        (x0 + 0.12, -0.2, surface),
        0.045,
        0.12,
        painted((0.8, 0.75, 0.6), rng, 80),
        top=painted((0.1, 0.1, 0.1), rng),
    )
    for k in range(5):
        stick = painted(jitter((0.7, 0.4, 0.2), 0.5, rng), rng)
        room.box(
            wall,
            (x0 + 0.1 + 0.012 * k, -0.2 + 0.01 * (k % 3), surface + 0.15),
            (0.008, 0.008, 0.14),
            stick,
            roll=0.15 * (k - 2),
            casts=False,
        )
    level = surface
    for _ in range(5):
        t = rng.uniform(0.02, 0.04)
        _book(room, wall, (x1 - 0.2, -0.25, level + t / 2), (0.22, 0.16, t), lying=True, yaw=rng.normal(0, 0.2))
        level += t
    for _ in range(4):
        spot = (rng.uniform(x0 + 0.2, x1 - 0.4), -0.5 + rng.uniform(0, 0.05), surface + 0.002)
        room.box(
            wall, spot, (0.2, 0.14, 0.002), paint(art.chart, rng), yaw=rng.normal(0, 0.5), casts=False, skip=ALL_BUT_TOP
        )
    _chair(room, Place.at(4.35, 4.05, 0, 0.35), (0.25, 0.33, 0.42))


def _east(room: Room) -> None:
    rng, wall = room.rng, Place.at(6, 5, 0, EAST)
    y0, y1 = 5 - WINDOW_Y[1], 5 - WINDOW_Y[0]
    z0, z1 = WINDOW_Z
    mid, width, height = (y0 + y1) / 2, y1 - y0, z1 - z0
    room.panel(
        np.array([9.5, 6.9, 4.6]),
        np.array([0, -9.0, 0]),
        np.array([0, 0, -6.4]),
        view_outside(9.0, 6.4, rng),
        is_lit=False,
    )
    white = painted((0.86, 0.85, 0.82), rng)
    for x, z, sx, sz in (
        (mid, z1 - 0.03, width, 0.06),
        (mid, z0 + 0.03, width, 0.06),
        (y0 + 0.03, (z0 + z1) / 2, 0.06, height),
        (y1 - 0.03, (z0 + z1) / 2, 0.06, height),
        (mid, (z0 + z1) / 2, 0.05, height),
        (mid, z0 + 0.68 * height, width, 0.04),
    ):
        room.box(wall, (x, 0.03, z), (sx, 0.06, sz), white, casts=False, skip="")
    room.box(wall, (mid, -0.06, z0 - 0.015), (width + 0.16, 0.2, 0.03), wood((0.68, 0.52, 0.36), rng), skip="")
    sill = z0
    _plant(room, Place.at(5.93, 3.0, sill), 0.07, 0.12, 26, 0.3)
    _plant(room, Place.at(5.93, 1.8, sill), 0.06, 0.1, 20, 0.22)
    room.cylinder(
        wall, (mid + 0.1, -0.07, sill), 0.05, 0.2, painted((0.3, 0.45, 0.6), rng, 90), top=painted((0.1, 0.1, 0.1), rng)
    )
    inks: tuple[Color, Color] = ((0.62, 0.28, 0.2), (0.9, 0.78, 0.55))
    for side in (y0 - 0.18, y1 + 0.18):
        _curtain(room, wall, side, 0.42, 2.42, fabric(inks[0], rng, inks[1]))
    room.box(wall, (mid, -0.09, 2.44), (width + 0.95, 0.025, 0.025), wood((0.3, 0.2, 0.13), rng), casts=False, skip="")
    for k in range(16):
        x = mid - 0.6 + 0.08 * k
        room.box(wall, (x, -0.06, 0.42), (0.062, 0.09, 0.58), painted((0.82, 0.81, 0.77), rng, 3), casts=k % 4 == 0)
    _frame(room, wall, 0.68, 1.62, 0.6, 0.74, art.harbour, (0.5, 0.36, 0.2))
    _frame(room, wall, 4.35, 1.75, 0.56, 0.7, art.glass, (0.13, 0.12, 0.12))
    _sideboard(room, wall, 4.3)


def _curtain(room: Room, wall: Place, x: float, width: float, top: float, cloth: Material) -> None:
    """Folds: narrow strips along a wave, cut out of one piece of cloth."""
    n = 14
    image = cloth(width * 1.3, top - 0.06)
    cuts = np.round(np.linspace(0, image.shape[1], n + 1)).astype(int)
    xs = x + np.linspace(-width / 2, width / 2, n + 1)
    ys = -0.09 + 0.04 * np.cos(np.arange(n + 1) * np.pi * 0.55 + x)
    for k in range(n):
        a, b = wall.point(xs[k], ys[k], top), wall.point(xs[k + 1], ys[k + 1], top)
        room.panel(a, b - a, -(top - 0.06) * UP, image[:, cuts[k] : cuts[k + 1]])
    room.boxes.append(
        Box(wall.point(x, -0.09, top / 2 + 0.03), np.array([width / 2, 0.03, top / 2 - 0.03]), wall.rotation)
    )


def _sideboard(room: Room, wall: Place, x: float) -> None:
    rng = room.rng
    walnut = wood((0.38, 0.25, 0.17), rng)
    room.box(wall, (x, -0.21, 0.42), (1.1, 0.4, 0.66), walnut)
    for dx in (-0.27, 0.27):
        door = wood(jitter((0.45, 0.3, 0.2), 0.05, rng), rng)
        room.box(wall, (x + dx, -0.42, 0.42), (0.5, 0.02, 0.58), door, skip="back", casts=False)
        room.box(wall, (x + dx * 0.2, -0.44, 0.45), (0.02, 0.02, 0.12), painted((0.8, 0.7, 0.4), rng), casts=False)
    for dx in (-0.48, 0.48):
        room.box(wall, (x + dx, -0.2, 0.045), (0.05, 0.3, 0.09), painted((0.1, 0.1, 0.1), rng))
    top = 0.75
    speaker = {"front": fabric((0.22, 0.22, 0.23), rng, (0.35, 0.35, 0.37))}
    room.box(wall, (x - 0.35, -0.2, top + 0.15), (0.2, 0.2, 0.3), wood((0.5, 0.34, 0.2), rng), faces=speaker, yaw=-0.15)
    room.cylinder(
        wall, (x + 0.3, -0.22, top), 0.075, 0.17, painted((0.85, 0.8, 0.7), rng, 150), top=painted((0.2, 0.2, 0.2), rng)
    )
    shade = fabric((0.93, 0.84, 0.62), rng, (0.75, 0.55, 0.3))
    room.cylinder(wall, (x + 0.3, -0.22, top + 0.2), 0.15, 0.2, shade, is_lit=False)
    room.box(
        wall,
        (x, -0.24, top + 0.06),
        (0.26, 0.2, 0.12),
        brushed((0.6, 0.3, 0.25), [(0.9, 0.8, 0.6), (0.2, 0.3, 0.35)], rng),
        yaw=0.3,
    )


def _south(room: Room) -> None:
    rng, wall = room.rng, Place.at(6, 0, 0, SOUTH)
    _sofa(room, wall, 2.75)
    _frame(room, wall, 1.85, 1.72, 0.62, 0.62, art.blocks, (0.1, 0.1, 0.11))
    _frame(room, wall, 2.78, 1.78, 0.8, 0.58, art.chart, (0.55, 0.42, 0.25))
    _frame(room, wall, 3.68, 1.7, 0.52, 0.7, art.portrait, (0.62, 0.5, 0.22))
    _floor_lamp(room, Place.at(0.55, 0.5))
    _plant(room, Place.at(5.55, 0.45), 0.19, 0.4, 60, 1.1)
    room.box(wall, (1.05, -0.2, 0.27), (0.42, 0.36, 0.5), wood((0.6, 0.42, 0.26), rng))
    _book(room, wall, (1.05, -0.2, 0.54), (0.22, 0.16, 0.035), lying=True, yaw=0.3)
    _book(room, wall, (1.07, -0.2, 0.57), (0.18, 0.14, 0.025), lying=True, yaw=-0.4)
    room.box(wall, (4.95, -0.2, 1.35), (0.7, 0.18, 0.025), wood((0.4, 0.27, 0.17), rng), skip="")
    for k in range(4):
        tint: Color = jitter((0.5, 0.5, 0.4), 0.5, rng)
        room.cylinder(
            wall,
            (4.7 + 0.16 * k, -0.2, 1.3625),
            0.045,
            rng.uniform(0.1, 0.22),
            painted(tint, rng, 120),
            top=painted((0.2, 0.2, 0.2), rng),
        )


def _sofa(room: Room, wall: Place, x: float) -> None:
    rng, w, d = room.rng, 2.1, 0.88
    cloth = fabric((0.3, 0.38, 0.4), rng, (0.42, 0.5, 0.5))
    room.box(wall, (x, -d / 2 - 0.04, 0.22), (w, d, 0.28), cloth)
    room.box(wall, (x, -0.16, 0.56), (w, 0.24, 0.5), cloth, tilt=0.08)
    for dx in (-w / 2 - 0.1, w / 2 + 0.1):
        room.box(wall, (x + dx, -d / 2 - 0.04, 0.34), (0.2, d, 0.52), cloth)
    for k in range(3):
        room.box(wall, (x + (k - 1) * 0.69, -d / 2 - 0.13, 0.43), (0.67, d - 0.2, 0.15), cloth, yaw=rng.normal(0, 0.01))
    pillows: list[tuple[float, Material]] = [
        (-0.82, brushed((0.85, 0.65, 0.3), [(0.3, 0.2, 0.15), (0.95, 0.9, 0.8)], rng)),
        (-0.42, botanical((0.88, 0.84, 0.75), [(0.2, 0.35, 0.4), (0.7, 0.3, 0.25)], rng, 220)),
        (0.75, plaid((0.7, 0.3, 0.25), [(0.15, 0.15, 0.2), (0.9, 0.85, 0.7)], rng)),
    ]
    for dx, cover in pillows:
        room.box(wall, (x + dx, -0.36, 0.7), (0.42, 0.12, 0.4), cover, tilt=0.32, yaw=rng.normal(0, 0.12))
    blanket = plaid((0.8, 0.75, 0.62), [(0.3, 0.4, 0.5), (0.65, 0.35, 0.25), (0.95, 0.92, 0.85)], rng)
    room.box(wall, (x + 0.3, -d / 2 - 0.1, 0.515), (0.5, d - 0.14, 0.02), blanket, casts=False)
    room.box(wall, (x + 0.3, -d - 0.05, 0.36), (0.5, 0.02, 0.32), blanket, casts=False)


def _floor_lamp(room: Room, place: Place) -> None:
    rng = room.rng
    room.cylinder(
        place, (0, 0, 0), 0.15, 0.03, painted((0.15, 0.15, 0.16), rng), top=painted((0.18, 0.18, 0.18), rng, 30)
    )
    room.cylinder(place, (0, 0, 0.03), 0.014, 1.45, painted((0.6, 0.5, 0.3), rng), sides=8, casts=False)
    shade = botanical((0.95, 0.88, 0.7), [(0.75, 0.6, 0.35), (0.65, 0.4, 0.25)], rng, 130)
    room.cylinder(place, (0, 0, 1.45), 0.21, 0.3, shade, is_lit=False, casts=False)


def _west(room: Room) -> None:
    rng, wall = room.rng, Place.at(0, 0, 0, WEST)
    _door(room, wall, 1.35)
    _frame(room, wall, 2.35, 1.62, 0.44, 0.62, art.calendar, (0.3, 0.3, 0.3))
    _dresser(room, wall, 3.35)
    _frame(room, wall, 3.35, 1.75, 0.72, 0.52, art.mountains, (0.35, 0.24, 0.15))
    _frame(room, wall, 2.36, 2.18, 0.3, 0.3, art.clock, (0.2, 0.14, 0.1))
    _frame(room, wall, 4.15, 1.85, 0.36, 0.5, art.alphabet, (0.15, 0.15, 0.15))
    _frame(room, wall, 4.62, 1.45, 0.4, 0.4, art.circles, (0.55, 0.2, 0.15))
    room.box(wall, (0.5, -0.02, 1.75), (0.5, 0.025, 0.1), wood((0.5, 0.34, 0.2), rng), skip="back")
    coat = fabric((0.28, 0.33, 0.26), rng, (0.4, 0.42, 0.3))
    room.box(wall, (0.38, -0.09, 1.3), (0.28, 0.1, 0.82), coat, yaw=0.1)
    room.box(
        wall, (0.66, -0.08, 1.48), (0.2, 0.09, 0.5), plaid((0.6, 0.2, 0.2), [(0.2, 0.2, 0.3), (0.85, 0.8, 0.7)], rng)
    )
    room.box(wall, (4.6, -0.25, 0.2), (0.5, 0.42, 0.38), cardboard(rng), faces={"top": cardboard(rng)})
    room.box(wall, (4.62, -0.24, 0.52), (0.36, 0.32, 0.26), cardboard(rng), yaw=-0.15, faces={"top": cardboard(rng)})


def _door(room: Room, wall: Place, x: float) -> None:
    rng, w, h = room.rng, 0.86, 2.05
    leaf_wood = wood((0.6, 0.43, 0.28), rng)
    room.box(wall, (x, -0.012, h / 2), (w, 0.024, h), leaf_wood, skip="back bottom")
    for dx, z, sx, sz in ((-0.2, 1.5, 0.3, 0.8), (0.2, 1.5, 0.3, 0.8), (-0.2, 0.55, 0.3, 0.75), (0.2, 0.55, 0.3, 0.75)):
        room.box(wall, (x + dx, -0.03, z), (sx, 0.012, sz), wood((0.66, 0.48, 0.32), rng), skip="back")
    for dx, z, sx, sz in (
        (-w / 2 - 0.04, h / 2, 0.08, h),
        (w / 2 + 0.04, h / 2, 0.08, h),
        (0, h + 0.04, w + 0.16, 0.08),
    ):
        room.box(wall, (x + dx, -0.02, z), (sx, 0.04, sz), painted((0.83, 0.8, 0.73), rng, 2), skip="back")
    room.box(wall, (x + 0.37, -0.035, 1.02), (0.05, 0.01, 0.2), painted((0.75, 0.66, 0.4), rng), casts=False)
    room.box(wall, (x + 0.33, -0.07, 1.05), (0.12, 0.02, 0.02), painted((0.8, 0.7, 0.42), rng), casts=False)
    room.box(wall, (x + 0.62, -0.01, 1.15), (0.08, 0.02, 0.08), painted((0.9, 0.9, 0.87), rng, 9), casts=False)
    notice = botanical((0.9, 0.88, 0.8), [(0.5, 0.3, 0.2), (0.2, 0.3, 0.4)], rng, 900)
    room.box(wall, (x + 0.02, -0.038, 1.62), (0.2, 0.004, 0.28), notice, casts=False)


def _dresser(room: Room, wall: Place, x: float) -> None:
    rng, w, d, h = room.rng, 1.0, 0.44, 0.92
    room.box(wall, (x, -d / 2, h / 2), (w, d, h), painted((0.42, 0.5, 0.47), rng, 3))
    for k in range(3):
        for dx in (-0.24, 0.24):
            z = 0.17 + 0.28 * k
            room.box(
                wall,
                (x + dx, -d - 0.01, z),
                (0.44, 0.02, 0.24),
                painted((0.47, 0.55, 0.5), rng, 3),
                skip="back",
                casts=False,
            )
            room.box(
                wall, (x + dx, -d - 0.03, z + 0.02), (0.09, 0.025, 0.02), painted((0.75, 0.65, 0.4), rng), casts=False
            )
    room.box(wall, (x, -d / 2, h + 0.012), (w + 0.04, d + 0.03, 0.025), wood((0.52, 0.36, 0.22), rng))
    top = h + 0.025
    room.cylinder(
        wall,
        (x - 0.33, -0.2, top),
        0.07,
        0.24,
        botanical((0.85, 0.87, 0.88), [(0.15, 0.25, 0.55)], rng, 900),
        top=painted((0.1, 0.1, 0.1), rng),
    )
    for k in range(3):
        size = (0.3 - 0.06 * k, 0.2 - 0.03 * k, 0.1)
        box_cover = brushed(jitter((0.6, 0.5, 0.4), 0.18, rng), [(0.85, 0.8, 0.7), (0.3, 0.25, 0.2)], rng)
        room.box(wall, (x + 0.05, -0.2, top + 0.05 + 0.1 * k), size, box_cover, yaw=0.15 * k)
    room.box(
        wall,
        (x + 0.37, -0.15, top + 0.11),
        (0.16, 0.015, 0.22),
        wood((0.4, 0.3, 0.2), rng),
        faces={"front": paint(art.bouquet, rng)},
        tilt=-0.15,
        yaw=-0.1,
    )
    _book(room, wall, (x + 0.34, -0.3, top + 0.02), (0.2, 0.14, 0.04), lying=True, yaw=0.3)


# ---- the middle of the room --------------------------------------------------------------------------------------


def _table(room: Room) -> None:
    rng, place = room.rng, Place.at(4.05, 2.75, 0, 0.08)
    w, d, z = 1.35, 0.8, 0.74
    ash = wood((0.62, 0.42, 0.25), rng)
    room.box(place, (0, 0, z - 0.0175), (w, d, 0.035), ash, skip="")
    for sx in (-1, 1):
        for sy in (-1, 1):
            room.box(place, (sx * (w / 2 - 0.06), sy * (d / 2 - 0.06), (z - 0.035) / 2), (0.06, 0.06, z - 0.035), ash)
    for sy in (-1, 1):
        room.box(place, (0, sy * (d / 2 - 0.06), z - 0.08), (w - 0.15, 0.02, 0.09), ash, casts=False)
    runner = fabric((0.72, 0.68, 0.58), rng, (0.5, 0.2, 0.18))
    room.box(place, (0.05, 0, z + 0.002), (0.42, d, 0.004), runner, casts=False)
    _table_things(room, place, z)
    _chair(room, Place.at(3.75, 3.5, 0, 0.15), (0.6, 0.25, 0.2))
    _chair(room, Place.at(4.4, 2.05, 0, np.pi + 0.2), (0.75, 0.6, 0.3))
    _chair(room, Place.at(3.05, 2.85, 0, np.pi / 2 + 0.25), (0.3, 0.42, 0.3))


def _table_things(room: Room, place: Place, z: float) -> None:
    rng = room.rng
    room.cylinder(
        place,
        (0.05, 0.05, z + 0.004),
        0.11,
        0.07,
        botanical((0.8, 0.78, 0.7), [(0.6, 0.2, 0.15), (0.2, 0.3, 0.3)], rng, 700),
        top=painted((0.5, 0.35, 0.2), rng, 300),
    )
    for k in range(6):
        a = k * 1.1
        fruit = painted(jitter([(0.8, 0.25, 0.15), (0.85, 0.65, 0.15), (0.5, 0.6, 0.2)][k % 3], 0.1, rng), rng, 200)
        room.box(
            place,
            (0.05 + 0.05 * np.cos(a), 0.05 + 0.05 * np.sin(a), z + 0.09),
            (0.055, 0.055, 0.055),
            fruit,
            yaw=a,
            tilt=0.5,
            roll=0.4,
            casts=False,
            skip="",
        )
    for x, y, tint in (
        (-0.4, 0.2, (0.25, 0.4, 0.55)),
        (0.45, -0.15, (0.8, 0.5, 0.25)),
        (-0.28, -0.25, (0.85, 0.83, 0.78)),
    ):
        room.cylinder(place, (x, y, z), 0.04, 0.095, painted(tint, rng, 150), top=painted((0.2, 0.12, 0.08), rng))
        room.box(place, (x + 0.05, y, z + 0.05), (0.03, 0.012, 0.06), painted(tint, rng), casts=False, skip="")
    level = z
    for k in range(4):
        t = rng.uniform(0.018, 0.04)
        _book(
            room, place, (-0.47, -0.08, level + t / 2), (0.24 - 0.02 * k, 0.17, t), lying=True, yaw=rng.normal(0, 0.25)
        )
        level += t
    room.box(place, (0.48, 0.18, z + 0.1), (0.09, 0.09, 0.2), cardboard(rng), yaw=0.4)
    room.box(
        place,
        (0.34, 0.26, z + 0.07),
        (0.15, 0.06, 0.14),
        brushed((0.85, 0.8, 0.3), [(0.7, 0.2, 0.15), (0.2, 0.2, 0.5)], rng),
        yaw=-0.3,
    )
    room.cylinder(
        place,
        (-0.12, 0.27, z),
        0.035,
        0.26,
        painted((0.2, 0.35, 0.25), rng, 120),
        top=painted((0.1, 0.15, 0.1), rng),
        sides=12,
    )
    room.box(
        place,
        (0.3, -0.26, z + 0.002),
        (0.3, 0.21, 0.003),
        paint(art.chart, rng),
        yaw=0.3,
        casts=False,
        skip=ALL_BUT_TOP,
    )
    _plant(room, Place(place.point(-0.05, -0.2, z), place.rotation), 0.055, 0.09, 18, 0.2)


def _chair(room: Room, place: Place, color: Color) -> None:
    """A chair whose back is towards +y of its place."""
    rng, seat, w = room.rng, 0.46, 0.42
    frame = wood(color, rng)
    cushion = fabric(jitter((0.65, 0.58, 0.47), 0.2, rng, 0.15), rng, jitter((0.4, 0.25, 0.2), 0.3, rng))
    room.box(place, (0, 0, seat - 0.015), (w, w, 0.03), frame, skip="")
    room.box(place, (0, -0.01, seat + 0.02), (w - 0.04, w - 0.05, 0.04), cushion)
    for sx in (-1, 1):
        room.box(place, (sx * (w / 2 - 0.02), -w / 2 + 0.02, seat / 2), (0.035, 0.035, seat), frame)
        room.box(place, (sx * (w / 2 - 0.02), w / 2 - 0.02, 0.46), (0.035, 0.035, 0.92), frame)
    for z in (0.58, 0.72, 0.86):
        room.box(place, (0, w / 2 - 0.02, z), (w - 0.05, 0.02, 0.08), frame, skip="")
    room.box(place, (0, -w / 2 + 0.02, 0.2), (w - 0.05, 0.02, 0.03), frame, casts=False, skip="")


def _floor_things(room: Room) -> None:
    rng = room.rng
    place = Place.at(2.45, 2.0, 0, 0.12)
    room.box(
        place,
        (0, 0, 0.006),
        (2.3, 1.6, 0.012),
        fabric((0.6, 0.5, 0.35), rng),
        faces={"top": paint(rug, rng)},
        casts=False,
    )
    low = Place.at(2.6, 1.65, 0.012, -0.1)
    teak = wood((0.42, 0.26, 0.15), rng)
    room.box(low, (0, 0, 0.37), (0.9, 0.5, 0.03), teak, skip="")
    room.box(low, (0, 0, 0.15), (0.8, 0.42, 0.02), teak, skip="")
    for sx in (-1, 1):
        for sy in (-1, 1):
            room.box(low, (sx * 0.4, sy * 0.2, 0.18), (0.045, 0.045, 0.36), teak)
    room.box(
        low, (-0.2, 0.05, 0.387), (0.28, 0.21, 0.004), paint(art.handbill, rng), yaw=0.4, casts=False, skip=ALL_BUT_TOP
    )
    room.box(
        low, (-0.12, -0.08, 0.392), (0.26, 0.2, 0.006), paint(art.harbour, rng), yaw=-0.2, casts=False, skip=ALL_BUT_TOP
    )
    room.cylinder(
        low, (0.25, 0.08, 0.385), 0.04, 0.09, painted((0.7, 0.3, 0.25), rng, 150), top=painted((0.2, 0.1, 0.07), rng)
    )
    room.cylinder(
        low,
        (0.1, 0.12, 0.385),
        0.06,
        0.03,
        botanical((0.85, 0.8, 0.7), [(0.2, 0.3, 0.5)], rng, 900),
        top=painted((0.7, 0.6, 0.4), rng, 300),
    )
    _book(room, low, (0.28, -0.1, 0.4), (0.2, 0.15, 0.03), lying=True, yaw=0.5)
    for k in range(3):
        _book(room, low, (-0.15 + 0.02 * k, 0, 0.18 + 0.035 * k), (0.26, 0.19, 0.035), lying=True, yaw=0.15 * k)
    room.box(
        Place.at(1.1, 2.9, 0, 0.5),
        (0, 0, 0.19),
        (0.42, 0.42, 0.38),
        plaid((0.35, 0.42, 0.5), [(0.9, 0.85, 0.75), (0.65, 0.3, 0.25)], rng),
    )
    room.cylinder(
        Place.at(5.2, 1.15),
        (0, 0, 0),
        0.16,
        0.32,
        fabric((0.7, 0.58, 0.4), rng, (0.4, 0.28, 0.18)),
        top=fabric((0.3, 0.25, 0.2), rng, (0.8, 0.7, 0.5)),
    )
    pendant = botanical((0.9, 0.86, 0.75), [(0.55, 0.5, 0.4), (0.6, 0.35, 0.25)], rng, 160)
    room.cylinder(Place.at(2.85, 2.45), (0, 0, 2.12), 0.22, 0.2, pendant, is_lit=False, casts=False, sides=20)
    room.box(Place.at(2.85, 2.45), (0, 0, 2.5), (0.012, 0.012, 0.4), painted((0.1, 0.1, 0.1), rng), casts=False)


def _plant(room: Room, place: Place, radius: float, height: float, leaves: int, spread: float) -> None:
    """A pot with leaves of several sizes on unseen stems, drooping outwards."""
    rng = room.rng
    pot = brushed(jitter((0.68, 0.4, 0.28), 0.15, rng), [(0.85, 0.75, 0.6), (0.4, 0.22, 0.16)], rng)
    room.cylinder(place, (0, 0, 0), radius, height, pot, top=painted((0.16, 0.11, 0.08), rng, 300))
    kinds = [leaf_cutout(rng, jitter((0.24, 0.44, 0.2), 0.2, rng)) for _ in range(5)]
    for k in range(leaves):
        yaw, rise = k * 2.399963 + rng.normal(0, 0.3), rng.uniform(0.05, 1.0)
        out = spread * 0.36 * (1 - 0.6 * rise) * rng.uniform(0.3, 1)
        center = place.point(out * np.cos(yaw), out * np.sin(yaw), height + rise * spread * 0.8)
        length = spread * rng.uniform(0.28, 0.46)
        pitch = rng.uniform(-0.5, 0.7)
        along = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
        across = np.cross(along, UP)
        roll = rng.normal(0, 0.6)
        across = across / np.linalg.norm(across) * np.cos(roll) + UP * np.sin(roll)
        image, mask = kinds[k % 5]
        center = np.minimum(center, ROOM - 0.06 - 0.5 * np.abs(along) * length)
        center = np.maximum(center, 0.06 + 0.5 * np.abs(along) * length)
        room.cutout(center, along * length, across * length * 0.38, image, mask)
    foliage = place.point(0, 0, height + 0.4 * spread)
    room.boxes.append(Box(foliage, np.array([0.16, 0.16, 0.28]) * spread, place.rotation))

"""A small world to torture SLAM in, and stand-ins for all that it relies on, which fail in every way they can.

Everything is drawn from seeds. `Trouble` names what can go wrong; `Troubles` decides when each kind strikes, and
counts. The images are as small as can be: the frame's number, as in `oracle`, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import count
from typing import Any, ClassVar

import numpy as np
from failing_solvers import NoNumbers, SingularSystem, solver_that
from numpy.typing import NDArray
from oracle import (
    BIT_PX,
    FRAME_NS,
    INDEX_BITS,
    OracleEncoded,
    OraclePredictor,
    OracleTracker,
    OracleWorld,
    look_along,
    room_points,
)
from scipy.spatial.transform import RigidTransform, Rotation

from relocalizer.features import LocalFeatures
from relocalizer.geometry import translation_of
from relocalizer.images import Image
from relocalizer.interfaces import NoEstimate, PairEstimate
from relocalizer.intrinsics_correction import CorrectionStep
from slam.evaluation.trajectory import Trajectory
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
from slam.loop_closing.pose_graph import Solution
from slam.map.frames import Frame
from slam.map.keyframe_graph import KeyframeGraph
from slam.mapping import global_refinement as final_refinement
from slam.mapping.bundle import AdjustedBundle, Bundle
from slam.mapping.lens_examination import LensFinding
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster

ROOMS, APART = 3, 100.0  # places that see nothing of one another


class Trouble(StrEnum):
    """All that goes wrong. The first kinds are what the camera does, and hold for some frames on end."""

    BLACKOUT = "nothing is seen"
    FEW_POINTS = "no more than 0 to 20 points are seen"
    TELEPORT = "the camera is somewhere else at once"
    SAME_IMAGE = "the same image comes again and again"
    STILL = "the camera does not move"
    TURN = "the camera only turns"
    NO_NOISE = "pixels are exact"
    HUGE_NOISE = "pixels are off by up to hundreds"
    TIME_GAP = "time jumps, by up to years"
    EMPTY_IMAGE = "images have no pixels"
    WIDE_STEPS = "the camera moves too fast to be followed"

    NO_ESTIMATE = "the predictor gives no estimate"
    NO_DIRECTION = "the predictor gives no direction"
    WRONG_POSE = "the predictor is wrong and sure of it"
    NO_CONFIDENCE = "the predictor is right and not sure of it"
    EXTREME_SIGMAS = "the predictor's sigmas are nearly 0 or infinite"
    ESTIMATE_NO_POSE = "the predictor's estimate is not finite, or no rotation and unit direction"
    WRONG_PLACE = "an image looks like another place"
    PLACE_NOT_FINITE = "the descriptor of a place is not finite"

    TRACKS_LOST = "the tracker loses all points"
    TRACKS_WRONG = "the tracker follows points to others"
    TRACKS_NOT_FINITE = "tracked pixels are not finite, or far outside"
    FEATURES_NOT_FINITE = "detected features are not finite, or far outside"
    TWINS = "features lie on one another and look the same"

    GRAPH_SOLVER_FAILS = "the graph's linear system is singular"
    GRAPH_NOT_FINITE = "the graph's solution is not finite"
    BUNDLE_SOLVER_FAILS = "the bundle adjustment's linear system is singular"
    BUNDLE_NOT_FINITE = "the bundle adjustment's result is not finite"
    BUNDLE_COLLAPSES = "the bundle adjustment shrinks the map, or puts it behind the cameras"
    LENS_BENDS = "the lens is found to bend, or to be longer"
    LENS_NOT_FINITE = "the lens that is found is none"

    STRANGERS = "false loops, each in its own way"
    CLUSTERS = "false loops that agree with one another"
    SLIPS = "loops that are a little off"
    WAITING_LOOPS = "more loops wait than are remembered"

    SHORT_RUNS = "runs of 0 to 3 frames"
    ENDS_LOST = "the run ends while the camera is lost"
    ENDS_WAITING = "the run ends before there is a map"
    INTERRUPTED = "the run is interrupted"
    CONTINUED = "a run continues in a map"
    LOCALIZE_ONLY = "a run is only located in a map"
    SAVED = "a map is saved and loaded"
    MERGED = "two maps are merged"
    BEGUN_ANEW = "a map is begun apart from the first"
    JOINED = "maps that were begun apart become one"


CAMERA_TROUBLE = tuple(Trouble)[:11]


@dataclass(eq=False)
class Troubles:
    """Which kinds of trouble there are, how often each strikes when it can, and how often it did."""

    rng: np.random.Generator
    rates: dict[Trouble, float]
    happened: Counter[Trouble] = field(default_factory=Counter)
    quiet: bool = False

    def strikes(self, kind: Trouble) -> bool:
        if self.quiet or self.rng.random() >= self.rates.get(kind, 0.0):
            return False
        self.happened[kind] += 1
        return True

    def has(self, kind: Trouble) -> bool:
        return kind in self.rates


# --- the camera ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """An image and when it comes.

    Attributes:
        number: of the image; shots of the same number show the very same image.
        pose: world_from_cam.
        sees: at most so many points.
        wait_ns: since the shot before.
        empty: an image without a pixel.
        trouble: that this shot is part of.
    """

    number: int
    pose: RigidTransform
    sees: int = 10_000
    noise_px: float = 0.3
    wait_ns: int = FRAME_NS
    empty: bool = False
    trouble: Trouble | None = None


class TortureWorld(OracleWorld):
    """The oracle's world, with images that are shown as each shot wants it."""

    def __init__(self, points: NDArray[np.float64], seed: int) -> None:
        super().__init__([], points, seed=seed)
        self.poses: dict[int, RigidTransform] = {}  # by the number of the image
        self.shots: dict[int, Shot] = {}
        # A map keeps descriptors in bytes, as those of real features are: nowhere negative.
        self.descriptors **= 2
        self.descriptors /= np.linalg.norm(self.descriptors, axis=1, keepdims=True)

    def show(self, shot: Shot) -> None:
        assert shot.number < 1 << INDEX_BITS
        self.shots[shot.number], self.poses[shot.number] = shot, shot.pose
        if shot.sees == 0 or shot.empty:
            self.blind |= {shot.number}

    def visible(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if index not in self._cache:
            self.pixel_noise = self.shots[index].noise_px
            seen, pixels = super().visible(index)
            inside = self.camera.contains(pixels.astype(np.float64), margin=2)  # noise is as large as the image
            seen, pixels = seen[inside], pixels[inside]
            chosen = np.random.default_rng((self.seed, 9, index)).permutation(len(seen))[: self.shots[index].sees]
            self._cache[index] = seen[np.sort(chosen)], pixels[np.sort(chosen)]
        return self._cache[index]

    def image(self, number: int, height: int = BIT_PX, width: int = BIT_PX * INDEX_BITS) -> Image:
        image = np.zeros((height, width, 3), np.uint8)
        bits = (number >> np.arange(INDEX_BITS)) & 1
        image[:BIT_PX, : INDEX_BITS * BIT_PX] = np.repeat(255 * bits, BIT_PX)[None, :, None].astype(np.uint8)
        return image

    def frames_of(self, shots: Sequence[Shot]) -> Iterator[Frame]:
        """The stream that a camera gives; indices have gaps where time has."""
        index, time_ns = -1, 0
        for shot in shots:
            self.show(shot)
            index, time_ns = index + max(1, min(shot.wait_ns // FRAME_NS, 1000)), time_ns + shot.wait_ns
            image = (
                np.zeros((0, 0, 3), np.uint8)
                if shot.empty
                else self.image(shot.number, self.camera.height, self.camera.width)
            )
            yield Frame(index=index, timestamp_ns=time_ns, image=image, camera=self.camera)


def truth_of(shots: Sequence[Shot]) -> Trajectory:
    times = np.cumsum([shot.wait_ns for shot in shots], dtype=np.int64)
    return Trajectory(times, np.array([shot.pose.as_matrix() for shot in shots]).reshape(-1, 4, 4))


def torture_points(rng: np.random.Generator, kind: str, each: int = 650) -> NDArray[np.float64]:
    """Points (N, 3) of all rooms: on their walls, on one wall alone, or all over them, in the camera's way."""
    rooms = []
    for room in range(ROOMS):
        points = room_points(rng, each)
        if kind == "crowd":
            points = rng.uniform([-3, -2.5, 0], [3, 2.5, 3], (each, 3))
        elif kind == "wall":
            points[:, 0] = 3.0
        rooms.append(points + np.array([APART * room, 0.0, 0.0]))
    return np.concatenate(rooms)


class Walk:
    """Where a camera goes: round and round in rooms, into trouble now and then."""

    def __init__(self, rng: np.random.Generator, troubles: Troubles) -> None:
        self._rng = rng
        self._troubles = troubles
        self._numbers = count()
        self._room, self._along, self._turned = 0, rng.uniform(-1.2, -0.6), 0.0  # before the wall that all rooms have
        self._step = 0.03

    def shots(self, frames: int) -> list[Shot]:
        """So many, or as many as it takes for all kinds of trouble to come; an ordinary stretch is first."""
        kinds = [kind for kind in CAMERA_TROUBLE if self._troubles.has(kind)]
        shots, left = self.ordinary(25), [*kinds]
        while len(shots) < frames or left:
            left = left or [*kinds]
            if left:
                shots += self._trouble(left.pop())
            shots += self._ordinary()
        return shots

    def ordinary(self, frames: int) -> list[Shot]:
        return [self._shot() for _ in range(frames)]

    def apart_and_back(self, frames: int) -> list[Shot]:
        """A stretch, another one out of its sight after a blackout, and the way back to the first."""
        self._step = 0.03
        first = [*self.ordinary(frames // 2), *self.of(Trouble.BLACKOUT, 8)]
        self._along += 2.0
        other = self.ordinary(frames // 2)
        self._step = -0.05
        return [*first, *other, *self.ordinary(65)]

    def there_and_back(self) -> list[Shot]:
        self._step = 0.04
        there = self.ordinary(30)
        self._step = -0.04
        return [*there, *self.ordinary(30)]

    def of(self, kind: Trouble, frames: int) -> list[Shot]:
        shots: list[Shot] = []
        while len(shots) < frames:
            shots += self._trouble(kind)
        return shots[:frames]

    def _ordinary(self) -> list[Shot]:
        self._step = 0.03 * self._rng.choice([0.5, 1.0, 1.0, 1.5, -1.0])
        return self.ordinary(int(self._rng.integers(4, 20)))

    def _trouble(self, kind: Trouble) -> list[Shot]:
        rng, frames = self._rng, int(self._rng.integers(1, 16))
        return [replace(shot, trouble=kind) for shot in self._acts[kind](self, rng, frames)]

    def _blackout(self, rng: np.random.Generator, frames: int) -> Iterator[Shot]:
        yield from (replace(self._shot(), sees=0) for _ in range(frames))

    def _min_landmarks(self, rng: np.random.Generator, frames: int) -> Iterator[Shot]:
        for _ in range(frames):
            yield replace(self._shot(), sees=int(rng.choice([0, 1, 2, 3, 5, 8, 12, 20])))

    def _teleport(self, rng: np.random.Generator, frames: int) -> Iterator[Shot]:
        self._room, self._along = int(rng.integers(ROOMS)), rng.uniform(0, 2 * np.pi)
        yield from self.ordinary(2 * frames)

    def _same(self, rng: np.random.Generator, frames: int) -> Iterator[Shot]:
        yield from [self._shot()] * (frames + 1)

    def _still(self, rng: np.random.Generator, frames: int) -> Iterator[Shot]:
        self._step, step = 0.0, self._step
        yield from self.ordinary(frames)
        self._step = step

    def _turn(self, rng: np.random.Generator, frames: int) -> Iterator[Shot]:
        self._step, step, by = 0.0, self._step, rng.choice([-0.1, -0.03, 0.03, 0.1])
        for n in range(2 * frames):
            self._turned += by if n < frames else -by
            yield self._shot()
        self._step = step

    def _clean(self, rng: np.random.Generator, frames: int) -> Iterator[Shot]:
        yield from (replace(self._shot(), noise_px=0.0) for _ in range(frames))

    def _noisy(self, rng: np.random.Generator, frames: int) -> Iterator[Shot]:
        size = float(rng.choice([3.0, 30.0, 300.0]))
        yield from (replace(self._shot(), noise_px=size) for _ in range(frames))

    def _gap(self, rng: np.random.Generator, frames: int) -> Iterator[Shot]:
        yield replace(self._shot(), wait_ns=int(rng.choice([1, 10**9, 10**12, 3 * 10**16])))

    def _empty(self, rng: np.random.Generator, frames: int) -> Iterator[Shot]:
        yield from (replace(self._shot(), empty=True) for _ in range(1 + frames // 4))

    def _wide(self, rng: np.random.Generator, frames: int) -> Iterator[Shot]:
        self._step, step = 0.3, self._step
        yield from self.ordinary(frames)
        self._step = step

    _acts: ClassVar[dict[Trouble, Callable[[Walk, np.random.Generator, int], Iterator[Shot]]]] = dict(
        zip(
            CAMERA_TROUBLE,
            (_blackout, _min_landmarks, _teleport, _same, _still, _turn, _clean, _noisy, _gap, _empty, _wide),
            strict=True,
        )
    )

    def _shot(self) -> Shot:
        self._along += self._step
        s = self._along
        near = 1.0 + 0.1 * np.sin(0.37 * s)  # no lap is like another
        center = np.array([1.2 * near * np.cos(s), 0.9 * near * np.sin(s), 1.4 + 0.1 * np.sin(3 * s)])
        s += 0.5 + self._turned
        outward = np.array([np.cos(s), np.sin(s), 0.05 * np.sin(2 * s)])
        center[0] += APART * self._room
        return Shot(next(self._numbers), look_along(center, outward))


# --- the predictor ------------------------------------------------------------------------------------


def corrupted(value: Any, **fields: Any) -> Any:
    """A frozen value with fields that its own checks would not let in, as of a predictor with none."""
    wrong = replace(value)
    for name, content in fields.items():
        object.__setattr__(wrong, name, content)
    return wrong


class TroubledPredictor(OraclePredictor):
    def __init__(self, world: TortureWorld, troubles: Troubles) -> None:
        super().__init__(world)
        self._troubles = troubles

    def relate(self, pairs: Sequence[tuple[OracleEncoded, OracleEncoded]]) -> list[PairEstimate | NoEstimate]:
        return [self._troubled(answer) for answer in super().relate(pairs)]

    def describe(self, encoded: OracleEncoded) -> NDArray[np.float32]:
        troubles = self._troubles
        if troubles.strikes(Trouble.WRONG_PLACE):
            return super().describe(OracleEncoded(int(troubles.rng.choice([*self._world.poses]))))
        descriptor = super().describe(encoded)
        if troubles.strikes(Trouble.PLACE_NOT_FINITE):
            wrong = troubles.rng.choice(np.array([np.nan, np.inf, 0.0], np.float32))
            return np.full_like(descriptor, wrong)
        return descriptor

    def _troubled(self, answer: PairEstimate | NoEstimate) -> PairEstimate | NoEstimate:
        troubles, rng = self._troubles, self._troubles.rng
        if isinstance(answer, NoEstimate):
            return answer
        if troubles.strikes(Trouble.NO_ESTIMATE):
            return NoEstimate("9 matches, 20 needed")
        if troubles.strikes(Trouble.WRONG_POSE):
            direction = rng.normal(size=3)
            rotation = Rotation.random(rng=rng).as_matrix()
            direction /= np.linalg.norm(direction)
            answer = replace(answer, i_from_j_rotation=rotation, i_from_j_direction=direction, confidence=1.0)
        if troubles.strikes(Trouble.NO_CONFIDENCE):
            answer = replace(answer, confidence=float(rng.choice([0.0, 0.05, 0.3])))
        if troubles.strikes(Trouble.EXTREME_SIGMAS):
            sigma = float(rng.choice([1e-12, 1e12, np.inf]))
            answer = replace(answer, rotation_sigma_rad=sigma, direction_sigma_rad=sigma)
        if troubles.strikes(Trouble.NO_DIRECTION):
            answer = replace(answer, i_from_j_direction=None, direction_unknown="no parallax")
        if troubles.strikes(Trouble.ESTIMATE_NO_POSE):
            wrong: list[tuple[str, Any]] = [
                ("i_from_j_rotation", np.full((3, 3), np.nan)),
                ("i_from_j_rotation", np.zeros((3, 3))),
                ("i_from_j_direction", np.array([0.0, np.inf, 0.0])),
                ("i_from_j_direction", np.zeros(3)),
                ("i_from_j_direction", np.array([0.0, 5.0, 0.0])),
                ("confidence", np.nan),
                ("rotation_sigma_rad", np.nan),
                ("direction_sigma_rad", 0.0),
            ]
            name, content = wrong[rng.integers(len(wrong))]
            answer = corrupted(answer, **{name: content})
        return answer


# --- the tracker --------------------------------------------------------------------------------------


class TroubledTracker(OracleTracker):
    def __init__(self, world: TortureWorld, troubles: Troubles) -> None:
        super().__init__(world, max_features=150)
        self._troubles = troubles

    def detect(self, gray: Image) -> LocalFeatures:
        found, troubles, rng = super().detect(gray), self._troubles, self._troubles.rng
        if len(found) == 0:
            return found
        if troubles.strikes(Trouble.FEATURES_NOT_FINITE):
            pixels, descriptors, scales = found.pixels.copy(), found.descriptors.copy(), found.scales.copy()
            some = rng.random(len(found)) < rng.choice([0.1, 1.0])
            array = [pixels, descriptors, scales][rng.integers(3)]
            array[some] = rng.choice([np.nan, np.inf, -np.inf])
            pixels[:1] = 1e30
            return LocalFeatures(pixels, descriptors, scales)
        if troubles.strikes(Trouble.TWINS):
            pixels, descriptors = found.pixels.copy(), found.descriptors.copy()
            half = len(found) // 2
            pixels[:half], descriptors[:half] = pixels[0], descriptors[0]
            return LocalFeatures(pixels, descriptors, found.scales)
        return found

    def follow(
        self, before: Image, after: Image, pixels: NDArray[np.float32], guess: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        assert np.isfinite(guess).all()
        places, found = super().follow(before, after, pixels, guess)
        troubles, rng = self._troubles, self._troubles.rng
        if troubles.strikes(Trouble.TRACKS_LOST):
            return places, np.zeros(len(places), bool)
        if len(places) and troubles.strikes(Trouble.TRACKS_WRONG):
            some = rng.random(len(places)) < rng.choice([0.2, 0.6, 1.0])
            places = places.copy()
            places[some] = rng.permutation(places[some])
            return places, np.ones(len(places), bool)
        if len(places) and troubles.strikes(Trouble.TRACKS_NOT_FINITE):
            places = places.copy()
            some = rng.random(len(places)) < rng.choice([0.1, 0.5, 1.0])
            places[some] = rng.choice(np.array([np.nan, np.inf, -1e30, 1e30], np.float32))
            return places, np.ones(len(places), bool)
        return places, found


# --- the solvers --------------------------------------------------------------------------------------


class TroubledOptimizer:
    """The graph's optimizer, over a solver that fails; and one whose own numbers are none."""

    def __init__(self, troubles: Troubles, *, robust: bool) -> None:
        self._optimizer = GtsamOptimizer(robust=robust)
        self._troubles = troubles

    def optimize(self, graph: KeyframeGraph) -> Solution:
        troubles, how = self._troubles, nullcontext()
        if troubles.strikes(Trouble.GRAPH_SOLVER_FAILS):
            how = solver_that(SingularSystem)
        elif troubles.strikes(Trouble.GRAPH_NOT_FINITE):
            if troubles.rng.random() < 0.5:
                return self._wrong(self._optimizer.optimize(graph))
            how = solver_that(NoNumbers)
        with how:
            return self._optimizer.optimize(graph)

    def _wrong(self, solution: Solution) -> Solution:
        weights = dict.fromkeys(solution.loop_weights, np.nan)
        return [
            replace(solution, error_after=np.nan),
            replace(solution, loop_weights=weights),
            replace(solution, loop_errors=weights),
        ][self._troubles.rng.integers(3)]


class TroubledRefiner:
    """The bundle adjuster, over a solver that fails; and one whose results cannot be."""

    def __init__(self, troubles: Troubles) -> None:
        self._adjuster = SchurBundleAdjuster()
        self._troubles = troubles

    def refine(
        self, bundle: Bundle, *, noise_px: float, iterations: int, relative_tolerance: float = 1e-5
    ) -> AdjustedBundle:
        troubles, how = self._troubles, nullcontext()
        own = troubles.rng.random() < 0.5
        if troubles.strikes(Trouble.BUNDLE_SOLVER_FAILS):
            how = solver_that(SingularSystem)
        elif not own and troubles.strikes(Trouble.BUNDLE_NOT_FINITE):
            how = solver_that(NoNumbers)
        with how:
            refined = self._adjuster.refine(
                bundle, noise_px=noise_px, iterations=iterations, relative_tolerance=relative_tolerance
            )
        if own and troubles.strikes(Trouble.BUNDLE_NOT_FINITE):
            return self._not_finite(refined)
        if troubles.strikes(Trouble.BUNDLE_COLLAPSES):
            return self._collapsed(bundle, refined)
        if bundle.lens is not None:
            return self._bent(refined)
        return refined

    def _not_finite(self, refined: AdjustedBundle) -> AdjustedBundle:
        points, errors = refined.points_world.copy(), refined.error_px.copy()
        points[::3] = self._troubles.rng.choice([np.nan, np.inf])
        errors[::3] = np.nan
        nowhere = RigidTransform.from_translation([np.nan, 0.0, 0.0])
        return [
            replace(refined, points_world=points),
            replace(refined, error_px=errors),
            replace(refined, world_from_cam=dict.fromkeys(refined.world_from_cam, nowhere)),
        ][self._troubles.rng.integers(3)]

    def _collapsed(self, bundle: Bundle, refined: AdjustedBundle) -> AdjustedBundle:
        """A map shrunk to a point, blown up, or with its landmarks behind the cameras; the errors say nothing of it."""
        rng, poses = self._troubles.rng, refined.world_from_cam
        first = poses[min(poses)]
        factor = float(rng.choice([1e-12, 1e-6, 0.5, 1e6, -1.0]))
        points = np.asarray(first.apply(factor * np.asarray(first.inv().apply(refined.points_world)))).reshape(-1, 3)
        shrunk = {}
        for k, pose in poses.items():
            step = first.inv() * pose
            moved = RigidTransform.from_components(abs(factor) * translation_of(step), step.rotation)
            shrunk[k] = pose if k in bundle.fixed else first * moved
        return replace(refined, world_from_cam=shrunk, points_world=points)

    def _bent(self, refined: AdjustedBundle) -> AdjustedBundle:
        step = wrong_lens(self._troubles)
        return refined if step is None else replace(refined, lens=step)


class TroubledExamination:
    """What the footage says of the camera, in the place of `slam.mapping.global_refinement._examine`.

    Where trouble with the lens was dealt there always is distortion to be found.
    """

    def __init__(self, troubles: Troubles) -> None:
        self._troubles, self._examine = troubles, final_refinement._examine

    def __call__(self, *reported: Any) -> LensFinding:
        finding, step = self._examine(*reported), wrong_lens(self._troubles)
        if not (self._troubles.has(Trouble.LENS_BENDS) or self._troubles.has(Trouble.LENS_NOT_FINITE)):
            return finding
        return replace(finding, step=step or finding.step, may_have_distortion=True)


def wrong_lens(troubles: Troubles) -> CorrectionStep | None:
    """One that the images do not show, or that none is; None mostly."""
    rng = troubles.rng
    if troubles.strikes(Trouble.LENS_BENDS):
        ratio, radial = float(rng.choice([0.5, 0.9, 1.1, 2.0])), tuple(rng.uniform(-0.4, 0.4, 2).tolist())
        return CorrectionStep(focal_ratio=(ratio, ratio), radial=radial)
    if troubles.strikes(Trouble.LENS_NOT_FINITE):
        return CorrectionStep(focal_ratio=[(np.nan, 1.0), (-1.0, -1.0), (0.0, 0.0), (np.inf, 1.0)][rng.integers(4)])
    return None

"""The whole system under random faults of every kind: nothing is raised, and the invariants hold after every frame.

A scenario is a seed: its world, its settings, its runs and the faults in them are drawn from it. Kinds of faults are
dealt like cards, so that a full deck of successive scenarios has every kind.

    python tests/torture.py --seed 7 --frames 1000

runs scenarios 7, 8, ... until 1000 frames are processed; the error of a failed one has the command that repeats it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from false_loops import FalseLoops, Slip
from invariants import Witness, check_live, check_map, check_result
from oracle import CAMERA
from torture_world import (
    Shot,
    TortureWorld,
    Trouble,
    TroubledExamination,
    TroubledOptimizer,
    TroubledPredictor,
    TroubledRefiner,
    TroubledTracker,
    Troubles,
    Walk,
    torture_points,
    truth_of,
)

from relocalizer.errors import MapError
from relocalizer.images import encode_jpeg
from relocalizer.maps.map_format import JpegImages
from relocalizer.maps.map_reader import load_map
from relocalizer.maps.map_writer import save_map
from relocalizer.maps.reference_map import ReferenceMap
from relocalizer.retrieval import FaissRetriever
from slam.components.assembly import Components
from slam.config.schema import SlamConfig
from slam.sessions.merging import merge_maps
from slam.system import Slam

HAND = 6  # kinds of trouble dealt to a scenario
ALONE = tuple(Trouble)[: tuple(Trouble).index(Trouble.SHORT_RUNS)]  # kinds that may come to any scenario besides
HANDS = -(-len(Trouble) // HAND)
STRONG, WEAK = 0.4, 0.02  # how often a kind strikes when it can: one that was dealt, and others
OFTEN = {Trouble.TRACKS_LOST, Trouble.TRACKS_WRONG, Trouble.TRACKS_NOT_FINITE}  # these can with every frame
SELDOM = {Trouble.GRAPH_SOLVER_FAILS, Trouble.GRAPH_NOT_FINITE, Trouble.LENS_BENDS, Trouble.LENS_NOT_FINITE}
FRAMES = (45, 80)  # of an ordinary run, at least
QUIET = 20  # frames at the beginning of most runs in which nothing fails, so that there is a map to spoil
LIES = {Trouble.STRANGERS, Trouble.CLUSTERS, Trouble.SLIPS, Trouble.WAITING_LOOPS}
LONG, LONG_FRAMES = 50, 4000  # one scenario in so many is one long run
CHECK_EVERY = 10  # keyframes between two looks at the whole of a large map
LARGE = 60  # keyframes


class Failed(Exception):
    """A scenario failed; the message has the command that repeats it."""


@dataclass
class Tally:
    """Counts over all scenarios."""

    scenarios: int = 0
    runs: int = 0
    frames: int = 0
    keyframes: int = 0
    happened: Counter[Trouble] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.scenarios += other.scenarios
        self.runs += other.runs
        self.frames += other.frames
        self.keyframes += other.keyframes
        self.happened += other.happened
        self.events += other.events

    def __str__(self) -> str:
        return (
            f"{self.scenarios} scenarios, {self.runs} runs, {self.frames} frames, {self.keyframes} keyframes, "
            f"{sum(self.happened.values())} troubles of {len(self.happened)} kinds"
        )


def dealt(seed: int) -> list[Trouble]:
    """The kinds of trouble of a scenario: the deck is shuffled anew once all its hands have been dealt."""
    deck = np.random.default_rng((seed // HANDS, 1)).permutation(len(Trouble))
    return [tuple(Trouble)[card] for card in deck[seed % HANDS :: HANDS]]


def rates_of(hand: Sequence[Trouble], rng: np.random.Generator) -> dict[Trouble, float]:
    others = rng.choice(len(ALONE), 4, replace=False)
    rates = {ALONE[n]: WEAK for n in others} | dict.fromkeys(hand, STRONG)
    return {kind: rate / 5 if kind in OFTEN else 2 * rate if kind in SELDOM else rate for kind, rate in rates.items()}


def settings(rng: np.random.Generator) -> SlamConfig:
    """Small ones, so that a frame is quick, drawn from all over what is allowed; the defaults now and then."""
    config = SlamConfig()
    if rng.random() < 0.05:
        return config

    def some(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    drawn: dict[str, dict[str, Any]] = {
        "tracks": {"max_tracks": some(50, 100, 150)},
        "initialization": {
            "min_landmarks": some(10, 30),
            "min_confirming": some(10, 15),
            "references": some(1, 2, 4),
            "min_parallax_px": some(5.0, 24.0),
        },
        "keyframes": {"min_gap": some(1, 2, 3), "parallax_px": some(15.0, 28.0)},
        "tracking": {
            "min_inliers": some(6, 10, 20),
            "look_back": some(0, 1, 7, 30),
            "restart_after": some(1, 3, 10),
        },
        "landmarks": {"search_keyframes": some(0, 4, 12), "min_parallax_deg": some(0.1, 1.0)},
        "bundle_adjustment": {
            "window": some(2, 4, 6),
            "covisible": some(0, 2, 4),
            "max_landmarks": some(50, 80),
            "iterations": some(0, 2, 4),
            "pair_priors": some(True, True, False),
            "final": some("auto", "always", "always", "never"),
            "calibrate": some("auto", "always", "never"),
            "final_rounds": some(1, 2),
            "final_iterations": some(1, 3),
            "final_covisible": some(0, 4, 10),
        },
        "loop_closing": {
            "neighbors": some(1, 2, 4),
            "candidates": some(0, 2, 4),
            "min_gap": some(1, 5, 10),
            "min_similarity": some(0.2, 0.6),
            "min_inliers": some(8, 15, 30),
            "min_cells": some(1, 10),
            "single_loop_min_inliers": some(8, 40, 10000),
            "robust": some(True, True, True, False),
        },
        "relocalization": {
            "candidates": some(1, 2, 4),
            "min_inliers": some(6, 12, 20),
            "min_confidence": some(0.0, 0.5),
            "covisible_keyframes": some(0, 3, 6),
        },
    }
    update = {name: getattr(config, name).model_copy(update=values) for name, values in drawn.items()}
    return config.model_copy(update=update)


class Scenario:
    """One story: runs in one world, one after the other or in the map of another."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = np.random.default_rng((seed, 2))
        self.rng = rng
        self.hand = dealt(seed)
        self.troubles = Troubles(rng, rates_of(self.hand, rng))
        points = torture_points(rng, str(rng.choice(["room", "room", "crowd", "wall"])))
        self.world = TortureWorld(points, seed)
        self.walk = Walk(rng, self.troubles)
        self.config = settings(rng)
        self._let_it_happen()
        self.tally = Tally(scenarios=1, happened=self.troubles.happened)
        self.where = "before the first frame"
        self.digest = hashlib.sha256()  # of all that came out

    def _let_it_happen(self) -> None:
        """Settings under which kinds that were dealt can strike at all."""
        has = self.troubles.has
        linking, landmarks, refinement, tracking = (dict[str, Any]() for _ in range(4))
        if any(map(has, LIES)):
            linking |= {"min_inliers": 8, "min_cells": 1}
        if has(Trouble.BEGUN_ANEW) or has(Trouble.JOINED):
            linking |= {"min_inliers": 8, "min_cells": 1, "candidates": 4, "min_gap": 3}
            linking["robust"] = bool(self.rng.random() < 0.5)
            tracking["restart_after"] = 3
        if has(Trouble.SLIPS):
            landmarks["search_keyframes"] = 0  # a place that is tied already is not slipped to
        if has(Trouble.WAITING_LOOPS):
            linking |= {"single_loop_min_inliers": 10000, "robust": True}
        if any(map(has, (Trouble.BUNDLE_SOLVER_FAILS, Trouble.BUNDLE_NOT_FINITE, Trouble.BUNDLE_COLLAPSES))):
            refinement["iterations"] = 2
        if has(Trouble.LENS_BENDS) or has(Trouble.LENS_NOT_FINITE):
            refinement |= {"final": "always", "final_rounds": 2, "calibrate": "always"}
        changes = {
            "loop_closing": linking,
            "landmarks": landmarks,
            "bundle_adjustment": refinement,
            "tracking": tracking,
        }
        update = {name: getattr(self.config, name).model_copy(update=values) for name, values in changes.items()}
        self.config = self.config.model_copy(update=update)

    def play(self) -> Tally:
        """Run the scenario. Raises Failed with everything that is needed to repeat it."""
        try:
            self._play()
        except Exception as error:
            kinds = ", ".join(kind.name for kind in self.hand)
            again = f"python tests/torture.py --seed {self.seed} --frames 1"
            raise Failed(f"scenario {self.seed} ({kinds}), {self.where}: {error!r}\nagain: {again}") from error
        return self.tally

    def _play(self) -> None:
        has = self.troubles.has
        if self.seed % LONG == LONG - 1:
            self._run(self.walk.shots(LONG_FRAMES))
            return
        if has(Trouble.SHORT_RUNS):
            for frames in range(4):
                self._happens(Trouble.SHORT_RUNS)
                self._run(self.walk.ordinary(frames))
        if has(Trouble.ENDS_WAITING):
            self._run(self.walk.of(Trouble.STILL, 12))
        first = self._run(self._shots())
        if has(Trouble.SAVED):
            first = self._through_disk(first)
        if has(Trouble.CONTINUED):
            self._happens(Trouble.CONTINUED)
            first = self._run(self._shots(), start_map=first)
        if has(Trouble.LOCALIZE_ONLY):
            self._happens(Trouble.LOCALIZE_ONLY)
            self._run(self._shots(), start_map=first, localize_only=True)
        if has(Trouble.MERGED):
            self._merge(first)

    def _shots(self) -> list[Shot]:
        """The images of an ordinary run, with an end of the kind that was dealt."""
        frames = int(self.rng.integers(*FRAMES))
        if {Trouble.BEGUN_ANEW, Trouble.JOINED} & self.troubles.rates.keys():
            shots = [*self.walk.apart_and_back(frames), *self.walk.shots(0)]
        else:
            shots = self.walk.shots(frames)
        if self.troubles.has(Trouble.SLIPS):
            shots = [*self.walk.there_and_back(), *shots]
        if self.troubles.has(Trouble.ENDS_LOST):
            shots += self.walk.of(Trouble.BLACKOUT, 5)
        return shots

    def _happens(self, kind: Trouble) -> None:
        self.troubles.happened[kind] += 1

    # --- a run ------------------------------------------------------------------------------------------

    def _run(self, shots: Sequence[Shot], **options: Any) -> ReferenceMap:
        """Slam over some shots, checked after every frame; the map that it leaves."""
        self.tally.runs += 1
        number, witness = self.tally.runs, Witness()
        self.where = f"run {number}, at its beginning"
        slam = Slam(
            self.config,
            self._components(),
            observers=[witness],
            **options,
        )
        self._lie(slam, shots)
        earlier, checked = len(slam._mapper.map.graph.keyframes), 0
        quiet = QUIET if self.rng.random() < 0.85 else 0
        for shot, frame in zip(shots, self.world.frames_of(shots), strict=True):
            self.where = f"run {number}, frame {frame.index}"
            if shot.trouble is not None:
                self._happens(shot.trouble)
            self.troubles.quiet = len(witness.frames) < quiet
            slam.step(frame)
            check_live(slam)
            keyframes = len(slam._mapper.map.graph.keyframes)
            if keyframes - checked >= (CHECK_EVERY if keyframes > LARGE else 1):
                check_map(slam)
                checked = keyframes
        self.where, self.troubles.quiet = f"run {number}, at its end", False
        self._note_end(slam, witness)
        interrupted = self.troubles.has(Trouble.INTERRUPTED)
        if interrupted:
            self._happens(Trouble.INTERRUPTED)
        with patch("slam.mapping.global_refinement._examine", TroubledExamination(self.troubles)):
            result = slam.finish(interrupted=interrupted)
        check_map(slam)
        check_live(slam)
        saved = slam.saved_map()
        check_result(result, saved)
        saved = self._with_readable_images(saved, slam)
        self.digest.update(result.trajectory.world_from_cam.tobytes())
        self.digest.update(saved.landmarks.points_in_anchor.tobytes())
        made = len(slam._mapper.map.graph.keyframes) - earlier
        assert witness.kinds["FrameProcessed"] == len(shots)
        assert witness.finished == 1
        assert len(witness.keyframes) == made
        assert not (made and options.get("localize_only"))
        self.tally.frames += len(shots)
        self.tally.keyframes += made
        self.tally.events += witness.kinds
        return saved

    def _components(self) -> Components:
        return Components(
            predictor=TroubledPredictor(self.world, self.troubles),
            tracker=TroubledTracker(self.world, self.troubles),
            retriever=FaissRetriever(),
            optimizer=self._optimizer(),
            adjuster=TroubledRefiner(self.troubles),
        )

    def _optimizer(self) -> TroubledOptimizer:
        """An optimizer that disables loops, sometimes behind a loop closer that accepts all of them."""
        return TroubledOptimizer(self.troubles, robust=self.config.loop_closing.robust or bool(self.rng.random() < 0.7))

    def _note_end(self, slam: Slam, witness: Witness) -> None:
        """Count the kinds that the run itself produced."""
        begun, left = witness.kinds["Initialized"], len({*slam._mapper.map.graph.segment_of.values()})
        ends = {
            Trouble.ENDS_LOST: slam._frame_processor.state.is_lost,
            Trouble.ENDS_WAITING: not slam._frame_processor.state.has_map,
            Trouble.BEGUN_ANEW: begun > 1,
            Trouble.JOINED: left < begun,
        }
        for kind, ended in ends.items():
            if ended:
                self._happens(kind)

    def _with_readable_images(self, saved: ReferenceMap, slam: Slam) -> ReferenceMap:
        """The squares that say which frame an image is are drawn again: a lens that bends has moved them."""
        keyframes, sizes = slam._mapper.map.graph.keyframes, [(CAMERA.width, CAMERA.height)] * len(saved.keyframes)
        numbers = [keyframes[int(k)].encoded.index for k in saved.keyframes.ids]

        def jpeg(row: int) -> bytes:
            return encode_jpeg(self.world.image(numbers[row], CAMERA.height, CAMERA.width), 90)

        for row in range(min(len(numbers), 1)):
            saved.image(row)  # as it was stored, it can be read
        return replace(saved, image=JpegImages(jpeg, sizes))

    def _through_disk(self, saved: ReferenceMap) -> ReferenceMap:
        if not len(saved.keyframes):
            return saved
        self._happens(Trouble.SAVED)
        self.where = f"run {self.tally.runs}, when its map is saved and loaded"
        folder = Path(self._scratch.name) / f"map-{self.tally.runs}"
        save_map(folder, saved)
        return load_map(folder)

    @property
    def _scratch(self) -> Any:
        if not hasattr(self, "_folder"):
            self._folder = tempfile.TemporaryDirectory()
        return self._folder

    def _merge(self, first: ReferenceMap) -> None:
        """The map with another one; that they have no overlap is an answer."""
        second = self._run(self._shots())
        if not len(first.keyframes) or not len(second.keyframes):
            return
        self._happens(Trouble.MERGED)
        self.where = f"run {self.tally.runs}, when its map is merged"
        try:
            merged = merge_maps(first, second, self.config, self._components())
        except MapError:
            return
        self._run(self._shots(), start_map=merged.map)

    # --- false loops ------------------------------------------------------------------------------------

    def _lie(self, slam: Slam, shots: Sequence[Shot]) -> None:
        """Give the loop closer of the run false loops of the kinds that were dealt."""
        for kind in sorted(LIES):
            if self.troubles.has(kind):
                Liar(self, slam, kind, shots).install()
        if self.troubles.has(Trouble.GRAPH_SOLVER_FAILS) or self.troubles.has(Trouble.GRAPH_NOT_FINITE):
            self._solve_often(slam)

    def _solve_often(self, slam: Slam) -> None:
        """The graph is solved after every keyframe, loop or not."""
        loop_closer, close = slam._loop_closer, slam._loop_closer.close_loops

        def solved(k: int) -> bool:
            closed = close(k)
            loop_closer._optimize(k, "a keyframe", set())
            return closed

        setattr(loop_closer, "close_loops", solved)  # noqa: B010


class Lies(FalseLoops):
    """False loops in a map that may be deformed."""

    def _unit(self, c: int) -> float:
        try:
            return super()._unit(c)
        except ValueError:  # the path around it is no path
            return 1.0

    def _depth(self, c: int) -> float:
        return super()._depth(c) if len(self._placed(c)) else 1.0


class Liar:
    """False loops in a run, counted."""

    def __init__(self, scenario: Scenario, slam: Slam, kind: Trouble, shots: Sequence[Shot]) -> None:
        rng = scenario.rng
        often = (
            kind is not Trouble.CLUSTERS and scenario.config.loop_closing.robust
        )  # else the graph is solved all the time
        at = np.flatnonzero(rng.random(LONG_FRAMES) < (0.3 if often else 0.05)).tolist()
        slips = [Slip(), Slip(length=0.05), Slip(length=1.0), Slip(degrees=1.0), Slip(degrees=10.0)]
        slip = slips[rng.integers(len(slips))] if kind is Trouble.SLIPS else None
        self._scenario, self._slam, self._kind = scenario, slam, kind
        self._loops = Lies(
            slam._loop_closer, frozenset(at), kind is Trouble.CLUSTERS, rng, slip, truth_of(shots),
            deceived=bool(rng.random() < 0.8), min_gap=int(rng.choice([3, 12])), landmarks=(8, 60),
        )  # fmt: skip

    def install(self) -> None:
        if self._kind is Trouble.WAITING_LOOPS:
            self._flood()
        else:
            self._loops.install()
        loop_closer, close = self._slam._loop_closer, self._slam._loop_closer.close_loops

        def counted(k: int) -> bool:
            before = len(self._loops.lies)
            closed = close(k)
            self._scenario.troubles.happened[self._kind] += len(self._loops.lies) - before
            return closed

        setattr(loop_closer, "close_loops", counted)  # noqa: B010

    def _flood(self) -> None:
        """Every keyframe is matched to many other places."""
        loop_closer, loops, close = self._slam._loop_closer, self._loops, self._slam._loop_closer.close_loops

        def flooded(k: int) -> bool:
            closed = False
            for _ in range(8):
                loops._mistake = loops._elsewhere(k)
                injected = None if loops._mistake is None else loops._injected(loops._mistake.c, k)
                if injected is not None:
                    closed |= loop_closer._close_if_accepted(injected)
            return close(k) or closed

        setattr(loop_closer, "close_loops", flooded)  # noqa: B010


def torture(seed: int, frames: int, *, seconds: float = float("inf"), tell: Callable[[str], None] = print) -> Tally:
    """Scenarios from `seed` on until so many frames have gone through, or so much time; at least one.

    Raises:
        Failed: something did not hold.
    """
    tally, started = Tally(), time.monotonic()
    while tally.scenarios == 0 or (tally.frames < frames and time.monotonic() - started < seconds):
        scenario = Scenario(seed + tally.scenarios)
        tally.add(scenario.play())
        passed = (time.monotonic() - started) / 60
        tell(f"scenario {scenario.seed}: {scenario.tally}; in all {tally.frames} frames, {passed:.1f} min")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="the first scenario")
    parser.add_argument("--frames", type=int, help="number of frames; 2000, or any with --minutes")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="or so much time")
    parser.add_argument("--keep-going", action="store_true", help="past scenarios that fail; what failed is printed")
    arguments = parser.parse_args()
    limit = arguments.frames or (2000 if arguments.minutes == float("inf") else float("inf"))
    tally, failed, seed, started = Tally(), 0, arguments.seed, time.monotonic()
    while tally.frames < limit and time.monotonic() - started < 60 * arguments.minutes:
        try:
            tally.add(torture(seed, 1))
        except Failed as error:
            failed += 1
            traceback.print_exception(error)
            if not arguments.keep_going:
                return 1
        seed += 1
    print(f"{tally}; {(time.monotonic() - started) / 60:.1f} min, {failed} failed")
    for kind in Trouble:
        print(f"{tally.happened[kind]:8d}  {kind.name}: {kind}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The back-end alone over many keyframes: laps of a ring, on an oracle that errs by a pixel's fraction.

    PYTHONPATH=tests python docs/experiments/long_run.py --keyframes 20000 --lap 4000

Every frame is a keyframe: inserted, related, refined in its window, connected, checked for loops, as
`slam.frame_processor` does it, with fewer points per image and a smaller window so that the run takes minutes. What may
grow with the map is the same. From the second lap on every keyframe is at a place that is mapped already.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from oracle import OraclePredictor, OracleTracker, OracleWorld, look_along
from oracle_map import MapBuilder

from relocalizer.geometry import Similarity, align_points, translation_of
from relocalizer.retrieval import FaissRetriever
from slam.config.schema import SlamConfig
from slam.events import EdgeAccepted, Event, GraphOptimized
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
from slam.loop_closing.loop_closer import LoopCloser
from slam.map.keyframe_graph import EdgeKind
from slam.mapping.mapper import Mapper
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster

STEP = 0.25  # of the camera, a keyframe
WALL = (4.0, 7.0)  # distances of points from the path
POINTS_A_STEP = 12
REACH = 40  # steps before and behind within which points are looked for


class Ring(OracleWorld):
    """A ring road along a wall: only points near the camera are looked at."""

    def visible(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if index not in self._cache:
            if len(self._cache) > 4:
                del self._cache[next(iter(self._cache))]
            lap = len(self.points) // POINTS_A_STEP
            near = np.arange((index - REACH) * POINTS_A_STEP, (index + REACH) * POINTS_A_STEP) % (lap * POINTS_A_STEP)
            in_cam = np.asarray(self.poses[index].inv().apply(self.points[near]))
            front = in_cam[:, 2] > 0.1
            pixels = self.camera.project(in_cam[front])
            inside = self.camera.contains(pixels, margin=2)
            noise = np.random.default_rng((self.seed, index)).normal(0, self.pixel_noise, (int(inside.sum()), 2))
            self._cache[index] = near[front][inside], (pixels[inside] + noise).astype(np.float32)
        return self._cache[index]


def ring(keyframes: int, lap: int, noise: float) -> Ring:
    """A wavy ring of `lap` steps, driven along for `keyframes` of them, the camera looking at the wall outside."""
    radius = lap * STEP / (2 * np.pi)

    def at(step: NDArray[np.float64], away: NDArray[np.float64] | float = 0.0) -> NDArray[np.float64]:
        angle = 2 * np.pi * step / lap
        r = radius * (1 + 0.05 * np.sin(5 * angle)) + away
        return np.stack([r * np.cos(angle), r * np.sin(angle), 0.3 * np.sin(40 * angle)], axis=-1)

    rng = np.random.default_rng(5)
    count = lap * POINTS_A_STEP
    points = at(np.arange(count) / POINTS_A_STEP, rng.uniform(*WALL, count))
    points[:, 2] += rng.uniform(-2.5, 2.5, count)
    steps = np.arange(keyframes, dtype=np.float64)
    centers = at(steps) + np.array([0.0, 0.0, 0.05])
    outward = at(steps + 2.0, 5.0) - at(steps)
    return Ring([look_along(c, o) for c, o in zip(centers, outward, strict=True)], points, pixel_noise=noise)


@dataclass(eq=False)
class Clock:
    """CPU milliseconds of every keyframe by stage."""

    stages: dict[str, list[float]] = field(default_factory=dict)
    _since: float = 0.0

    def start(self) -> None:
        self._since = time.process_time()

    def lap(self, stage: str) -> None:
        now = time.process_time()
        self.stages.setdefault(stage, []).append(1e3 * (now - self._since))
        self._since = now

    def report(self, keyframes: int) -> None:
        tenths = [slice(n * keyframes // 10, (n + 1) * keyframes // 10) for n in range(10)]
        for stage, values in self.stages.items():
            medians = " ".join(f"{np.median(values[part]):6.2f}" for part in tenths)
            print(f"{stage:>10}: {medians}   ms of CPU, median of each tenth; most {max(values):.0f}")
        total = np.sum(list(self.stages.values()), axis=0)
        second, last = np.median(total[tenths[1]]), np.median(total[tenths[9]])
        print(f"       all: second tenth {second:.1f}, last {last:.1f} ms: {last / second:.2f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keyframes", type=int, default=20_000)
    parser.add_argument("--lap", type=int, default=4000)
    parser.add_argument("--features", type=int, default=150)
    parser.add_argument("--noise", type=float, default=0.3, help="pixels")
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE of the configuration")
    arguments = parser.parse_args()
    drive(arguments)


def configured(settings: list[str]) -> SlamConfig:
    small = {"tracks.max_tracks": 150, "bundle_adjustment.window": 4, "bundle_adjustment.max_landmarks": 120}
    small |= {
        "bundle_adjustment.iterations": 3,
        "bundle_adjustment.covisible": 3,
        "loop_closing.single_loop_min_inliers": 60,
    }
    config = SlamConfig().model_dump()
    for key, value in [*small.items(), *(item.split("=", 1) for item in settings)]:
        section, name = key.split(".")
        config[section][name] = value
    return SlamConfig.model_validate(config)


def drive(arguments: argparse.Namespace) -> None:
    world = ring(arguments.keyframes, arguments.lap, arguments.noise)
    config, clock, events = configured(arguments.set), Clock(), list[Event]()
    predictor = OraclePredictor(world, place_unit=4 * STEP)
    tracker = OracleTracker(world, max_features=arguments.features)
    mapper = Mapper(config, predictor, SchurBundleAdjuster())
    optimizer = GtsamOptimizer(robust=config.loop_closing.robust)

    def note(event: Event) -> None:
        if isinstance(event, GraphOptimized) or (isinstance(event, EdgeAccepted) and event.edge.kind is EdgeKind.LOOP):
            events.append(event)

    retriever = FaissRetriever()
    linker = LoopCloser(config.loop_closing, mapper, predictor, retriever, optimizer, note)
    builder = MapBuilder(world, mapper, tracker, predictor)
    for index in range(arguments.keyframes):
        seen, tracks = builder.seen(index), builder.followed(index)
        pose = guess(world, mapper, index)
        clock.start()
        k = mapper.insert(seen, tracks, pose, 0).id
        clock.lap("insert")
        linker.relate_to_covisible(k)
        mapper.local_bundle_adjustment(k)
        clock.lap("refine")
        linker.watch_scale(k, 0.5 * config.landmarks.min_parallax_deg)
        linker.tie_to_neighbors(k, config.bundle_adjustment.window)
        clock.lap("tie")
        if linker.close_loops(k):
            mapper.local_bundle_adjustment(k)
        linker.remember(k)
        clock.lap("loops")
        if (index + 1) % 1000 == 0:
            tell_progress(world, mapper, events, index + 1)
            recent = np.sum([values[-1000:] for values in clock.stages.values()], axis=0)
            print(f"    of these 1000: median {np.median(recent):.1f} ms of CPU, most {recent.max():.0f}", flush=True)
    clock.report(arguments.keyframes)
    started = time.process_time()
    solution = optimizer.optimize(mapper.graph)
    print(f"full solve: {time.process_time() - started:.1f} s of CPU, {len(mapper.graph.edges)} edges, ", end="")
    print(f"error {solution.error_before:.4g} to {solution.error_after:.4g}")
    print(f"most memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def guess(world: Ring, mapper: Mapper, index: int) -> Similarity:
    """The pose of the keyframe before, moved as the camera did."""
    if mapper.graph.last_id < 0:
        return Similarity.identity()
    last = mapper.graph.world_from_keyframe[mapper.graph.last_id]
    step = world.poses[index - 1].inv() * world.poses[index]
    return Similarity.from_rigid(last.compose_rigid(step), last.scale)


def tell_progress(world: Ring, mapper: Mapper, events: list[Event], done: int) -> None:
    poses = mapper.graph.world_from_keyframe
    ids = sorted(poses)
    mine = np.array([poses[k].translation for k in ids])
    true = np.array([translation_of(world.poses[mapper.graph.keyframes[k].frame_index]) for k in ids])
    fit = align_points(true, mine)
    error = np.sqrt(np.mean(np.sum((fit.apply(mine) - true) ** 2, axis=1)))
    loops = sum(isinstance(event, EdgeAccepted) for event in events)
    solved = sum(isinstance(event, GraphOptimized) for event in events)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{done} keyframes, {loops} loops, solved {solved} times, ATE {error:.3f}, {memory:.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()

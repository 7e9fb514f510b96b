"""The whole `Slam` on published camera paths, with a predictor that errs as Reloc3r's published figures say.

    python docs/experiments/oracle_trajectories.py --trajectories DIR [--only NAME]
    python docs/experiments/oracle_trajectories.py --fit

DIR holds trajectories in TUM format. Around each path points are drawn as a room or a street would show them; the
tracker sees them to half a pixel, the predictor answers from the truth with the errors of `oracle.RELOC3R`. Beside
it stands the graph of rotations and directions alone, over the same keyframes and with the same answers.
`--fit` finds the error model from the published areas under the curve.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import gtsam
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import RigidTransform
from scipy.stats import chi

from relocalizer.camera import Camera
from relocalizer.geometry import direction_angle, rigid, rotation_angle, rotation_matrix, stack_matrices, translation_of
from relocalizer.interfaces import CalibratedImage, PairEstimate, PosePredictor
from relocalizer.retrieval import FaissRetriever
from slam.config.schema import SlamConfig
from slam.evaluation.metrics import Evaluation, evaluate
from slam.evaluation.trajectory import Trajectory
from slam.evaluation.trajectory_files import read_tum
from slam.events import (
    EdgeAccepted,
    EdgeRejected,
    Event,
    FrameProcessed,
    Relocalized,
    ScaleUnobservable,
    TrackingLost,
)
from slam.loop_closing.gtsam_pose_graph import GtsamOptimizer
from slam.map.keyframe_graph import Edge, EdgeKind
from slam.mapping.schur_bundle_adjuster import SchurBundleAdjuster
from slam.result import SlamResult
from slam.system import Slam

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from oracle import CAMERA, RELOC3R, OraclePredictor, OracleTracker, OracleWorld, surroundings

PUBLISHED_AUC = {512: (34.79, 58.37, 75.56), 224: (28.34, 52.60, 71.56)}  # ScanNet1500, arXiv 2412.08376, table 3
THRESHOLDS_DEG = (5.0, 10.0, 20.0)
PIXEL_NOISE = 0.5
NEIGHBORS = 3
LOOP_POINTS = 150  # points that two keyframes must both see for the direction-only graph to get a loop there
FALSE_LOOP_DEG = 5.0
CAR = Camera(width=1241, height=376, fx=718.9, fy=718.9, cx=607.2, cy=185.2)


@dataclass(frozen=True, kw_only=True)
class CameraPath:
    """A published path: every `stride`-th of its poses, and how far off the things around it are, meters."""

    name: str
    stride: int
    camera: Camera
    nearest: float
    farthest: float
    place_unit: float = 1.0


PATHS = (
    CameraPath(name="tum_fr2_desk", stride=7, camera=CAMERA, nearest=1.0, farthest=5.0),
    CameraPath(name="tum_fr1_room", stride=2, camera=CAMERA, nearest=1.0, farthest=5.0),
    CameraPath(name="7scenes_office_seq01", stride=2, camera=CAMERA, nearest=1.0, farthest=5.0),
    CameraPath(name="kitti_07", stride=1, camera=CAR, nearest=5.0, farthest=40.0, place_unit=8.0),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """One run, compared with the truth and with the direction-only graph over its keyframes."""

    evaluation: Evaluation
    coverage: float
    segments: int
    keyframes: int
    keyframe_ate: float
    direction_only_ate: float
    direction_only_ate_from_truth: float
    loops: list[Edge]
    false_loops: list[str]
    rejected: list[EdgeRejected]
    events: list[Event]
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=Path, help="folder of the trajectories, TUM format")
    parser.add_argument("--only", choices=[path.name for path in PATHS], action="append", help="not all of them")
    parser.add_argument("--variants", type=int, nargs="+", default=[512, 224], choices=[512, 224])
    parser.add_argument("--max-frames", type=int, default=1200)
    parser.add_argument("--fit", action="store_true", help="find the error model instead")
    arguments = parser.parse_args()
    if arguments.fit:
        print_fits()
    elif arguments.trajectories is None:
        parser.error("--trajectories DIR is needed")
    else:
        chosen = [path for path in PATHS if not arguments.only or path.name in arguments.only]
        print_table(arguments.trajectories, chosen, arguments.variants, arguments.max_frames)


def print_table(folder: Path, paths: Sequence[CameraPath], variants: Sequence[int], max_frames: int) -> None:
    print("| path | frames | length m | errors | keyframes | ATE m | of the path | keyframe ATE m |", end="")
    print(" direction-only m | ratio | the same from truth m | coverage | loops | false | refused | seconds |")
    print("|---" * 16 + "|")
    details: list[str] = []
    for path in paths:
        world = world_on(folder, path, max_frames)
        for variant in variants:
            outcome = run(world, variant, path.place_unit)
            print(row(path, world, variant, outcome), flush=True)
            details += [f"{path.name} {variant}: {line}" for line in remarks(outcome)]
    print("\n".join(["", *details]))


def row(path: CameraPath, world: OracleWorld, variant: int, outcome: Outcome) -> str:
    found = outcome.evaluation
    cells = [
        path.name,
        str(len(world.poses)),
        f"{world.ground_truth.length:.1f}",
        str(variant),
        str(outcome.keyframes),
        f"{found.ate_sim3.rmse:.4f}",
        f"{100 * found.ate_sim3.rmse / world.ground_truth.length:.3f} %",
        f"{outcome.keyframe_ate:.4f}",
        f"{outcome.direction_only_ate:.3f}",
        f"1/{outcome.direction_only_ate / outcome.keyframe_ate:.1f}",
        f"{outcome.direction_only_ate_from_truth:.3f}",
        f"{100 * outcome.coverage:.1f} %",
        str(len(outcome.loops)),
        str(len(outcome.false_loops)),
        str(len(outcome.rejected)),
        f"{outcome.seconds:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def remarks(outcome: Outcome) -> list[str]:
    """What went other than well."""
    lost = [e for e in outcome.events if isinstance(e, TrackingLost)]
    back = [e for e in outcome.events if isinstance(e, Relocalized)]
    no_scale = [e for e in outcome.events if isinstance(e, ScaleUnobservable)]
    return [
        *(f"lost at frame {e.frame_index}: {e.reason}" for e in lost),
        *(f"found again at frame {e.frame_index} after {e.frames_lost}" for e in back),
        *(f"frame {e.frame_index}: {e.reason}" for e in no_scale),
        *([f"{outcome.segments} segments"] if outcome.segments > 1 else []),
        *outcome.false_loops,
    ]


# --- a run --------------------------------------------------------------------------------------------


def world_on(folder: Path, path: CameraPath, max_frames: int) -> OracleWorld:
    """Points around a published path, and the path in frames."""
    poses = list(RigidTransform.from_matrix(read_tum(folder / f"{path.name}.txt").world_from_cam[:: path.stride]))
    poses = poses[:max_frames]
    rng = np.random.default_rng(11)
    points, facing = surroundings(poses, path.camera, rng, nearest=path.nearest, farthest=path.farthest)
    return OracleWorld(
        poses,
        points,
        facing=facing,
        pixel_noise=PIXEL_NOISE,
        seed=1,
        max_depth=1.2 * path.farthest,
        camera=path.camera,
    )


def run(world: OracleWorld, variant: int, place_unit: float) -> Outcome:
    events: list[Event] = []
    predictor = OraclePredictor(world, errors=RELOC3R[variant], place_unit=place_unit)
    slam = Slam(
        SlamConfig(),
        predictor=cast(PosePredictor, predictor),
        tracker=OracleTracker(world),
        retriever=FaissRetriever(),
        optimizer=GtsamOptimizer(),
        adjuster=SchurBundleAdjuster(),
        observers=[events.append],
    )
    start = time.perf_counter()
    for frame in world.frames():
        slam.step(frame)
    result = slam.finish()
    return judge(world, predictor, result, events, time.perf_counter() - start)


def judge(
    world: OracleWorld, predictor: OraclePredictor, result: SlamResult, events: list[Event], seconds: float
) -> Outcome:
    truth = world.ground_truth
    frame_of = {k: keyframe.frame_index for k, keyframe in result.graph.keyframes.items()}
    loops = [e.edge for e in events if isinstance(e, EdgeAccepted) and e.edge.kind is EdgeKind.LOOP]
    kept = np.isin(truth.timestamps_ns, result.keyframe_trajectory.timestamps_ns)
    graph = DirectionGraph.of(world, predictor, np.flatnonzero(kept).tolist())
    return Outcome(
        evaluation=evaluate(result.trajectory, truth),
        coverage=len(result.trajectory) / len(world.poses),
        segments=1 + len(result.segments),
        keyframes=len(frame_of),
        keyframe_ate=evaluate(result.keyframe_trajectory, truth).ate_sim3.rmse,
        direction_only_ate=graph.ate(graph.equal_steps()),
        direction_only_ate_from_truth=graph.ate(graph.truth),
        loops=loops,
        false_loops=[line for edge in loops if (line := what_is_false(world, edge, frame_of))],
        rejected=[e for e in events if isinstance(e, EdgeRejected)],
        events=[e for e in events if not isinstance(e, FrameProcessed)],
        seconds=seconds,
    )


def what_is_false(world: OracleWorld, edge: Edge, frame_of: dict[int, int]) -> str:
    """Empty for a true loop; otherwise by how much its rotation and its direction are off."""
    i, j = frame_of[edge.i], frame_of[edge.j]
    truth = world.poses[i].inv() * world.poses[j]
    turned = np.degrees(rotation_angle(rotation_matrix(truth).T @ edge.i_from_j.rotation))
    if turned < FALSE_LOOP_DEG:
        return ""
    off = np.degrees(direction_angle(translation_of(truth), edge.i_from_j.translation))
    return f"false loop, frames {i} and {j}: rotation off by {turned:.1f} deg, direction by {off:.1f} deg"


# --- rotations and directions alone -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class DirectionGraph:
    """Keyframes and what pairs of them say: (a, b, estimate), positions in `truth`."""

    times_ns: NDArray[np.int64]
    truth: list[RigidTransform]
    found: list[tuple[int, int, PairEstimate]]

    @staticmethod
    def of(world: OracleWorld, predictor: OraclePredictor, frames: Sequence[int]) -> DirectionGraph:
        pairs = neighbors_and_loops(world, frames)
        encoded = [code for f in frames for code in predictor.encode([CalibratedImage(world.frame(f).image)])]
        answers = predictor.relate([(encoded[a], encoded[b]) for a, b in pairs])
        found = [(a, b, e) for (a, b), e in zip(pairs, answers, strict=True) if isinstance(e, PairEstimate)]
        return DirectionGraph(
            world.ground_truth.timestamps_ns[np.array(frames)], [world.poses[f] for f in frames], found
        )

    def equal_steps(self) -> list[RigidTransform]:
        """The truth but for what is not measured: each step from keyframe to keyframe is given the mean length."""
        positions = np.array([translation_of(pose) for pose in self.truth])
        steps = np.diff(positions, axis=0)
        lengths = np.linalg.norm(steps, axis=1, keepdims=True)
        even = steps / np.maximum(lengths, 1e-9) * lengths.mean()
        places = np.concatenate([positions[:1], positions[0] + np.cumsum(even, axis=0)])
        return [rigid(rotation_matrix(pose), place) for pose, place in zip(self.truth, places, strict=True)]

    def ate(self, start: Sequence[RigidTransform]) -> float:
        """ATE after solving, the better of two robust kernels; what the pairs leave open stays as in `start`."""
        estimator = gtsam.noiseModel.mEstimator
        huber, redescending = estimator.Huber.Create(1.345), estimator.GemanMcClure.Create(3.0)
        convex = self.solve(start, huber)
        return min(self._ate(poses) for poses in (convex, self.solve(convex, redescending)))

    def _ate(self, poses: Sequence[RigidTransform]) -> float:
        truth = Trajectory(self.times_ns, stack_matrices(self.truth))
        return evaluate(Trajectory(self.times_ns, stack_matrices(poses)), truth).ate_sim3.rmse

    def solve(self, start: Sequence[RigidTransform], kernel: gtsam.noiseModel.mEstimator.Base) -> list[RigidTransform]:
        """Levenberg-Marquardt; gauge: the first keyframe, and its distance to the one farthest from it."""
        graph, values = gtsam.NonlinearFactorGraph(), gtsam.Values()
        for k, pose in enumerate(start):
            values.insert(k, gtsam.Pose3(pose.as_matrix()))
        for a, b, estimate in self.found:
            graph.add(pair_factor(a, b, estimate, kernel))
        first = values.atPose3(0)
        far = int(np.argmax([first.range(values.atPose3(k)) for k in range(len(start))]))
        reach = first.range(values.atPose3(far))
        graph.add(gtsam.PriorFactorPose3(0, first, gtsam.noiseModel.Isotropic.Sigma(6, 1e-6)))
        graph.add(gtsam.RangeFactorPose3(0, far, reach, gtsam.noiseModel.Isotropic.Sigma(1, 1e-3 * reach)))
        parameters = gtsam.LevenbergMarquardtParams()
        parameters.setMaxIterations(200)
        solution = gtsam.LevenbergMarquardtOptimizer(graph, values, parameters).optimize()
        if not np.isfinite(graph.error(solution)):
            raise RuntimeError("direction-only graph: the error is not finite")
        return [RigidTransform.from_matrix(solution.atPose3(k).matrix()) for k in range(len(start))]


def pair_factor(
    a: int, b: int, estimate: PairEstimate, kernel: gtsam.noiseModel.mEstimator.Base
) -> gtsam.NonlinearFactor:
    rotation = gtsam.Rot3(estimate.i_from_j_rotation)
    sigma_r, sigma_d = estimate.rotation_sigma_rad, estimate.direction_sigma_rad
    if estimate.i_from_j_direction is None:
        sigmas = gtsam.noiseModel.Diagonal.Sigmas(np.array([sigma_r] * 3 + [1e6] * 3))
        noise = gtsam.noiseModel.Robust.Create(kernel, sigmas)
        return gtsam.BetweenFactorPose3(a, b, gtsam.Pose3(rotation, np.zeros(3)), noise)
    sigmas = gtsam.noiseModel.Diagonal.Sigmas(np.array([sigma_r] * 3 + [sigma_d] * 2))
    essential = gtsam.EssentialMatrix(rotation, gtsam.Unit3(estimate.i_from_j_direction))
    return gtsam.EssentialMatrixConstraint(a, b, essential, gtsam.noiseModel.Robust.Create(kernel, sigmas))


def neighbors_and_loops(world: OracleWorld, frames: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of positions in `frames`: each with those before it, and with the older one that shows most of it."""
    pairs = [(b - d, b) for b in range(len(frames)) for d in range(1, NEIGHBORS + 1) if b >= d]
    seen = np.zeros((len(frames), len(world.points)), np.float32)
    for k, f in enumerate(frames):
        seen[k, world.visible(f)[0]] = 1.0
    shared = seen @ seen.T
    gap = SlamConfig().loop_closing.min_gap
    for b in range(gap, len(frames)):
        a = int(np.argmax(shared[b, : b - gap + 1]))
        if shared[b, a] >= LOOP_POINTS:
            pairs.append((a, b))
    return pairs


# --- the error model ----------------------------------------------------------------------------------


def areas(
    fine_deg: float, coarse_deg: float, fine_share: float, outlier_rate: float, rotation_share: float
) -> NDArray[np.float64]:
    """AUC@5/10/20 (3,) in percent of the larger of the two angles, its distribution integrated.

    Outliers below the thresholds are neglected: of rotations drawn evenly one in a thousand is within 20 degrees.
    """
    found = []
    for threshold in THRESHOLDS_DEG:
        angle = np.linspace(0.0, threshold, 801)
        below = np.zeros_like(angle)
        for share, sigma in ((fine_share, fine_deg), (1 - fine_share, coarse_deg)):
            below += share * chi.cdf(angle / sigma, 2) * chi.cdf(angle / (rotation_share * sigma), 3)
        found.append(100 * (1 - outlier_rate) * np.trapezoid(below, angle) / threshold)
    return np.array(found)


def print_fits() -> None:
    """Fine and coarse sigma and their shares that give the published areas, outliers and rotations as assumed."""
    for variant, published in PUBLISHED_AUC.items():
        model = RELOC3R[variant]
        fixed = (model.outlier_rate, model.rotation_share)
        bounds = ([0.5, 2.0, 0.05], [5.0, 40.0, 0.99])
        found = least_squares(_misfit, [2.3, 7.0, 0.7], bounds=bounds, args=(fixed, published))
        fine, coarse, share = found.x
        print(f"{variant}: fine_deg={fine:.3f} coarse_deg={coarse:.3f} fine_share={share:.4f}", end="")
        in_use = areas(model.fine_deg, model.coarse_deg, model.fine_share, *fixed)
        print(f"; the model in use gives {np.round(in_use, 2)} for {published}")


def _misfit(
    parameters: NDArray[np.float64], fixed: tuple[float, float], published: tuple[float, float, float]
) -> NDArray[np.float64]:
    fine, coarse, share = parameters
    return areas(fine, coarse, share, *fixed) - published


if __name__ == "__main__":
    main()

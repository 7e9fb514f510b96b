"""What docs/experiments.md says about relocalization, measured.

python docs/experiments/relocalization.py database REDKITCHEN --others SEQUENCE... [--stride N]
python docs/experiments/relocalization.py corridor CORRIDOR
python docs/experiments/relocalization.py room RUN_OF_ROOM_LOOP sequences/room_revisit
python docs/experiments/relocalization.py evidence OUT.npz SEQUENCE... [--stride N ...]
python docs/experiments/relocalization.py reliability EVIDENCE.npz
python docs/experiments/relocalization.py throughput REDKITCHEN
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import RigidTransform

from relocalizer.config import FeaturesConfig, GeometricConfig, PosedImagesConfig, RelocalizationConfig
from relocalizer.geometry import align_points, rotation_angle, rotation_matrix, translation_of
from relocalizer.images import Image
from relocalizer.interfaces import CalibratedImage
from relocalizer.maps.image_matching import PosedImage
from relocalizer.maps.map_from_poses import map_from_poses
from relocalizer.maps.map_reader import load_map
from relocalizer.maps.reference_map import ReferenceMap
from relocalizer.predictors.geometric_predictor import GeometricPredictor
from relocalizer.relocalizer import NotFound, Relocalization, Relocalizer
from slam.config.schema import InputConfig
from slam.evaluation.trajectory_files import read_tum
from slam.input.open_source import open_source
from slam.input.posed_images import open_posed

BATCH = 16
WRONG_M, WRONG_DEG = 0.25, 5.0
ANYTHING = RelocalizationConfig(
    min_inliers=4, min_cells=1, max_rival_share=1.0, max_disagreement_deg=180.0, min_confidence=0.0, min_views=2
)


def predictor() -> GeometricPredictor:
    return GeometricPredictor(FeaturesConfig(), GeometricConfig())


def error_of(outcome: Relocalization | NotFound, truth: RigidTransform) -> tuple[float, float]:
    """(distance, degrees) from the truth; NaN when nothing was found."""
    if isinstance(outcome, NotFound):
        return np.nan, np.nan
    between = truth.inv() * outcome.world_from_cam
    return float(np.linalg.norm(translation_of(between))), float(np.degrees(rotation_angle(rotation_matrix(between))))


def located(relocalizer: Relocalizer, images: Sequence[PosedImage]) -> Iterator[Relocalization | NotFound]:
    for start in range(0, len(images), BATCH):
        views = [CalibratedImage(p.read(), p.camera) for p in images[start : start + BATCH]]
        yield from relocalizer.locate_many(views)


def without_landmarks(m: ReferenceMap) -> ReferenceMap:
    """The same keyframes and features, and no place of any point."""
    table = m.landmarks
    none = {name: getattr(table, name)[:0] for name in type(table).__dataclass_fields__}
    return replace(m, landmarks=type(table)(**none))


# --- a database of posed images ------------------------------------------------------------------------


def database(arguments: argparse.Namespace) -> None:
    images = open_posed(arguments.sequence, None, config=InputConfig()).images
    before = time.process_time()
    made = load_map(arguments.map) if arguments.map else _database_map(images, arguments)
    cpu = time.process_time() - before
    print(f"map: {len(made.keyframes)} keyframes, {len(made.landmarks)} landmarks, CPU {cpu:.0f} s")
    for name in arguments.how:
        stride = arguments.query_stride if name == "landmarks" else arguments.averaged_stride
        queries = images[arguments.split :: stride]
        near = np.array([has_near(images[: arguments.split], q) for q in queries])
        relocalizer = Relocalizer(made if name == "landmarks" else without_landmarks(made), predictor())
        before = time.process_time()
        outcomes = list(located(relocalizer, queries))
        cpu = (time.process_time() - before) / len(queries)
        show(name, outcomes, queries, near)
        print(f"{name}: CPU {1e3 * cpu:.0f} ms a query")
        accepted = [foreign(relocalizer, folder) for folder in arguments.others]
        asked, taken = (sum(n) for n in zip(*accepted, strict=True)) if accepted else (0, 0)
        print(f"{name}: {taken} of {asked} images of other sequences accepted")


def _database_map(images: Sequence[PosedImage], arguments: argparse.Namespace) -> ReferenceMap:
    return map_from_poses(
        images[: arguments.split : arguments.stride],
        predictor(),
        config=PosedImagesConfig(min_distance=arguments.min_distance, min_angle_deg=arguments.min_angle),
    )


def has_near(images: Sequence[PosedImage], query: PosedImage, *, meters: float = 0.3, deg: float = 25.0) -> bool:
    where = translation_of(query.world_from_cam)
    close = [p for p in images if np.linalg.norm(translation_of(p.world_from_cam) - where) < meters]
    turns = [rotation_matrix(p.world_from_cam).T @ rotation_matrix(query.world_from_cam) for p in close]
    return any(np.degrees(rotation_angle(turn)) < deg for turn in turns)


def show(
    name: str, outcomes: Sequence[Relocalization | NotFound], queries: Sequence[PosedImage], near: np.ndarray
) -> None:
    errors = np.array([error_of(o, q.world_from_cam) for o, q in zip(outcomes, queries, strict=True)])
    found = np.isfinite(errors[:, 0])
    for group, member in (("near", near), ("others", ~near)):
        own = errors[member & found]
        wrong = int(((own[:, 0] > WRONG_M) | (own[:, 1] > WRONG_DEG)).sum())
        middle, high = np.median(own, axis=0), np.quantile(own, 0.95, axis=0)
        within = ", ".join(
            f"{((own[:, 0] < m) & (own[:, 1] < d)).sum() / max(member.sum(), 1):.1%} in {100 * m:g} cm {d:g} deg"
            for m, d in ((0.05, 5), (0.1, 5), (0.25, 10))
        )
        print(
            f"{name}, {group}: {member.sum()} queries, found {found[member].mean():.1%}, median {middle[0]:.4f} m "
            f"{middle[1]:.3f} deg, 95 % {high[0]:.4f} m {high[1]:.3f} deg, wrong {wrong}; {within}"
        )
    right = found & (errors[:, 0] <= WRONG_M) & (errors[:, 1] <= WRONG_DEG)
    said = np.array([o.confidence if isinstance(o, Relocalization) else -1.0 for o in outcomes])
    print(f"{name}: recall at 1 % false accepts {recall_at(0.01, said, right):.1%}")


def recall_at(false_share: float, said: np.ndarray, right: np.ndarray) -> float:
    """Share of all queries found rightly, at the confidence limit that keeps wrong ones to a share of the found."""
    order = np.argsort(-said, kind="stable")
    order = order[said[order] >= 0]
    good = np.cumsum(right[order])
    wrong_share = 1.0 - good / np.arange(1, len(order) + 1)
    return float(good[wrong_share <= false_share].max(initial=0)) / len(said)


def foreign(relocalizer: Relocalizer, folder: Path) -> tuple[int, int]:
    """How many images of another sequence were asked for, and how many accepted."""
    source = open_source(str(folder), config=InputConfig(prefetch_frames=0))
    outcomes = [relocalizer.locate(CalibratedImage(frame.image, frame.camera)) for frame in source]
    taken = sum(isinstance(o, Relocalization) for o in outcomes)
    print(f"  {folder.name}: {taken} of {len(outcomes)} accepted")
    return len(outcomes), taken


# --- place recognition -----------------------------------------------------------------------------------


def corridor(arguments: argparse.Namespace) -> None:
    """Precision and recall of the nearest earlier image against the loop matrix."""
    source = open_source(str(arguments.sequence), config=InputConfig(prefetch_frames=0))
    own = predictor()
    described = np.array([own.describe(own.encode([CalibratedImage(f.image, f.camera)])[0]) for f in source])
    rows = np.loadtxt(arguments.sequence / "loop_groundtruth.txt", dtype=np.int64)
    truth: dict[int, set[int]] = {}
    for query, earlier in rows.tolist():
        truth.setdefault(query, set()).add(earlier)
    scores, hits = [], dict.fromkeys((1, 5, 10), 0)
    for query in range(len(described)):
        earlier = described[: max(query - arguments.gap, 0)]
        if not len(earlier):
            continue
        similarity = earlier @ described[query]
        order = np.argsort(-similarity, kind="stable")
        true = truth.get(query, set())
        scores.append((float(similarity[order[0]]), int(order[0]) in true, bool(true)))
        for k in hits:
            hits[k] += bool(true & set(order[:k].tolist()))
    positives = sum(is_loop for _, _, is_loop in scores)
    print(f"{own.descriptor}: {positives} queries with a loop of {len(scores)}")
    print(", ".join(f"R@{k} {n / positives:.3f}" for k, n in hits.items()))
    scores.sort(key=lambda s: -s[0])
    right = np.cumsum([correct for _, correct, _ in scores])
    precision, restore_encoding = right / np.arange(1, len(scores) + 1), right / positives
    for level in (1.0, 0.99, 0.95, 0.9):
        reached = restore_encoding[precision >= level]
        print(f"recall at precision {level:g}: {reached.max() if len(reached) else 0:.3f}")
    print(f"average precision {np.sum(precision * np.diff(np.concatenate([[0], restore_encoding]))):.3f}")


# --- a map of a run --------------------------------------------------------------------------------------


def room(arguments: argparse.Namespace) -> None:
    """Images of a second visit in the map of a first; aligned by the truth of the map's own keyframes."""
    made = load_map(arguments.run)
    truth = dict(_truth(arguments.map_truth))
    rows = [row for row, t in enumerate(made.keyframes.timestamps_ns.tolist()) if t in truth]
    true_positions = np.array([translation_of(truth[int(made.keyframes.timestamps_ns[row])]) for row in rows])
    truth_from_map = align_points(true_positions, made.keyframes.translations[rows])
    queries = list(_frames_with_truth(arguments.sequence))[:: arguments.query_stride]
    relocalizer = Relocalizer(made, predictor())
    before = time.process_time()
    outcomes: list[Relocalization | NotFound] = []
    for start in range(0, len(queries), BATCH):
        outcomes += relocalizer.locate_many([view for view, _ in queries[start : start + BATCH]])
    cpu = (time.process_time() - before) / len(queries)
    errors = []
    for outcome, (_, pose) in zip(outcomes, queries, strict=True):
        if isinstance(outcome, Relocalization):
            found = truth_from_map.compose_rigid(outcome.world_from_cam)
            errors.append(error_of(replace(outcome, world_from_cam=found), pose))
    e = np.array(errors).reshape(-1, 2)
    size = float(np.linalg.norm(np.ptp(true_positions, axis=0)))
    wrong = int((e[:, 0] > 0.05 * size).sum())
    print(
        f"room: {len(queries)} queries, found {len(e) / len(queries):.1%}, median {np.median(e[:, 0]):.4f} m "
        f"{np.median(e[:, 1]):.3f} deg, worst {e[:, 0].max():.4f} m {e[:, 1].max():.3f} deg, over 5 % of the path's "
        f"extent ({size:.2f} m): {wrong}; CPU {1e3 * cpu:.0f} ms a query"
    )
    for outcome in outcomes:
        if isinstance(outcome, NotFound):
            print("  not found:", outcome.reason)


def _truth(path: Path) -> Iterator[tuple[int, RigidTransform]]:
    trajectory = read_tum(path)
    for t, pose in zip(trajectory.timestamps_ns.tolist(), trajectory.world_from_cam, strict=True):
        yield t, RigidTransform.from_matrix(pose)


def _frames_with_truth(folder: Path) -> Iterator[tuple[CalibratedImage, RigidTransform]]:
    truth = sorted(_truth(folder / "groundtruth.txt"), key=lambda item: item[0])
    times = np.array([t for t, _ in truth])
    for frame in open_source(str(folder), config=InputConfig(prefetch_frames=0)):
        k = int(np.abs(times - frame.timestamp_ns).argmin())
        if abs(int(times[k]) - frame.timestamp_ns) < 5_000_000:
            yield CalibratedImage(frame.image, frame.camera), truth[k][1]


# --- confidence ------------------------------------------------------------------------------------------


def evidence(arguments: argparse.Namespace) -> None:
    """Correct and wrong poses from sparse maps and degraded images, with the evidence for each."""
    rows: list[tuple[float, ...]] = []
    names: list[str] = []
    elsewhere = [p for folder in arguments.foreign for p in posed(folder)[:: arguments.foreign_stride]]
    for folder in arguments.sequences:
        images = posed(folder)[arguments.start :][: arguments.max_frames]
        for stride in arguments.stride:
            sparse = images[:: min(stride, max(len(images) // 4, 1))]
            chosen = {id(p) for p in sparse}
            queries = [p for p in images if id(p) not in chosen]
            queries = queries[:: max(len(queries) // arguments.queries, 1)]
            made = map_from_poses(sparse, predictor(), units=arguments.units)
            for reference in (made, without_landmarks(made)):
                relocalizer = Relocalizer(reference, predictor(), config=ANYTHING)
                for worse in arguments.worse:
                    asked = [replace(q, read=worsened(q, worse)) for q in queries]
                    more = [_row(o, q, relocalizer) for o, q in zip(located(relocalizer, asked), asked, strict=True)]
                    rows += more
                    names += [folder.name] * len(more)
                rows += [_row(o, None, relocalizer) for o in located(relocalizer, elsewhere)]
                names += [folder.name] * (len(rows) - len(names))
            right = [r[0] for r in rows[-len(queries) :]]
            print(folder.name, stride, len(sparse), "keyframes", len(queries), "queries", sum(right), flush=True)
    np.savez(arguments.out, rows=np.array(rows), names=np.array(names))


def posed(folder: Path) -> list[PosedImage]:
    """Images of a folder, or of its video, with poses."""
    if list(folder.glob("*.mp4")):
        return [
            PosedImage(name=str(k), read=(lambda v=view: v.image), camera=view.camera, world_from_cam=pose)
            for k, (view, pose) in enumerate(_frames_with_truth(folder))
            if view.camera is not None and k % 3 == 0
        ]
    return open_posed(folder, None, config=InputConfig()).images


def worsened(posed: PosedImage, scale: float):
    """The image with the detail of one `scale` times its size."""

    def read() -> Image:
        image = posed.read()
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR), dtype=np.uint8)

    return posed.read if scale == 1 else read


COLUMNS = ("right", "error", "deg", "landmarks", "inliers", "matches", "cells", "rival", "views", "turned", "sigma",
           "said", "related")  # fmt: skip


NOWHERE = (1e9, 180.0)  # how wrong any pose of an image of another place is


def _row(outcome: Relocalization | NotFound, query: PosedImage | None, relocalizer: Relocalizer) -> tuple[float, ...]:
    meters, deg = NOWHERE if query is None else error_of(outcome, query.world_from_cam)
    if isinstance(outcome, NotFound):
        return (0.0, np.nan, np.nan, *[0.0] * 9, 0.0)
    right = meters < outcome.bound.distance and np.radians(deg) < outcome.bound.angle_rad
    e = outcome.evidence
    common = (float(right), meters / outcome.bound.distance, deg)
    if outcome.how == "averaged":
        return (*common, 0.0, 0.0, 0.0, 0.0, 0.0, e.views, 0.0, e.position_sigma, outcome.confidence, e.covisible)
    return (
        *common, 1.0, e.inliers, e.matches, e.cells, e.rival, e.views, e.disagreement_deg, e.position_sigma,
        outcome.confidence, 0.0,
    )  # fmt: skip


def read_evidence(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    rows = np.concatenate([np.load(path, allow_pickle=False)["rows"] for path in paths])
    return {name: rows[:, k] for k, name in enumerate(COLUMNS)}


def fit(arguments: argparse.Namespace) -> None:
    """The coefficients of `relocalizer.confidence`: logistic regression by Newton's method, a little ridge."""
    rows = read_evidence(arguments.evidence)
    answered = np.isfinite(rows["error"])
    mine = answered & (rows["landmarks"] == 1)
    count = np.maximum(rows["inliers"] - rows["rival"], 1.0)
    columns = np.column_stack([np.ones(len(count)), np.log(count), np.log(np.maximum(rows["cells"], 1.0))])
    print("landmarks: 1, log(inliers - rival), log(cells):", logistic(columns[mine], rows["right"][mine]).round(2))
    mine = answered & (rows["landmarks"] == 0)
    columns = np.column_stack([np.ones(len(count)), np.log(np.maximum(rows["views"], 1)), np.log(rows["sigma"] + 0.02)])
    print("averaged: 1, log(views), log(sigma + 0.02):", logistic(columns[mine], rows["right"][mine]).round(2))


def logistic(columns: np.ndarray, right: np.ndarray, ridge: float = 0.1) -> np.ndarray:
    b = np.zeros(columns.shape[1])
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-columns @ b))
        hessian = (columns * (p * (1 - p))[:, None]).T @ columns + ridge * np.eye(len(b))
        b = b + np.linalg.solve(hessian, columns.T @ (right - p) - ridge * b)
    return b


def reliability(arguments: argparse.Namespace) -> None:
    rows = read_evidence(arguments.evidence)
    answered = np.isfinite(rows["error"])
    for how, kind in (("landmarks", 1.0), ("averaged", 0.0)):
        mine = answered & (rows["landmarks"] == kind)
        print(f"{how}: {mine.sum()} poses")
        for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 0.97), (0.97, 1.01)):
            member = mine & (rows["said"] >= low) & (rows["said"] < high)
            if member.any():
                print(
                    f"| {low:g} - {min(high, 1):g} | {member.sum()} | {rows['said'][member].mean():.2f} "
                    f"| {rows['right'][member].mean():.2f} |"
                )


# --- speed -----------------------------------------------------------------------------------------------


def throughput(arguments: argparse.Namespace) -> None:
    """One batch against one by one, in turns, CPU seconds; the map's keyframes are remembered before."""
    images = open_posed(arguments.sequence, None, config=InputConfig()).images
    relocalizer = Relocalizer(map_from_poses(images[:600:10], predictor()), predictor())
    views = [CalibratedImage(p.read(), p.camera) for p in images[600:664:2]]
    relocalizer.locate_many(views)
    many, single = [], []
    for _ in range(3):
        before = time.process_time()
        relocalizer.locate_many(views)
        many.append(time.process_time() - before)
        before = time.process_time()
        for view in views:
            relocalizer.locate(view)
        single.append(time.process_time() - before)
    a, b, c = np.median(many) / len(views), np.median(single) / len(views), pair_by_pair(images, views[:4])
    print(
        f"batch of {len(views)}: {1e3 * a:.0f} ms CPU an image, one by one {1e3 * b:.0f} ms (ratio {b / a:.2f}), "
        f"pair by pair {1e3 * c:.0f} ms (ratio {c / a:.2f})"
    )


def pair_by_pair(images: Sequence[PosedImage], views: Sequence[CalibratedImage]) -> float:
    """CPU seconds of an image when each of its eight pairs is made from two images, nothing remembered."""
    own, keyframes = predictor(), [CalibratedImage(p.read(), p.camera) for p in images[:600:75]]
    before = time.process_time()
    for view in views:
        for keyframe in keyframes:
            i, j = own.encode([keyframe, view])
            own.relate([(i, j)])
    return (time.process_time() - before) / len(views)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("database")
    verb.add_argument("sequence", type=Path)
    verb.add_argument("--others", type=Path, nargs="*", default=[])
    verb.add_argument("--split", type=int, default=600)
    verb.add_argument("--stride", type=int, default=1)
    verb.add_argument("--query-stride", type=int, default=1)
    verb.add_argument("--averaged-stride", type=int, default=1)
    verb.add_argument("--how", nargs="+", default=["landmarks", "averaged"])
    verb.add_argument("--map", type=Path, help="The map, when slam map from-poses has made it already.")
    verb.add_argument("--min-distance", type=float, default=0.0)
    verb.add_argument("--min-angle", type=float, default=10.0)
    verb.set_defaults(call=database)
    verb = verbs.add_parser("corridor")
    verb.add_argument("sequence", type=Path)
    verb.add_argument("--gap", type=int, default=10)
    verb.set_defaults(call=corridor)
    verb = verbs.add_parser("room")
    verb.add_argument("run", type=Path)
    verb.add_argument("sequence", type=Path)
    verb.add_argument("--map-truth", type=Path, default=Path("sequences/room_loop/groundtruth.txt"))
    verb.add_argument("--query-stride", type=int, default=1)
    verb.set_defaults(call=room)
    verb = verbs.add_parser("evidence")
    verb.add_argument("out", type=Path)
    verb.add_argument("sequences", type=Path, nargs="+")
    verb.add_argument("--stride", type=int, nargs="+", default=[20, 40])
    verb.add_argument("--worse", type=float, nargs="+", default=[1.0, 0.5, 0.3, 0.2])
    verb.add_argument("--queries", type=int, default=30)
    verb.add_argument("--start", type=int, default=0)
    verb.add_argument("--max-frames", type=int, default=None)
    verb.add_argument("--units", default="meters")
    verb.add_argument("--foreign", type=Path, nargs="*", default=[], help="Sequences of other places.")
    verb.add_argument("--foreign-stride", type=int, default=10)
    verb.set_defaults(call=evidence)
    verb = verbs.add_parser("fit")
    verb.add_argument("evidence", type=Path, nargs="+")
    verb.set_defaults(call=fit)
    verb = verbs.add_parser("reliability")
    verb.add_argument("evidence", type=Path, nargs="+")
    verb.set_defaults(call=reliability)
    verb = verbs.add_parser("throughput")
    verb.add_argument("sequence", type=Path)
    verb.set_defaults(call=throughput)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()

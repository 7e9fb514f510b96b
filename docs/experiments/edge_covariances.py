"""Whether edges err as much as they say: squared error in their sigmas, by degree of freedom, against the truth.

    python docs/experiments/edge_covariances.py SEQUENCE [SEQUENCE ...] [--correlation 0.1] [--of-loops 0.05]

Odometry is followed over 1, 5 and 20 keyframes by the most certain path of edges, with the covariance that
slam.loop_closing.pairwise_consistency gives the path; loops are taken as measured. One camera has no unit of length,
and its own drifts, so the truth is put into the units of the path around each end: by aligning the four keyframes
before and after with the truth. Over 20 keyframes and for loops the drift of scale is judged as well (7 degrees of
freedom), below it is not (6).

The truth's own error, per pose, is added to the covariance: a rendered room has none, motion capture and structure from
motion some (docs/experiments.md, where triplets of pairs measure it), GPS with gyroscopes some.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import slam.loop_closing.loop_closer
from relocalizer.geometry import FloatArray, Similarity, align_points
from slam.config.schema import SlamConfig
from slam.input.open_source import open_source
from slam.loop_closing.edge_path import edge_covariance, log_error
from slam.loop_closing.edge_paths import OdometryTree
from slam.loop_closing.pairwise_consistency import squared_distance
from slam.map.keyframe_graph import EdgeKind, KeyframeGraph
from slam.run.runner import run
from slam.system import Slam

AROUND = 4  # number of keyframes on each side that determine the unit of length
STRETCHES = (1, 5, 20)
# Standard deviations of one pose of the truth: degrees, meters.
TRUTH_ERROR = {"7scenes": (0.2, 0.002), "tum": (0.3, 0.003), "kitti": (0.03, 0.02), "room": (0.0, 0.0)}


@dataclass(frozen=True, eq=False)
class Mapped:
    """Keyframes of a run: the graph, true poses (N, 4, 4) by id, meters in a unit at each, the truth's error."""

    graph: KeyframeGraph
    odometry: OdometryTree
    truth: FloatArray
    meters: FloatArray
    error: tuple[float, float]

    def true_pose(self, i: int, j: int) -> Similarity:
        """i_from_j in i's units, its scale the ratio of the units."""
        step = np.linalg.inv(self.truth[i]) @ self.truth[j]
        return Similarity(step[:3, :3], step[:3, 3] / self.meters[i], float(self.meters[j] / self.meters[i]))

    def truth_covariance(self, j: int) -> FloatArray:
        """(7, 7) of a true relative pose in j's units: two poses err."""
        degrees, meters = self.error
        sigmas = [*[np.radians(degrees)] * 3, *[meters / self.meters[j]] * 3, 0.0]
        return 2.0 * np.diag(np.square(sigmas))


def map_sequence(folder: Path, max_frames: int | None) -> Mapped:
    config = SlamConfig()
    source = open_source(str(folder), config=config.input, max_frames=max_frames)
    assert source.ground_truth is not None, f"{folder} has no ground truth"
    graph = run(source, Slam.create(config)).result.graph
    stamps = np.array([graph.keyframes[k].timestamp_ns for k in sorted(graph.keyframes)])
    times = source.ground_truth.timestamps_ns
    rows = [int(np.abs(times - stamp).argmin()) for stamp in stamps]
    truth = source.ground_truth.world_from_cam[rows]
    odometry = OdometryTree()
    odometry.follow(graph)
    meters = np.array([unit_at(k, odometry, truth) for k in range(len(truth))])
    error = next((e for name, e in TRUTH_ERROR.items() if folder.name.startswith(name)), (0.0, 0.0))
    return Mapped(graph, odometry, truth, meters, error)


def unit_at(k: int, odometry: OdometryTree, truth: FloatArray) -> float:
    """Meters in keyframe k's unit, from the path around it; NaN where it is torn."""
    near = range(max(k - AROUND, 0), min(k + AROUND + 1, len(truth)))
    found = {m: path for m in near if (path := odometry.path(k, m)) is not None}
    if len(found) < AROUND:
        return float("nan")
    places = np.array([path.source_from_target.translation for path in found.values()])
    return align_points(truth[list(found), :3, 3], places).scale


def normalized(mapped: Mapped, i: int, j: int, measured: Similarity, covariance: FloatArray, degrees: int) -> float:
    """Squared error of a relative pose by degree of freedom; NaN without units."""
    if not np.isfinite(mapped.meters[[i, j]]).all():
        return float("nan")
    d = log_error(measured, mapped.true_pose(i, j))
    total = (covariance + mapped.truth_covariance(j))[:degrees, :degrees]
    return squared_distance(d[:degrees], total) / degrees


def over_intervals(mapped: Mapped, length: int) -> list[float]:
    found = []
    for i in range(len(mapped.truth) - length):
        path = mapped.odometry.path(i, i + length)
        if path is not None:
            covariance = path.covariance_in(path.source_from_target.inverse())
            degrees = 7 if length > 2 * AROUND else 6
            found.append(normalized(mapped, i, i + length, path.source_from_target, covariance, degrees))
    return found


def over_loops(mapped: Mapped) -> list[float]:
    return [
        normalized(mapped, e.i, e.j, e.i_from_j, edge_covariance(e), 7 if e.sigmas[6] < 0.2 else 6)
        for e in mapped.graph.edges_of(EdgeKind.LOOP)
    ]


def cell(values: list[float]) -> str:
    finite = [value for value in values if np.isfinite(value)]
    return f"{np.mean(finite):.2f} ({np.median(finite):.2f})" if finite else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sequences", nargs="+", type=Path)
    parser.add_argument("--correlation", type=float, default=slam.loop_closing.edge_information.CORRELATION)
    parser.add_argument(
        "--of-loops", type=float, default=slam.loop_closing.edge_information.LOOP_CORRELATION, help="the same for loops"
    )
    parser.add_argument("--max-frames", type=int)
    arguments = parser.parse_args()
    slam.loop_closing.edge_information.CORRELATION = arguments.correlation
    slam.loop_closing.edge_information.LOOP_CORRELATION = arguments.of_loops
    print("| sequence | keyframes | " + " | ".join(f"over {n}" for n in STRETCHES) + " | loops |")
    print("|---|--:|" + "--:|" * (len(STRETCHES) + 1))
    for folder in arguments.sequences:
        mapped = map_sequence(folder, arguments.max_frames)
        cells = [cell(over_intervals(mapped, n)) for n in STRETCHES] + [cell(over_loops(mapped))]
        print(f"| {folder.name} | {len(mapped.truth)} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

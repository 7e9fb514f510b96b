"""Accuracy of a pose averaged over K views with Reloc3r's published errors, for K from 1 to 20.

A query in a room and K cameras around it that look the same way within 40 degrees, 0.3 to 1.5 m away. Each pair
answers as `tests/oracle.py` says the network does. Prints a table for docs/experiments.md.

    python docs/experiments/averaging_views.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from oracle import RELOC3R, ErrorModel

from relocalizer.averaging import AveragedPose, RelativePoseObservation, average_pose
from relocalizer.geometry import FloatArray, exp_so3, rigid, rotation_angle, rotation_matrix, translation_of
from relocalizer.interfaces import PairEstimate

VIEWS = (1, 2, 3, 5, 10, 20)


def sightings_of(errors: ErrorModel, rng: np.random.Generator, count: int) -> list[RelativePoseObservation]:
    """Views around a query at the origin that looks along z."""
    found = []
    for _ in range(count):
        away = rng.normal(size=3) * [1.0, 0.4, 1.0]
        center = away / np.linalg.norm(away) * rng.uniform(0.3, 1.5)
        turn = rng.normal(size=3)
        pose = rigid(exp_so3(turn / np.linalg.norm(turn) * rng.uniform(0, np.radians(40))), center)
        i_from_j = pose.inv()
        step = translation_of(i_from_j)
        R, d = errors.answer(rng, rotation_matrix(i_from_j), step / np.linalg.norm(step))
        estimate = PairEstimate(
            i_from_j_rotation=R,
            i_from_j_direction=d,
            confidence=0.9,
            rotation_sigma_rad=errors.rotation_sigma_rad,
            direction_sigma_rad=errors.direction_sigma_rad,
        )
        found.append(RelativePoseObservation(pose, estimate))
    return found


def quaternion_median_deg(seen: list[RelativePoseObservation], truth: FloatArray) -> float:
    """Rotation error of the median of each quaternion component, all of w >= 0, as files and tools have them."""
    world = [rotation_matrix(s.world_from_i) @ s.estimate.i_from_j_rotation for s in seen]
    median = np.median(Rotation.from_matrix(np.array(world)).as_quat(canonical=True), axis=0)
    if np.linalg.norm(median) < 1e-9:
        return 180.0
    return float(np.degrees(rotation_angle(truth.T @ Rotation.from_quat(median).as_matrix())))


def row(variant: int, views: int, trials: int, turn: float) -> str:
    rng = np.random.default_rng((variant, views))
    averaged: list[AveragedPose] = []
    medians = []
    # A query turned far from the world's axes is where quaternions change sign.
    world = rigid(exp_so3([0.0, turn, 0.0]), np.zeros(3))
    for _ in range(trials):
        seen = [
            RelativePoseObservation(world * s.world_from_i, s.estimate)
            for s in sightings_of(RELOC3R[variant], rng, views)
        ]
        averaged.append(average_pose(seen))
        medians.append(quaternion_median_deg(seen, rotation_matrix(world)))
    rotation = np.degrees([rotation_angle(rotation_matrix(world).T @ a.rotation) for a in averaged])
    placed = np.array([np.linalg.norm(a.position) for a in averaged if a.position is not None])
    position = f"{np.median(placed):.3f} {np.quantile(placed, 0.9):.3f}" if len(placed) else "-"
    return (
        f"| {variant} | {views} | {np.median(rotation):.2f} {np.quantile(rotation, 0.9):.2f} {rotation.max():.1f} "
        f"| {np.median(medians):.2f} {np.quantile(medians, 0.9):.2f} {max(medians):.0f} "
        f"| {position} | {len(placed) / trials:.0%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--turn-deg", type=float, default=178.0, help="Heading of the query in the world.")
    arguments = parser.parse_args()
    for variant in RELOC3R:
        for views in VIEWS:
            print(row(variant, views, arguments.trials, float(np.radians(arguments.turn_deg))), flush=True)


if __name__ == "__main__":
    main()

"""A trajectory: timestamps and camera poses. Reading and writing of its file formats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relocalizer.geometry import FloatArray, Similarity, frozen_array


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Camera poses over time, in map units (or metres, when whoever made it knew them).

    Attributes:
        timestamps_ns: (N,) int64, strictly increasing.
        world_from_cam: (N, 4, 4) rigid matrices.
    """

    timestamps_ns: NDArray[np.int64]
    world_from_cam: FloatArray

    def __post_init__(self) -> None:
        times = np.array(self.timestamps_ns, dtype=np.int64)
        poses = frozen_array("Trajectory.world_from_cam", self.world_from_cam, (None, 4, 4))
        if times.shape != (len(poses),):
            raise ValueError(f"Trajectory: {times.shape} timestamps for {len(poses)} poses")
        if (np.diff(times) <= 0).any():
            raise ValueError("Trajectory.timestamps_ns: must increase")
        times.setflags(write=False)
        object.__setattr__(self, "timestamps_ns", times)
        object.__setattr__(self, "world_from_cam", poses)

    def __len__(self) -> int:
        return len(self.timestamps_ns)

    @property
    def positions(self) -> FloatArray:
        """Camera centres (N, 3)."""
        return self.world_from_cam[:, :3, 3]

    @property
    def length(self) -> float:
        """Path length, in the trajectory's unit."""
        return float(np.linalg.norm(np.diff(self.positions, axis=0), axis=1).sum())

    @property
    def duration_s(self) -> float:
        return float(self.timestamps_ns[-1] - self.timestamps_ns[0]) * 1e-9 if len(self) else 0.0

    def transformed(self, a_from_world: Similarity) -> Trajectory:
        """The same path in frame a; a similarity's scale stretches positions, orientations turn with it."""
        poses = self.world_from_cam.copy()
        poses[:, :3, :3] = a_from_world.rotation @ poses[:, :3, :3]
        poses[:, :3, 3] = a_from_world.apply(self.positions)
        return Trajectory(self.timestamps_ns, poses)

    def __str__(self) -> str:
        return f"{len(self)} poses, {self.length:.3f} units long, {self.duration_s:.1f} s"

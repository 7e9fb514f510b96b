"""The values that bundle adjustment estimates.

The increment of a pose is (rotation, translation) in the axes of its camera: world_from_cam becomes
(R exp(rotation), center + R translation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from relocalizer.geometry import FloatArray, stack_matrices
from slam.mapping.bundle import Bundle

LOG_FOCAL, K1, K2, PRINCIPAL_X, PRINCIPAL_Y = range(5)
INTRINSICS = 5  # number of the intrinsics


@dataclass(frozen=True, slots=True, eq=False)
class Unknowns:
    """The values that bundle adjustment estimates.

    Attributes:
        rotations: (K, 3, 3) of world_from_cam, keyframes in the order of their ids.
        centers: (K, 3) camera centers, map units.
        points: (N, 3) landmarks in the world, map units.
        intrinsics: (5,) of the shared camera: logarithm of the focal length relative to the given one, k1 and k2, and
            the shift of the principal point, relative to the given focal lengths.
    """

    rotations: FloatArray
    centers: FloatArray
    points: FloatArray
    intrinsics: FloatArray

    @staticmethod
    def of(bundle: Bundle) -> Unknowns:
        """The initial values; the intrinsics are the given ones."""
        poses = stack_matrices([bundle.world_from_cam[k] for k in sorted(bundle.world_from_cam)])
        return Unknowns(
            rotations=poses[:, :3, :3],
            centers=poses[:, :3, 3],
            points=np.asarray(bundle.points_world, dtype=np.float64),
            intrinsics=np.zeros(INTRINSICS),
        )

    @property
    def radial(self) -> FloatArray:
        """Distortion (k1, k2)."""
        return self.intrinsics[K1 : K2 + 1]

    @property
    def principal(self) -> FloatArray:
        """Shift (2,) of the principal point, relative to the given focal lengths."""
        return self.intrinsics[PRINCIPAL_X:]

    @property
    def is_finite(self) -> bool:
        """Whether all values are finite numbers."""
        return all(np.isfinite(v).all() for v in (self.rotations, self.centers, self.points, self.intrinsics))

    def moved(self, poses: FloatArray, points: FloatArray, intrinsics: FloatArray) -> Unknowns:
        """The values after increments of the poses (K, 6), the points (N, 3) and the intrinsics (5,)."""
        turn = Rotation.from_rotvec(poses[:, :3]).as_matrix()
        return Unknowns(
            rotations=self.rotations @ turn,
            centers=self.centers + np.einsum("kij,kj->ki", self.rotations, poses[:, 3:]),
            points=self.points + points,
            intrinsics=self.intrinsics + intrinsics,
        )

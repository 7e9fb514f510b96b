"""The loss of relative pose regression: angle of the rotation plus angle of the direction, both ways of a pair.

Dong et al., "Reloc3r", CVPR 2025, section 3.1: equal weights, radians, no other term. Three things differ from the
published code. Relative poses are formed in double precision. Pairs without a baseline have no direction to learn, so
their direction term is zero. The rotation nearest to nine numbers is differentiated in closed form, because autograd
through the SVD divides by differences of singular values, which vanish where the network is to arrive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from relocalizer.geometry import FloatArray
from relocalizer.network.model import ROW_NORM_FLOOR, RawPose

AngleForm = Literal["clamped", "exact"]

CLAMP = 1e-6  # distance of a clamped cosine from 1, and the offset of lengths, as published
LEAST_GAP = 1e-6  # minimum of a sum of signed singular values that divides a gradient; keeps it finite


@dataclass(frozen=True, slots=True, eq=False)
class PairTargets:
    """True relative poses of B pairs.

    Attributes:
        pose1, pose2: (B, 4, 4) float32; pose2 is 1_from_2 and pose1 is 2_from_1, as the network returns them.
        has_direction: (B,) bool; False for pairs without a baseline.
    """

    pose1: Tensor
    pose2: Tensor
    has_direction: Tensor

    def to(self, device: torch.device) -> PairTargets:
        return PairTargets(self.pose1.to(device), self.pose2.to(device), self.has_direction.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class PairLosses:
    """Loss of each pair of a batch, and the four angles it consists of, (B,) each, radians.

    A direction angle is zero for a pair without a baseline, so `loss.mean()` gives the same gradient as the published
    code, in which such pairs count with a constant.
    """

    loss: Tensor
    rotation1: Tensor
    rotation2: Tensor
    direction1: Tensor
    direction2: Tensor

    def angles(self) -> Tensor:
        """(4, B): rotation of pose1 and pose2, direction of pose1 and pose2; without a gradient."""
        return torch.stack([self.rotation1, self.rotation2, self.direction1, self.direction2]).detach()


def targets_of(world_from_1: ArrayLike, world_from_2: ArrayLike, has_direction: ArrayLike) -> PairTargets:
    """Targets of pairs with camera poses (B, 4, 4), formed in double precision: geo-referenced poses are large."""
    one, two = np.asarray(world_from_1, np.float64), np.asarray(world_from_2, np.float64)
    pose2 = relative_pose(one, two)
    pose1 = relative_pose(two, one)
    return PairTargets(
        torch.from_numpy(pose1.astype(np.float32)),
        torch.from_numpy(pose2.astype(np.float32)),
        torch.from_numpy(np.asarray(has_direction, bool)),
    )


def relative_pose(world_from_a: FloatArray, world_from_b: FloatArray) -> FloatArray:
    """a_from_b of rigid poses (..., 4, 4), float64."""
    a_from_world = np.swapaxes(world_from_a[..., :3, :3], -1, -2)
    result = np.zeros_like(world_from_a)
    result[..., :3, :3] = a_from_world @ world_from_b[..., :3, :3]
    # Centers are subtracted first, so that a far origin does not cost digits.
    offset = world_from_b[..., :3, 3] - world_from_a[..., :3, 3]
    result[..., :3, 3] = (a_from_world @ offset[..., None])[..., 0]
    result[..., 3, 3] = 1.0
    return result


def pair_losses(raw1: RawPose, raw2: RawPose, targets: PairTargets, form: AngleForm = "clamped") -> PairLosses:
    """Loss of each pair from the outputs of both pose heads; float32, to be called outside of autocast.

    Args:
        form: "clamped" is the published angle, whose cosine is kept 1e-6 away from 1: no pair has a loss below 0.00566,
            and none there has a gradient. "exact" has neither.
    """
    rotations = [rotation_with_gradient(raw.rotation9.float()) for raw in (raw1, raw2)]
    rotation1, rotation2 = (
        rotation_angles(found, true[:, :3, :3], form)
        for found, true in zip(rotations, (targets.pose1, targets.pose2), strict=True)
    )
    zero, known = rotation1.new_zeros(()), targets.has_direction
    # A vector of length zero has no gradient, not even a masked one, so another one takes its place.
    forward = targets.pose1.new_tensor([0.0, 0.0, 1.0])
    direction1, direction2 = (
        torch.where(known, direction_angles(raw.translation.float(), true, form), zero)
        for raw, true in (
            (raw, torch.where(known[:, None], pose[:, :3, 3], forward))
            for raw, pose in ((raw1, targets.pose1), (raw2, targets.pose2))
        )
    )
    return PairLosses(rotation1 + rotation2 + direction1 + direction2, rotation1, rotation2, direction1, direction2)


def rotation_angles(found: Tensor, true: Tensor, form: AngleForm) -> Tensor:
    """Angles (B,) between rotations (B, 3, 3), radians."""
    if form == "clamped":
        trace = (found * true).sum(dim=(1, 2))  # of found^T true
        return _clamped_acos((trace - 1) / 2)
    chord = torch.linalg.norm((found - true).flatten(1), dim=1)
    return 2 * torch.asin((chord / 8**0.5).clamp(max=1 - CLAMP))  # the derivative is infinite at 1


def direction_angles(found: Tensor, true: Tensor, form: AngleForm) -> Tensor:
    """Angles (B,) between vectors (B, 3) of any length, radians."""
    if form == "clamped":
        units = [v / (torch.linalg.norm(v, dim=1, keepdim=True) + CLAMP) for v in (found, true)]
        return _clamped_acos((units[0] * units[1]).sum(dim=1))
    cross = torch.linalg.norm(torch.linalg.cross(found, true, dim=1), dim=1)
    return torch.atan2(cross, (found * true).sum(dim=1))


def rotation_with_gradient(rotation9: Tensor) -> Tensor:
    """The rotations (B, 3, 3) of nine numbers (B, 9), as `rotation_from_nine`, with a gradient that is finite."""
    # Apple GPUs support neither double precision nor the SVD.
    device = torch.device("cpu") if rotation9.device.type == "mps" else rotation9.device
    rows = rotation9.to(device=device, dtype=torch.float64).view(-1, 3, 3)
    found: Tensor = NearestRotation.apply(F.normalize(rows, dim=2, eps=ROW_NORM_FLOOR))  # type: ignore[no-untyped-call]
    return found.to(rotation9)


class NearestRotation(torch.autograd.Function):
    """The rotations nearest to matrices (B, 3, 3), with the gradient in closed form.

    With M = U diag(s) V^T, where the sign of det(U V^T) is moved to the last column of U and to s, the rotation is
    R = U V^T. A change dM = U dB V^T turns it by the antisymmetric part of dB divided by the sums of singular values.
    """

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        U, S, Vt = torch.linalg.svd(matrices)
        sign = torch.linalg.det(U @ Vt)
        flip = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], dim=1)
        U, S = U * flip[:, None, :], S * flip
        ctx.save_for_backward(U, S, Vt)
        rotation: Tensor = U @ Vt
        return rotation

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        U, S, Vt = ctx.saved_tensors
        B = U.transpose(1, 2) @ gradients[0] @ Vt.transpose(1, 2)
        sums = S[:, :, None] + S[:, None, :]
        A = (B - B.transpose(1, 2)) / sums.clamp(min=LEAST_GAP)
        result: Tensor = U @ A @ Vt
        return result


def _clamped_acos(cosine: Tensor) -> Tensor:
    return torch.acos(cosine.clamp(-1 + CLAMP, 1 - CLAMP))

"""Evaluation on held-out pairs: medians and areas under the curve of the pose error, as published for ScanNet1500."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from relocalizer.errors import TrainingError
from relocalizer.training.loss import AngleForm, direction_angles, pair_losses, rotation_angles
from relocalizer.training.pair_data import Ids, Mixture
from relocalizer.training.pair_loader import LoadedPair, PairLoader, Request
from relocalizer.training.pair_network import PairInputs, PairNetwork
from relocalizer.training.processes import Processes

THRESHOLDS_DEG = (5, 10, 20)
PAIRS_AT_A_TIME = {"cpu": 4}  # elsewhere 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Errors of held-out pairs.

    Attributes:
        loss, median_loss: mean and median loss of the pairs, radians.
        rotation_deg, direction_deg: medians of the errors of 1_from_2, degrees; the direction without pairs that have
            no baseline.
        guess_rotation_deg, guess_direction_deg: the same of a guess that the camera did not turn and moved forward.
        auc: area under the recall curve of the larger of both errors up to 5, 10 and 20 degrees, percent.
        broken: pairs that could not be read.
    """

    pairs: int
    loss: float
    median_loss: float
    rotation_deg: float
    direction_deg: float
    guess_rotation_deg: float
    guess_direction_deg: float
    auc: tuple[float, ...]
    broken: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Evaluator:
    """Evaluates a network on a fixed choice of held-out pairs."""

    def __init__(self, held_out: Mixture, *, size: tuple[int, int], most: int, processes: Processes) -> None:
        """`size` (width, height) is that of the images; at most `most` pairs are drawn, the same each time."""
        items = held_out.epoch_items(0)
        if len(items) > most:
            items = items[np.sort(np.random.default_rng(0).permutation(len(items))[:most])]
        self.items, self._size, self._processes = items, size, processes

    def __call__(self, network: PairNetwork, inputs: PairInputs, loader: PairLoader, form: AngleForm) -> Evaluation:
        """Evaluate.

        Raises:
            TrainingError: none of the pairs can be read.
        """
        rows, broken = self._rows(network, inputs, loader, form)
        gathered = self._processes.gather([*rows.tolist(), broken])
        found = np.array([row for row in gathered if isinstance(row, list)], dtype=float)
        if len(found) == 0:
            raise TrainingError("none of the held-out pairs can be read; the log names them")
        loss, known = found[:, 0], found[:, 5] > 0
        rotation, guess_rotation, direction, guess_direction = np.degrees(found[:, 1:5]).T
        worst = np.where(known, np.maximum(rotation, direction), rotation)
        return Evaluation(
            pairs=len(found),
            loss=float(loss.mean()),
            median_loss=float(np.median(loss)),
            rotation_deg=float(np.median(rotation)),
            direction_deg=_median(direction[known]),
            guess_rotation_deg=float(np.median(guess_rotation)),
            guess_direction_deg=_median(guess_direction[known]),
            auc=tuple(100 * area_under_recall(worst, limit) for limit in THRESHOLDS_DEG),
            broken=sum(row for row in gathered if isinstance(row, int)),
        )

    def _rows(
        self, network: PairNetwork, inputs: PairInputs, loader: PairLoader, form: AngleForm
    ) -> tuple[NDArray[np.float64], int]:
        """Errors of this process's pairs, and the number of the broken.

        Columns: loss, rotation and that of the guess, direction and that of the guess, whether it is known; radians.
        """
        own = self.items[self._processes.rank :: self._processes.count]
        at_a_time = PAIRS_AT_A_TIME.get(self._processes.device.type, 32)
        rows, broken = [np.zeros((0, 6))], 0
        for start in range(0, len(own), at_a_time):
            pairs = self._read(loader, own[start : start + at_a_time])
            broken += min(at_a_time, len(own) - start) - len(pairs)
            if pairs:
                with torch.no_grad():
                    raw1, raw2 = network(inputs.groups(pairs))
                    targets = inputs.targets(pairs)
                    found = pair_losses(raw1, raw2, targets, form)
                    guess_rotation = rotation_angles(torch.eye(3).to(targets.pose2), targets.pose2[:, :3, :3], "exact")
                    forward = targets.pose2.new_tensor([[0.0, 0.0, 1.0]]).expand(len(pairs), 3)
                    guess_direction = direction_angles(forward, targets.pose2[:, :3, 3], "exact")
                columns = [found.loss, found.rotation2, guess_rotation, found.direction2, guess_direction]
                columns.append(targets.has_direction)
                rows.append(torch.stack([column.double() for column in columns], dim=1).cpu().numpy())
        return np.concatenate(rows), broken

    def _read(self, loader: PairLoader, items: Ids) -> list[LoadedPair]:
        requests = [Request((int(a), int(b)), self._size, 0, 0) for a, b in items]
        return [pair for request in requests if (pair := loader.load_or_none(request)) is not None]


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def area_under_recall(errors: Sequence[float] | NDArray[np.float64], limit: float) -> float:
    """Area under the share of errors below a threshold, over thresholds from 0 to `limit`, in [0, 1]."""
    below = np.sort(np.asarray(errors, float))
    below = below[below < limit]
    thresholds = np.concatenate([[0.0], below, [limit]])
    recall = np.arange(len(below) + 1) / max(len(errors), 1)
    recall = np.append(recall, recall[-1])
    return float(np.trapezoid(recall, thresholds) / limit)

"""Training of the confidence head: with everything else frozen, so that poses stay the same to the bit.

Each pair goes through the network once per variant of its colors; the head is then trained on what came out. Its
calibration is measured on held-out pairs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from relocalizer.errors import ConfigError, TrainingError
from relocalizer.geometry import direction_angle, rotation_angle
from relocalizer.network.confidence_head import (
    CONFIDENCE_FILE,
    ConfidenceHead,
    pooled_feature,
    pose_cues,
    write_confidence,
)
from relocalizer.network.model import rotation_margin
from relocalizer.predictors.pair_uncertainty import (
    RIGHT_DIRECTION_RAD,
    RIGHT_ROTATION_RAD,
    PairCalibration,
    TwoWayPose,
    estimate_of,
)
from relocalizer.training.config import TrainingConfig
from relocalizer.training.data_sources import OpenPosed
from relocalizer.training.loss import relative_pose
from relocalizer.training.output_files import replacing, write_json, write_weights
from relocalizer.training.pair_data import Ids
from relocalizer.training.pair_loader import LoadedPair, PairLoader, Request
from relocalizer.training.processes import process_count, processes
from relocalizer.training.session import begin_folder, prepare
from relocalizer.training.trainer import Progress, Workplace

CALIBRATION_FILE = "calibration.json"
BINS = 10
PAIRS_AT_A_TIME = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Pairs of similar confidence: their number, mean confidence, and the share of them that is right."""

    pairs: int
    confidence: float
    right: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceResult:
    """What the training of a confidence head gave, on held-out pairs.

    Attributes:
        right: share of the poses that are right.
        brier, brier_before: mean squared difference of confidence and truth, with the head and with the confidence
            that follows from the disagreement of the two outputs; smaller is better.
        table: bins of increasing confidence.
    """

    folder: Path
    pairs: int
    held_out_pairs: int
    right: float
    brier: float
    brier_before: float
    table: list[CalibrationBin]
    license: str

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What the network says about pairs: features (n, width), cues (n, 3), whether right (n,), old confidence (n,)."""

    pooled: NDArray[np.float32]
    cues: NDArray[np.float32]
    right: NDArray[np.float32]
    before: NDArray[np.float64]


def train_confidence(
    config: TrainingConfig,
    folder: Path,
    *,
    open_posed: OpenPosed | None = None,
    on_progress: Progress | None = None,
    say: Callable[[str], None] = _log.info,
) -> ConfidenceResult:
    """Train a confidence head; the folder then holds the weights of the start, unchanged, and the head beside them.

    Raises:
        UserError: as `train`; several processes, or no pair that can be used.
    """
    if process_count() > 1:
        raise ConfigError("tune: confidence is trained by one process; start it without torchrun")
    with processes(config.device) as own:
        place, _ = prepare(config, folder, own, open_posed=open_posed)
        begin_folder(folder, config)
        network = place.network.model
        variants = config.jitter_variants if config.jitter else 1
        say(f"start: {config.start}; confidence head of {place.metadata['data']}")
        training = _outputs(place, place.loader, place.mixture.epoch_items(0), variants, on_progress)
        held_out = _outputs(place, place.held_out_loader, place.evaluator.items, 1, on_progress)
        say(f"{100 * training.right.mean():.0f} % of {len(training.right)} poses are right")
        head = fit(training, config)
        result = _measured(folder, place, head, training, held_out)
        write_weights(folder, network.architecture, network.state_dict(), place.metadata)
        with replacing(folder / CONFIDENCE_FILE) as temporary:
            write_confidence(temporary, head, network)
        write_json(folder / CALIBRATION_FILE, result.as_dict())
        return result


def fit(outputs: Outputs, config: TrainingConfig) -> ConfidenceHead:
    """A head trained by the cross-entropy of the probability that a pose is right; the same bits each time."""
    generator = torch.Generator().manual_seed(config.seed)
    pooled, cues, right = (torch.from_numpy(a) for a in (outputs.pooled, outputs.cues, outputs.right))
    head = _new_head(pooled.shape[1], float(right.mean()), generator)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    for _ in range(config.epochs):
        for rows in torch.split(torch.randperm(len(right), generator=generator), config.batch):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(head(pooled[rows], cues[rows]), right[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return head.eval()


def predicted(head: ConfidenceHead, outputs: Outputs) -> NDArray[np.float64]:
    """Confidence (n,) of each pair."""
    with torch.inference_mode():
        logits = head(torch.from_numpy(outputs.pooled), torch.from_numpy(outputs.cues))
        return np.asarray(torch.sigmoid(logits).double().numpy())


def calibration_table(confidence: NDArray[np.float64], right: NDArray[np.float32]) -> list[CalibrationBin]:
    """Bins of equal counts, by increasing confidence; fewer than ten where there are few pairs."""
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, max(1, min(BINS, len(order) // 5)))
    return [CalibrationBin(len(p), float(confidence[p].mean()), float(right[p].mean())) for p in parts]


def _measured(
    folder: Path, place: Workplace, head: ConfidenceHead, training: Outputs, held_out: Outputs
) -> ConfidenceResult:
    confidence = predicted(head, held_out)
    return ConfidenceResult(
        folder=folder,
        pairs=len(training.right),
        held_out_pairs=len(held_out.right),
        right=float(held_out.right.mean()),
        brier=float(((confidence - held_out.right) ** 2).mean()),
        brier_before=float(((held_out.before - held_out.right) ** 2).mean()),
        table=calibration_table(confidence, held_out.right),
        license=place.metadata["license"],
    )


def _new_head(width: int, share_right: float, generator: torch.Generator) -> ConfidenceHead:
    """A head that says the share of right poses for every pair."""
    head = ConfidenceHead(width)
    share = min(max(share_right, 1e-3), 1 - 1e-3)
    with torch.no_grad():
        torch.nn.init.xavier_uniform_(head.reduce.weight, generator=generator)
        for values in (head.reduce.bias, head.out.weight):
            values.zero_()
        head.out.bias.fill_(math.log(share / (1 - share)))
    return head


def _outputs(place: Workplace, loader: PairLoader, items: Ids, variants: int, on_progress: Progress | None) -> Outputs:
    """Outputs of the network for all pairs that can be used and have a direction, in each variant of their colors."""
    found: list[Outputs] = []
    total = len(items) * variants
    requests = [
        Request((int(a), int(b)), place.sizes[0], variant, position)
        for variant in range(variants)
        for position, (a, b) in enumerate(items)
    ]
    for start in range(0, total, PAIRS_AT_A_TIME):
        pairs = [loader.load_or_none(request) for request in requests[start : start + PAIRS_AT_A_TIME]]
        usable = [pair for pair in pairs if pair is not None and pair.has_direction]
        if usable:
            found.append(_of_pairs(place, usable))
        if on_progress is not None:
            on_progress("pairs through the network", min(start + PAIRS_AT_A_TIME, total), total, "")
    if not found:
        raise TrainingError("none of the pairs can be used for a confidence; the log names them")
    return Outputs(
        np.concatenate([part.pooled for part in found]),
        np.concatenate([part.cues for part in found]),
        np.concatenate([part.right for part in found]),
        np.concatenate([part.before for part in found]),
    )


def _of_pairs(place: Workplace, pairs: list[LoadedPair]) -> Outputs:
    with torch.no_grad():
        j_from_i, i_from_j = place.network(place.inputs.groups(pairs))
        margin = torch.minimum(*(rotation_margin(raw.rotation9) for raw in (j_from_i, i_from_j)))
        pooled = pooled_feature(j_from_i, i_from_j).cpu().numpy()
        forward, backward = (raw.pose().double().cpu().numpy() for raw in (i_from_j, j_from_i))
    poses = [TwoWayPose(f, b, float(m)) for f, b, m in zip(forward, backward, margin, strict=True)]
    right = [_is_right(pose, pair) for pose, pair in zip(poses, pairs, strict=True)]
    calibration = PairCalibration.published(224 if place.sizes[0][0] <= 224 else 512)
    before = [getattr(estimate_of(pose, calibration), "confidence", 0.0) for pose in poses]
    return Outputs(pooled, pose_cues(poses), np.array(right, np.float32), np.array(before))


def _is_right(pose: TwoWayPose, pair: LoadedPair) -> bool:
    true = relative_pose(pair.world_from_1, pair.world_from_2)
    rotation = rotation_angle(pose.i_from_j[:3, :3].T @ true[:3, :3])
    direction = direction_angle(pose.i_from_j[:3, 3], true[:3, 3])
    return bool(rotation < RIGHT_ROTATION_RAD and direction < RIGHT_DIRECTION_RAD)

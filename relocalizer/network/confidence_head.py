"""A head that tells how far to trust the pose of a pair; the poses themselves do not change.

Trained on pairs with known poses, with everything else frozen (`relocalizer.training.confidence`), and stored beside
the weights it was trained for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from relocalizer.errors import WeightsError
from relocalizer.network.model import RawPose, Reloc3r
from relocalizer.network.weights import tensors_sha256
from relocalizer.predictors.checkpoints import Checkpoint
from relocalizer.predictors.pair_uncertainty import TwoWayPose

CONFIDENCE_FILE = "confidence.safetensors"
REDUCED = 32  # width to which the pooled feature is reduced
CUES = 3
LEAST_DISAGREEMENT_RAD = 1e-3  # keeps the logarithm of a disagreement finite


class ConfidenceHead(nn.Module):
    """Logit of the probability that rotation and direction of a pair are right.

    From the feature of the pose head, averaged over both sides, and from cues of the two poses.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.reduce = nn.Linear(width, REDUCED)
        self.out = nn.Linear(REDUCED + CUES, 1)

    def forward(self, pooled: Tensor, cues: Tensor) -> Tensor:
        """(B,) logits of features (B, width) and cues (B, 3)."""
        reduced = torch.relu(self.reduce(self.norm(pooled)))
        logits: Tensor = self.out(torch.cat([reduced, cues], dim=1))
        return logits[:, 0]

    def probabilities(self, raw1: RawPose, raw2: RawPose, poses: Sequence[TwoWayPose]) -> list[float]:
        """The probability for each pair, from the outputs of the network and the poses made of them."""
        pooled = pooled_feature(raw1, raw2).to(self.out.weight.device)
        logits = self(pooled, torch.from_numpy(pose_cues(poses)).to(pooled.device))
        return [float(p) for p in torch.sigmoid(logits)]


def pooled_feature(raw1: RawPose, raw2: RawPose) -> Tensor:
    """(B, width) float32, mean of both sides."""
    assert raw1.pooled is not None
    assert raw2.pooled is not None
    return (raw1.pooled.float() + raw2.pooled.float()) / 2


def pose_cues(poses: Sequence[TwoWayPose]) -> NDArray[np.float32]:
    """(B, 3): logarithms of the disagreements of rotation and direction, and the SVD margin; zero if not finite."""
    rows = [(p.rotation_disagreement_rad, p.direction_disagreement_rad, p.svd_margin) for p in poses]
    cues = np.array(rows, np.float64).reshape(-1, CUES)
    cues[:, :2] = np.log(np.maximum(cues[:, :2], LEAST_DISAGREEMENT_RAD))
    return np.nan_to_num(cues, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)


def write_confidence(path: Path, head: ConfidenceHead, model: Reloc3r) -> None:
    """Write a head for the weights of a model."""
    save_file(
        {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()},
        path,
        metadata={"weights": pose_head_sha256(model)},
    )


def read_confidence(path: Path, model: Reloc3r) -> ConfidenceHead:
    """The head in a file, in evaluation mode, on the device of the model.

    Raises:
        WeightsError: the file is damaged, or was made for other weights.
    """
    head = ConfidenceHead(model.architecture.head_hidden)
    try:
        with safe_open(path, "pt") as file:
            made_for = (file.metadata() or {}).get("weights", "")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({error}); remove it, or copy it again") from None
    if made_for != pose_head_sha256(model):
        raise WeightsError(f"{path}: made for other weights than those beside it; remove it, or train it again")
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path}: not a confidence head ({str(error).splitlines()[0]}); remove it") from None
    return head.to(model.enc_norm.weight.device).eval()


def confidence_beside(
    checkpoint: Checkpoint, model: Reloc3r, backend: str, announce: Callable[[str], None]
) -> ConfidenceHead | None:
    """The head stored beside the weights of a model; None if there is none, or if the backend lacks what it needs.

    Raises:
        WeightsError: as `read_confidence`.
    """
    path = checkpoint.weights.with_name(CONFIDENCE_FILE)
    if not path.is_file():
        return None
    head = read_confidence(path, model)
    if backend == "openvino":
        announce(f"{path}: not used with backend openvino; confidences are those of the disagreement")
        return None
    return head


def pose_head_sha256(model: Reloc3r) -> str:
    """A hash of the pose head, whose tensors are float32 in any precision of the network."""
    return tensors_sha256(model, ("pose_head.",))

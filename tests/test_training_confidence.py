"""The confidence head: trained alone, stored beside the weights, used where it fits them; poses stay to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_training_loop import opener, settings
from training_world import CAMERA, rendered

from relocalizer.errors import ConfigError, WeightsError
from relocalizer.interfaces import CalibratedImage
from relocalizer.network.model import Reloc3r
from relocalizer.predictors.checkpoints import locate, training_note
from relocalizer.predictors.reloc3r_predictor import Reloc3rPredictor
from relocalizer.training.confidence import Outputs, calibration_table, fit, predicted, train_confidence
from relocalizer.training.initialization import initialize
from relocalizer.training.output_files import write_weights
from relocalizer.training.session import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(start, folder with the head, result)."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("confidence")
    start, out = folder / "start", folder / "out"
    model = Reloc3r(settings().architecture.sizes())
    initialize(model, seed=4)
    write_weights(start, model.architecture, model.state_dict(), {"license": "of the start"})
    config = settings(start=str(start), tune="confidence", jitter=True, jitter_variants=2, epochs=3)
    return start, out, train_confidence(config, out, open_posed=opener(8, 12))


def test_the_weights_stay_to_the_bit_and_the_terms_with_them(trained):
    start, out, result = trained
    assert (out / "model.safetensors").read_bytes() == (start / "model.safetensors").read_bytes()
    assert json.loads((out / "training.json").read_text())["license"] == result.license == "of the start"
    table = json.loads((out / "calibration.json").read_text())
    assert sum(row["pairs"] for row in table["table"]) == table["held_out_pairs"] == 12
    assert result.pairs == 16


def related(weights, monkeypatch=None):
    images, _ = rendered(8)
    predictor = Reloc3rPredictor.load("reloc3r-224", weights=weights, device="cpu")
    big = [np.repeat(np.repeat(image, 5, axis=0), 5, axis=1) for image in images[:6]]
    encoded = predictor.encode([CalibratedImage(image, CAMERA.resized(240, 180)) for image in big])
    return predictor.relate([(encoded[k], encoded[k + 1]) for k in (0, 2, 4)])


@pytest.fixture
def patch_of_seven(monkeypatch):
    """Images of the predictor whose sides are multiples of the small network's patches."""
    for module in ("preprocessing", "reloc3r_predictor"):
        sizes = {224: ((96, 72),), 512: ((96, 72),)}
        monkeypatch.setattr(f"relocalizer.predictors.{module}.TRAINED_SIZES", sizes)


def test_the_predictor_gives_the_confidence_of_the_head_and_the_same_poses(trained, patch_of_seven):
    start, out, _ = trained
    without, with_head = related(start), related(out)
    for a, b in zip(without, with_head, strict=True):
        assert np.array_equal(a.i_from_j_rotation, b.i_from_j_rotation)
        assert np.array_equal(a.i_from_j_direction, b.i_from_j_direction)
        assert (a.rotation_sigma_rad, a.direction_sigma_rad) == (b.rotation_sigma_rad, b.direction_sigma_rad)
        assert a.confidence != b.confidence
        assert 0 <= b.confidence <= 1


def test_only_its_own_way_trains_it(tmp_path):
    with pytest.raises(ConfigError, match="trained by slam train --tune confidence"):
        train(settings(tune="confidence"), tmp_path / "t", open_posed=opener())


def test_damaged_metadata_beside_weights_are_one_line(trained, tmp_path):
    checkpoint = locate(trained[1])
    assert training_note(checkpoint).startswith("trained from ")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "training.json").write_text('{"start": ')
    with pytest.raises(WeightsError, match="not the metadata of a training; restore or remove the file"):
        training_note(locate(tmp_path))


def test_a_head_of_other_weights_is_refused(trained, patch_of_seven, tmp_path):
    _, out, _ = trained
    model = Reloc3r(settings().architecture.sizes())
    initialize(model, seed=5)
    write_weights(tmp_path, model.architecture, model.state_dict(), {})
    (tmp_path / "confidence.safetensors").write_bytes((out / "confidence.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="made for other weights than those beside it"):
        Reloc3rPredictor.load("reloc3r-224", weights=tmp_path, device="cpu")
    (tmp_path / "confidence.safetensors").write_bytes(b"cut off")
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        Reloc3rPredictor.load("reloc3r-224", weights=tmp_path, device="cpu")


def test_the_head_learns_what_the_features_tell(rng):
    """Poses are right where the first feature is large: the head finds out, and its confidence is calibrated."""
    pooled = rng.standard_normal((1200, 16)).astype(np.float32)
    right = (pooled[:, 0] + 0.5 * rng.standard_normal(1200) > 0).astype(np.float32)
    cues = rng.standard_normal((1200, 3)).astype(np.float32)
    known, new = (Outputs(pooled[s], cues[s], right[s], np.zeros(600)) for s in (slice(600), slice(600, None)))
    config = settings(lr=3e-3, batch=32, epochs=20)
    head = fit(known, config)
    confidence = predicted(head, new)
    assert ((confidence - new.right) ** 2).mean() < 0.6 * 0.25
    table = calibration_table(confidence, new.right)
    assert len(table) == 10
    assert all(abs(row.confidence - row.right) < 0.2 for row in table)
    assert np.array_equal(predicted(fit(known, config), new), confidence)

"""Loss, gradients, schedule and start of the training are as specified; each figure can be checked by hand."""

from __future__ import annotations

import argparse
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from relocalizer.errors import WeightsError
from relocalizer.network.model import Architecture, RawPose, Reloc3r, rotation_from_nine
from relocalizer.training.initialization import initialize, starting_model
from relocalizer.training.loss import NearestRotation, pair_losses, relative_pose, rotation_with_gradient, targets_of
from relocalizer.training.schedule import LearningRate, adamw, freeze

TINY = Architecture(
    patch_size=4, enc_embed_dim=32, enc_depth=2, enc_num_heads=2, dec_embed_dim=24, dec_depth=2, dec_num_heads=2
)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def pose(rotvec, center):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(rotvec).as_matrix()
    matrix[:3, 3] = center
    return matrix


def raw_of(a_from_b, length=1.0):
    found = torch.from_numpy(a_from_b).float()
    return RawPose(length * found[None, :3, 3], found[None, :3, :3].reshape(1, 9))


ONE, TWO = pose([0.1, 0.2, -0.3], [1.0, 2.0, 3.0]), pose([0.4, -0.1, 0.2], [1.5, 1.0, 3.5])
ONE_FROM_TWO, TWO_FROM_ONE = np.linalg.inv(ONE) @ TWO, np.linalg.inv(TWO) @ ONE


def losses_of(raw1, raw2, *, has_direction=True, form="clamped"):
    return pair_losses(raw1, raw2, targets_of(ONE[None], TWO[None], [has_direction]), form)


# --- loss ---------------------------------------------------------------------------------------------


def test_the_loss_is_the_sum_of_four_angles_in_radians():
    turned = ONE_FROM_TWO @ pose([0.0, 0.0, 0.5], [0, 0, 0])  # rotation wrong by 0.5 rad
    aside = TWO_FROM_ONE.copy()
    aside[:3, 3] = np.cross(aside[:3, 3], [0.3, 0.8, -0.2])  # direction wrong by 90 degrees
    found = losses_of(raw_of(aside), raw_of(turned), form="exact")
    for value, expected in [
        (found.rotation1, 0.0), (found.rotation2, 0.5), (found.direction1, math.pi / 2), (found.direction2, 0.0),
        (found.loss, 0.5 + math.pi / 2),
    ]:  # fmt: skip
        assert value.item() == pytest.approx(expected, abs=2e-6)
    clamped = losses_of(raw_of(aside), raw_of(turned)).loss.item()
    assert clamped == pytest.approx(0.5 + math.pi / 2 + 2 * math.acos(1 - 1e-6), abs=1e-3)


def test_the_clamped_loss_has_a_floor_and_the_exact_one_has_none():
    right = raw_of(TWO_FROM_ONE, 50.0), raw_of(ONE_FROM_TWO, 50.0)
    assert losses_of(*right).loss.item() == pytest.approx(4 * math.acos(1 - 1e-6), rel=0.02)
    assert 4 * math.acos(1 - 1e-6) == pytest.approx(0.00566, abs=1e-5)
    assert losses_of(*right, form="exact").loss.item() < 2e-6


@pytest.mark.parametrize("form", ["clamped", "exact"])
def test_the_length_of_the_translation_does_not_count(form):
    wrong = pose([0.3, 0, 0], [1.0, 0.2, 0.1])
    values = [losses_of(raw_of(wrong, k), raw_of(wrong, k), form=form).loss.item() for k in (1.0, 50.0)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_exchanging_the_views_exchanges_the_terms():
    a, b = raw_of(pose([0.3, 0, 0], [1.0, 0.2, 0.1])), raw_of(pose([0, 0.2, 0.6], [0.1, -0.4, 0.3]))
    there = pair_losses(a, b, targets_of(ONE[None], TWO[None], [True]))
    back = pair_losses(b, a, targets_of(TWO[None], ONE[None], [True]))
    assert torch.equal(there.rotation1, back.rotation2)
    assert torch.equal(there.direction2, back.direction1)
    assert there.loss.item() == pytest.approx(back.loss.item(), abs=1e-6)


@pytest.mark.parametrize("form", ["clamped", "exact"])
def test_a_pair_without_baseline_teaches_its_rotation_alone(form):
    raw = [RawPose(torch.randn(2, 3, requires_grad=True), torch.randn(2, 9, requires_grad=True)) for _ in range(2)]
    still = pose([0.4, -0.1, 0.2], ONE[:3, 3])
    targets = targets_of([ONE, ONE], [TWO, still], [True, False])
    found = pair_losses(*raw, targets, form)
    found.loss.mean().backward()
    assert found.direction1[1] == found.direction2[1] == 0
    for side in raw:
        assert side.translation.grad[0].abs().sum() > 0
        assert torch.equal(side.translation.grad[1], torch.zeros(3))
        assert side.rotation9.grad.isfinite().all()
        assert side.rotation9.grad[1].abs().sum() > 0


def test_relative_poses_keep_their_digits_far_from_the_origin():
    far = np.array([4.5e5, 5.6e6, 300.0])
    one, two = pose([0.1, 0.2, -0.3], far), pose([0.4, -0.1, 0.2], [far[0] + 0.25, far[1] + 0.5, far[2] - 0.125])
    near = relative_pose(pose([0.1, 0.2, -0.3], np.zeros(3)), pose([0.4, -0.1, 0.2], [0.25, 0.5, -0.125]))
    np.testing.assert_allclose(relative_pose(one, two), near, atol=1e-8)
    np.testing.assert_allclose(targets_of(one[None], two[None], [True]).pose2[0], near, atol=1e-6)


# --- gradient of the rotation ---------------------------------------------------------------------------


def nine_numbers(kind, count=64):
    generator = torch.Generator().manual_seed(0)
    rotations = torch.from_numpy(Rotation.random(count, rng=0).as_matrix())
    noise = torch.randn(count, 3, 3, generator=generator, dtype=torch.float64)
    return {
        "random": noise,
        "orthonormal": rotations,
        "nearly orthonormal": rotations + 1e-5 * noise,
        "reflected": rotations * torch.tensor([1.0, 1.0, -1.0]) + 0.3 * noise,
        "identity": torch.eye(3, dtype=torch.float64).repeat(count, 1, 1),
    }[kind]


@pytest.mark.parametrize("kind", ["random", "orthonormal", "nearly orthonormal", "reflected", "identity"])
def test_rotations_are_those_of_the_network_and_their_gradient_is_the_numerical_one(kind):
    matrices = nine_numbers(kind)
    found = rotation_with_gradient(matrices.flatten(1))
    torch.testing.assert_close(found, rotation_from_nine(matrices.flatten(1)), atol=1e-12, rtol=0)
    few = matrices[:6].clone().requires_grad_()
    assert torch.autograd.gradcheck(NearestRotation.apply, (few,), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["orthonormal", "identity"])
def test_gradients_are_finite_where_those_of_the_svd_are_not(kind):
    nine = nine_numbers(kind).flatten(1).float().requires_grad_()
    (rotation_with_gradient(nine) * torch.randn(3, 3)).sum().backward()
    assert nine.grad.isfinite().all()
    assert nine.grad.abs().max() < 10


def test_gradients_are_finite_where_the_rotation_is_undetermined():
    nine = torch.tensor([[1.0, 0, 0, 0, 1, 0, 0, 1, 0], [0.0] * 9, [1e20, 0, 0, 0, 1e-20, 0, 0, 0, -1]])
    nine.requires_grad_()
    rotation_with_gradient(nine).sum().backward()
    assert nine.grad.isfinite().all()


# --- schedule -----------------------------------------------------------------------------------------


def test_the_learning_rate_at_fractional_epochs():
    rate = LearningRate(peak=1e-5, final=1e-7, warmup_epochs=5, epochs=100)
    assert [rate.at(0), rate.at(2.5), rate.at(5), rate.at(100)] == pytest.approx([0, 5e-6, 1e-5, 1e-7])
    assert rate.at(52.5) == pytest.approx((1e-5 + 1e-7) / 2)
    assert LearningRate(peak=1.0, final=0.0, warmup_epochs=0, epochs=1).at(0) == 1.0


@pytest.mark.parametrize("tuned", ["all", "decoder", "head"])
def test_frozen_parts_stay_to_the_bit_and_all_others_move(tuned):
    model = Reloc3r(TINY)
    initialize(model, seed=1)
    trained = freeze(model, tuned)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = adamw(model, weight_decay=0.05, betas=(0.9, 0.95))
    images = torch.rand(2, 2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    for _ in range(2):
        optimizer.zero_grad()
        raw = model.decode_raw(model.encode(images[0]), model.encode(images[1]))
        pair_losses(*raw, targets_of([ONE, TWO], [TWO, ONE], [True, True])).loss.mean().backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(trained)
    expected = {"all": "patch_embed.proj.weight", "decoder": "enc_norm.weight", "head": "pose_head.fc_t.bias"}
    assert expected[tuned] in changed
    assert ("patch_embed.proj.weight" in changed) == (tuned == "all")


def test_biases_and_gains_do_not_decay():
    model = Reloc3r(TINY)
    freeze(model, "decoder")
    decaying, still = adamw(model, weight_decay=0.05, betas=(0.9, 0.95)).param_groups
    assert decaying["weight_decay"] == 0.05
    assert still["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in decaying["params"])
    assert all(p.ndim == 1 for p in still["params"])
    assert sum(len(g["params"]) for g in (decaying, still)) == sum(p.requires_grad for p in model.parameters())


# --- start --------------------------------------------------------------------------------------------

WIDE = Architecture(
    patch_size=4, enc_embed_dim=64, enc_depth=2, enc_num_heads=1, dec_embed_dim=64, dec_depth=2, dec_num_heads=1
)


def dust3r_state(**changes):
    """Tensors with the names of a DUSt3R checkpoint: the first decoder filled with 1, the second one with 2."""
    model = Reloc3r(WIDE)
    initialize(model, seed=5)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(("pose_head.", "dec_blocks."))}
    for key, value in model.state_dict().items():
        if key.startswith("dec_blocks."):
            state[key] = torch.full_like(value, 1.0)
            state[key.replace("dec_blocks.", "dec_blocks2.")] = torch.full_like(value, 2.0)
    state |= {"mask_token": torch.zeros(1, 1, 64), "downstream_head1.proj.weight": torch.zeros(4, 4)}
    state |= {"downstream_head2.proj.weight": torch.zeros(4, 4)}
    return {k: v for k, v in (state | changes).items() if v is not None}


def saved(path, state):
    torch.save({"model": state, "args": argparse.Namespace(model="AsymmetricCroCo3DStereo(...)"), "epoch": 3}, path)
    return str(path)


def test_dust3rs_second_decoder_becomes_the_shared_one(tmp_path):
    state = dust3r_state()
    start = starting_model(saved(tmp_path / "dust3r.pth", state), seed=3)
    assert start.model.architecture == WIDE
    assert "CC BY-NC-SA" in start.license
    for key, value in start.model.state_dict().items():
        if key.startswith("dec_blocks."):
            assert torch.equal(value, torch.full_like(value, 2.0)), key
        elif not key.startswith("pose_head."):
            assert torch.equal(value, state[key]), key
    again = starting_model(saved(tmp_path / "again.pth", state), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(start.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dec_blocks2.1.norm3.weight": None}, "no tensor for 'dec_blocks.1.norm3.weight'"),
        ({"enc_blocks.0.attn.qkv.bias": torch.zeros(5)}, r"'enc_blocks.0.attn.qkv.bias' is \(5,\) where \(192,\)"),
        ({"dec_norm.bias": torch.full((64,), torch.nan)}, "'dec_norm.bias' holds NaN"),
        ({"backbone.weight": torch.zeros(3)}, "'backbone.weight' and 0 more are no tensors"),
    ],
)
def test_a_start_that_is_not_whole_is_refused(tmp_path, changes, sentence):
    with pytest.raises(WeightsError, match=sentence):
        starting_model(saved(tmp_path / "broken.pth", dust3r_state(**changes)))


def test_objects_in_a_checkpoint_are_not_run(tmp_path):
    torch.save({"model": dust3r_state(), "args": tmp_path}, tmp_path / "objects.pth")
    with pytest.raises(WeightsError, match="holds Python objects"):
        starting_model(str(tmp_path / "objects.pth"))


def test_a_training_checkpoint_of_reloc3r_is_a_start(tmp_path):
    model = Reloc3r(WIDE)
    initialize(model, seed=2)
    torch.save({"model": model.state_dict(), "args": argparse.Namespace(lr=1e-5)}, tmp_path / "checkpoint.pth")
    start = starting_model(str(tmp_path / "checkpoint.pth"))
    assert all(torch.equal(a, b) for a, b in zip(start.model.parameters(), model.parameters(), strict=True))


def test_random_weights_are_those_of_the_paper():
    model = starting_model("random", WIDE, seed=1).model
    assert model.dec_blocks[0].norm_y.weight.eq(1).all()
    assert model.dec_blocks[0].mlp.fc1.bias.eq(0).all()
    bound = math.sqrt(6 / (64 + 48))
    assert bound * 0.98 < model.patch_embed.proj.weight.abs().max() <= bound
    assert model.pose_head.res_conv[0].res_conv1.bias.abs().max() > 0

"""The network gives the numbers of the reference implementation, and has the tensors of its checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from relocalizer.network.layers import Grid, rotary_of_grid, rotary_of_positions, rotate
from relocalizer.network.model import (
    Architecture,
    Reloc3r,
    Tokens,
    rotation_from_nine,
    rotation_margin,
    use_explicit_attention,
    use_matmul_dtype,
)

POSE_BOUND = 2e-5  # a LayerNorm eps of 1e-5 in place of 1e-6, the smallest known mistake, moves poses by 1.1e-4
TINY = Architecture(
    patch_size=4,
    enc_embed_dim=32,
    enc_depth=2,
    enc_num_heads=2,
    dec_embed_dim=24,
    dec_depth=2,
    dec_num_heads=2,
)

PARITY = os.environ.get("RELOC3R_PARITY")
needs_parity = pytest.mark.skipif(PARITY is None, reason="RELOC3R_PARITY does not name the folder of reference values")


def parity_cases() -> list[tuple[str, str]]:
    return [
        (folder, case)
        for folder, cases in {
            "tiny-224": ["square_b1", "square_b2"],
            "tiny-512": [
                "landscape_b2",
                "portrait_b1",
                "portrait_b2",
                "landscape_portrait_b1",
                "portrait_landscape_b1",
                "wide_b1",
                "landscape_wide_b1",
                "landscape_tall_b1",
                "mixed_b2",
            ],
        }.items()
        for case in cases
    ]


@pytest.fixture(scope="module")
def reference() -> Any:
    """Loads a reference model and its values by folder name, once each."""
    loaded: dict[str, tuple[Reloc3r, Any]] = {}

    def load(folder: str) -> tuple[Reloc3r, Any]:
        if folder not in loaded:
            path = Path(str(PARITY)) / folder
            config = json.loads((path / "config.json").read_text())
            base = float(config.pop("pos_embed").removeprefix("RoPE"))
            model = Reloc3r(Architecture(**config, rotary_base=base)).eval()
            model.load_state_dict(load_file(path / "model.safetensors"))
            loaded[folder] = (model, np.load(path / "golden.npz", allow_pickle=False))
        return loaded[folder]

    return load


def images(golden: Any, case: str, view: int) -> list[Tensor]:
    count = len(golden[f"{case}/pose1"])
    arrays = [golden[f"{case}/img{view}_{i}"].astype(np.float32) for i in range(count)]
    return [torch.from_numpy((a / 255 - 0.5) / 0.5).permute(2, 0, 1) for a in arrays]


@pytest.fixture
def tiny() -> Reloc3r:
    torch.manual_seed(3)
    return Reloc3r(TINY).eval()


def random_images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) * 2 - 1


@needs_parity
@pytest.mark.parametrize(("folder", "case"), parity_cases())
def test_poses_equal_the_reference(reference: Any, folder: str, case: str) -> None:
    model, golden = reference(folder)
    with torch.no_grad():
        poses = model(images(golden, case, 1), images(golden, case, 2))
    for name, pose in zip(("pose1", "pose2"), poses, strict=True):
        assert np.abs(pose.numpy() - golden[f"{case}/{name}"]).max() < POSE_BOUND


@needs_parity
@pytest.mark.parametrize(("folder", "case"), [c for c in parity_cases() if "mixed" not in c[1]])
def test_raw_outputs_equal_the_reference_when_halves_are_called_one_by_one(
    reference: Any, folder: str, case: str
) -> None:
    model, golden = reference(folder)
    with torch.no_grad():
        tokens = [model.encode(torch.stack(images(golden, case, view))) for view in (1, 2)]
        raws = model.decode_raw(*tokens)
        pose2 = model.decode_pose2(*tokens)
    for view, raw in enumerate(raws, start=1):
        assert np.abs(raw.translation.numpy() - golden[f"{case}/raw_t{view}"]).max() < POSE_BOUND
        assert np.abs(raw.rotation9.numpy() - golden[f"{case}/raw_r{view}"]).max() < POSE_BOUND
    assert np.abs(pose2.numpy() - golden[f"{case}/pose2"]).max() < POSE_BOUND


@needs_parity
@pytest.mark.parametrize(("folder", "case"), [("tiny-224", "square_b1"), ("tiny-512", "landscape_portrait_b1")])
def test_tokens_between_the_parts_equal_the_reference(reference: Any, folder: str, case: str) -> None:
    model, golden = reference(folder)
    stride = int(golden[f"{case}/token_stride"])
    seen: dict[str, list[Tensor]] = {"patch": [], "encoder": [], "decoder_block0": [], "decoder": []}
    parts = {
        "patch": model.patch_embed,
        "encoder": model.enc_norm,
        "decoder_block0": model.dec_blocks[0],
        "decoder": model.dec_norm,
    }
    hooks = [
        part.register_forward_hook(lambda _m, _i, out, name=name: seen[name].extend(out.split(1)))
        for name, part in parts.items()
    ]
    with torch.no_grad():
        model(images(golden, case, 1), images(golden, case, 2))
    for hook in hooks:
        hook.remove()
    for name, sides in seen.items():
        for view, tokens in enumerate(sides, start=1):
            want = golden[f"{case}/{name}{view}"]
            assert np.abs(tokens[0, ::stride].numpy() - want).max() < 1e-4, (name, view)


@needs_parity
def test_explicit_attention_gives_the_numbers_of_the_fused_operator(reference: Any) -> None:
    model, golden = reference("tiny-512")
    views = [images(golden, "landscape_tall_b1", view) for view in (1, 2)]
    use_explicit_attention(model)
    try:
        with torch.no_grad():
            pose1, pose2 = model(*views)
    finally:
        use_explicit_attention(model, explicit=False)
    assert np.abs(pose1.numpy() - golden["landscape_tall_b1/pose1"]).max() < POSE_BOUND
    assert np.abs(pose2.numpy() - golden["landscape_tall_b1/pose2"]).max() < POSE_BOUND


@needs_parity
@pytest.mark.parametrize("width", [12, 16, 64])
def test_rotary_positions_equal_the_reference(width: int) -> None:
    golden = np.load(Path(str(PARITY)) / "prims" / "golden.npz", allow_pickle=False)
    positions = torch.from_numpy(golden[f"rope/{width}/positions"][0])
    heads = torch.from_numpy(golden[f"rope/{width}/in"]).transpose(1, 2).contiguous()
    turned = rotate(heads, rotary_of_positions(positions, width, 100.0)).transpose(1, 2)
    assert np.abs(turned.numpy() - golden[f"rope/{width}/out"]).max() < 1e-5


@needs_parity
def test_rotations_equal_the_reference() -> None:
    golden = np.load(Path(str(PARITY)) / "prims" / "golden.npz", allow_pickle=False)
    rotations = rotation_from_nine(torch.from_numpy(golden["svd/in"]))
    assert np.abs(rotations.numpy() - golden["svd/out"]).max() < 1e-5


def test_a_full_size_model_has_the_tensors_of_the_released_checkpoints() -> None:
    with torch.device("meta"):
        model = Reloc3r(Architecture())
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert len(shapes) == 606
    assert sum(p.numel() for p in model.parameters()) == 426_523_916
    assert shapes["patch_embed.proj.weight"] == (1024, 3, 16, 16)
    assert shapes["enc_blocks.23.mlp.fc1.weight"] == (4096, 1024)
    assert shapes["dec_blocks.11.cross_attn.projk.weight"] == (768, 768)
    assert shapes["dec_blocks.0.norm_y.bias"] == (768,)
    assert shapes["pose_head.res_conv.1.res_conv3.weight"] == (1024, 1024, 1, 1)
    assert shapes["pose_head.more_mlps.2.weight"] == (1024, 1024)
    assert not any(key.startswith(("head.", "rope")) for key in shapes)


@pytest.mark.skipif("RELOC3R_KEYS" not in os.environ, reason="RELOC3R_KEYS does not name the list of released tensors")
def test_every_tensor_of_the_full_list_is_there_in_its_order_and_shape() -> None:
    lines = Path(os.environ["RELOC3R_KEYS"]).read_text().splitlines()
    want = [tuple(line.split()[:2]) for line in lines if not line.startswith("#")]
    with torch.device("meta"):
        state = Reloc3r(Architecture()).state_dict()
    assert [(key, "x".join(map(str, value.shape))) for key, value in state.items()] == want


def test_a_smaller_patch_makes_a_narrower_head() -> None:
    with torch.device("meta"):
        model = Reloc3r(TINY)
    assert model.pose_head.fc_t.weight.shape == (3, 4 * 4 * 4)


def test_exchanged_views_exchange_the_poses(tiny: Reloc3r) -> None:
    a, b = random_images(2, 1, 3, 16, 24)
    with torch.no_grad():
        pose1, pose2 = tiny(a, b)
        swapped1, swapped2 = tiny(b, a)
    assert torch.allclose(pose1, swapped2, atol=1e-6)
    assert torch.allclose(pose2, swapped1, atol=1e-6)
    assert not torch.allclose(pose1, pose2, atol=1e-3)


def test_a_batch_gives_the_poses_of_its_members(tiny: Reloc3r) -> None:
    a, b = random_images(2, 3, 3, 16, 24)
    with torch.no_grad():
        _, batched = tiny(a, b)
        single = torch.cat([tiny(a[i : i + 1], b[i : i + 1])[1] for i in range(3)])
    assert torch.allclose(batched, single, atol=1e-5)


def test_views_of_different_sizes_give_rigid_transforms(tiny: Reloc3r) -> None:
    with torch.no_grad():
        for pose in tiny(random_images(1, 3, 16, 24), random_images(1, 3, 32, 8)):
            rotation = pose[0, :3, :3].double()
            assert torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-5)
            assert torch.linalg.det(rotation) > 0.99
            assert pose[0, 3].tolist() == [0, 0, 0, 1]


def test_pose2_alone_equals_pose2_of_both(tiny: Reloc3r) -> None:
    with torch.no_grad():
        a, b = tiny.encode(random_images(2, 3, 16, 24)), tiny.encode(random_images(2, 3, 24, 16))
        assert torch.allclose(tiny.decode_pose2(a, b), tiny.decode(a, b)[1], atol=1e-6)


def test_an_empty_batch_gives_no_poses(tiny: Reloc3r) -> None:
    nothing = torch.zeros(0, 3, 16, 16)
    for pose1, pose2 in (tiny(nothing, nothing), tiny([], [])):
        assert pose1.shape == pose2.shape == (0, 4, 4)


def test_an_image_smaller_than_a_patch_is_refused(tiny: Reloc3r) -> None:
    with pytest.raises(ValueError, match="sides must be multiples of 4, got 8 x 3"):
        tiny.encode(torch.zeros(1, 3, 3, 8))


def test_an_image_that_does_not_split_into_patches_is_refused(tiny: Reloc3r) -> None:
    with pytest.raises(ValueError, match="sides must be multiples of 4, got 10 x 8"):
        tiny.encode(torch.zeros(1, 3, 8, 10))


def test_an_image_without_three_channels_is_refused(tiny: Reloc3r) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\), got \(1, 1, 8, 8\)"):
        tiny.encode(torch.zeros(1, 1, 8, 8))


def test_views_of_different_number_are_refused(tiny: Reloc3r) -> None:
    with pytest.raises(ValueError, match="view1 holds 2 images, view2 1"):
        tiny(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_heads_that_do_not_divide_a_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width 768 does not split into 5 heads"):
        Architecture(dec_num_heads=5)


def test_training_steps_lower_the_loss_of_a_toy_pair() -> None:
    torch.manual_seed(0)
    model = Reloc3r(TINY).train()
    a, b = random_images(2, 1, 3, 16, 16)
    target = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(16):
        pose1, pose2 = model(a, b)
        loss = (pose2[0, :3, :3] - target).square().sum() + (pose1[0, :3, :3] - target.T).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_gradients_reach_every_parameter(tiny: Reloc3r) -> None:
    pose1, pose2 = tiny(random_images(1, 3, 16, 16), random_images(1, 3, 16, 16).flip(-1))
    (pose1.square() * torch.arange(16).view(4, 4)).sum().add(pose2[:, :3].sum()).backward()
    silent = [n for n, p in tiny.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []


def test_training_works_after_tables_were_made_in_inference_mode(tiny: Reloc3r) -> None:
    rotary_of_grid.cache_clear()
    image = random_images(1, 3, 8, 12)
    with torch.inference_mode():
        tiny(image, image)
    pose1, _ = tiny(image, image)
    pose1.sum().backward()
    assert tiny.patch_embed.proj.weight.grad is not None


def test_rotary_turns_depend_on_the_offset_of_positions_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(1))

    def product(a: tuple[int, int], b: tuple[int, int]) -> float:
        turned = [rotate(x, rotary_of_positions(torch.tensor([p]), 16, 100.0)) for x, p in ((q, a), (k, b))]
        return float((turned[0] * turned[1]).sum())

    assert product((2, 3), (5, 1)) == pytest.approx(product((12, 8), (15, 6)), abs=1e-5)
    assert product((2, 3), (5, 1)) != pytest.approx(product((2, 3), (1, 5)), abs=1e-2)


def test_rotary_tables_of_a_grid_count_rows_first() -> None:
    table = rotary_of_grid(Grid(rows=2, columns=3), 4, 100.0, torch.device("cpu"))
    # Head width 4 has one frequency of 1 rad per patch: channels are (row, row, column, column).
    angles = torch.acos(table.cos).mul(1).round(decimals=4)
    assert angles[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert angles[:, 2].tolist() == [0, 1, 2, 0, 1, 2]


def test_nine_numbers_of_a_rotation_scaled_by_row_give_that_rotation() -> None:
    quarter_turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    nine = (quarter_turn * torch.tensor([[0.1], [5.0], [300.0]])).reshape(1, 9)
    assert torch.allclose(rotation_from_nine(nine)[0], quarter_turn, atol=1e-6)


def test_a_reflection_becomes_a_rotation() -> None:
    rotation = rotation_from_nine(torch.tensor([[1.0, 0, 0, 0, 1, 0, 0, 0.1, -1]]))[0]
    assert torch.linalg.det(rotation).item() == pytest.approx(1.0, abs=1e-6)


def test_the_margin_of_a_rotation_is_two_for_orthonormal_rows_and_small_for_equal_ones() -> None:
    firm = rotation_margin(torch.eye(3).reshape(1, 9))
    loose = rotation_margin(torch.tensor([[1.0, 0, 0, 1, 0.01, 0, 1, 0, 0.01]]))
    assert firm.item() == pytest.approx(2.0)
    assert loose.item() < 0.05


def test_half_products_keep_the_stream_the_head_and_the_answer_in_float32(tiny: Reloc3r) -> None:
    a, b = random_images(2, 1, 3, 16, 16)
    with torch.no_grad():
        exact: Tokens = tiny.encode(a)
        use_matmul_dtype(tiny, torch.bfloat16)
        tokens = tiny.encode(a)
        _, pose2 = tiny.decode(tokens, tiny.encode(b))
    assert tokens.features.dtype == pose2.dtype == torch.float32
    assert tiny.pose_head.fc_t.weight.dtype == tiny.enc_norm.weight.dtype == torch.float32
    assert 0 < (tokens.features - exact.features).abs().max() < 0.1

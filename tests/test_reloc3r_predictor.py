"""Reloc3r behind the seam of pair predictors: encoded once, decoded in batches, trusted as far as it agrees."""

from __future__ import annotations

import gc
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from relocalizer.camera import Camera
from relocalizer.errors import CameraError, DeviceError, SequenceError, WeightsError
from relocalizer.features import LocalFeatures
from relocalizer.geometry import direction_angle, exp_so3, rotation_angle
from relocalizer.images import Image
from relocalizer.interfaces import CalibratedImage, NoEstimate, PairEstimate, PosePredictor
from relocalizer.network.model import Architecture, Reloc3r
from relocalizer.network.weights import load_model, random_model
from relocalizer.predictors.pair_uncertainty import Calibration, ErrorLevel, PairCalibration, TwoWayPose, estimate_of
from relocalizer.predictors.preprocessing import network_input, prepare_loose
from relocalizer.predictors.reloc3r_predictor import Reloc3rPredictor
from relocalizer.training.output_files import write_weights

TINY = Architecture(enc_embed_dim=32, enc_depth=2, enc_num_heads=2, dec_embed_dim=24, dec_depth=2, dec_num_heads=2)
PARITY = os.environ.get("RELOC3R_PARITY")
NO_FEATURES = LocalFeatures(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32), np.zeros(0, np.float32))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def model() -> Reloc3r:
    return random_model(TINY, seed=4)


@pytest.fixture
def predictor(model: Reloc3r) -> Reloc3rPredictor:
    return Reloc3rPredictor(model, "reloc3r-224")


def stored(rng: np.random.Generator, width: int = 320, height: int = 240) -> Image:
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 16, axis=0), 16, axis=1)


def views(rng: np.random.Generator, count: int, **size: int) -> list[CalibratedImage]:
    return [CalibratedImage(stored(rng, **size)) for _ in range(count)]


def estimate(answer: PairEstimate | NoEstimate) -> PairEstimate:
    assert isinstance(answer, PairEstimate)
    return answer


class _Counting:
    """Counts the images the network encodes."""

    def __init__(self, model: Reloc3r, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = 0
        encode = model.encode

        def counted(images: Any) -> Any:
            self.images += len(images)
            return encode(images)

        monkeypatch.setattr(model, "encode", counted)


def two_way(
    rotation_off_rad: float = 0.0, direction_off_rad: float = 0.0, *, length: float = 1.0, margin: float = 2.0
) -> TwoWayPose:
    """A pair whose two answers differ by the given angles."""
    forward, backward = np.eye(4), np.eye(4)
    forward[:3, :3] = exp_so3([0.1, -0.4, 0.2])
    forward[:3, 3] = length * np.array([0.6, 0.0, 0.8])
    back_direction = -forward[:3, :3].T @ forward[:3, 3]
    across = np.cross(back_direction, [0.0, 1.0, 0.0])
    backward[:3, 3] = exp_so3(direction_off_rad * across / np.linalg.norm(across)) @ back_direction
    backward[:3, :3] = exp_so3([rotation_off_rad, 0.0, 0.0]) @ forward[:3, :3].T
    return TwoWayPose(forward, backward, margin)


def test_it_is_a_pose_predictor(predictor: Reloc3rPredictor) -> None:
    seam: PosePredictor = predictor
    assert seam.name == "reloc3r-224"


def test_the_answer_is_the_networks_pose2_without_its_length(model: Reloc3r, rng: np.random.Generator) -> None:
    exact = Reloc3rPredictor(model, "reloc3r-224", cache_dtype=torch.float32)
    i, j = views(rng, 2)
    answer = estimate(exact.relate([tuple(exact.encode([i, j]))])[0])  # type: ignore[list-item]
    inputs = [torch.from_numpy(network_input(prepare_loose(v.image, 224).pixels))[None] for v in (i, j)]
    with torch.no_grad():
        pose2 = model(*inputs)[1][0].double().numpy()
    assert rotation_angle(answer.i_from_j_rotation.T @ pose2[:3, :3]) < 1e-4
    assert answer.i_from_j_direction is not None
    assert direction_angle(answer.i_from_j_direction, pose2[:3, 3]) < 1e-4


def test_half_precision_of_the_cache_moves_an_answer_by_little(model: Reloc3r, rng: np.random.Generator) -> None:
    pair = views(rng, 2)
    answers = []
    for dtype in (torch.float32, torch.float16):
        predictor = Reloc3rPredictor(model, "reloc3r-224", cache_dtype=dtype)
        i, j = predictor.encode(pair)
        answers.append(estimate(predictor.relate([(i, j)])[0]).i_from_j_rotation)
    assert 0 < rotation_angle(answers[0].T @ answers[1]) < np.radians(0.5)


def test_an_image_is_encoded_once_however_often_it_is_paired(
    model: Reloc3r, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, counting = Reloc3rPredictor(model, "reloc3r-224"), _Counting(model, monkeypatch)
    *keyframes, query = predictor.encode(views(rng, 5))
    predictor.relate([(keyframe, query) for keyframe in keyframes])
    predictor.relate([(query, keyframes[0])])
    predictor.describe(query)
    assert counting.images == 5


def test_a_batch_of_pairs_of_mixed_sizes_gives_the_answers_of_its_members_in_order(
    model: Reloc3r, rng: np.random.Generator
) -> None:
    predictor = Reloc3rPredictor(model, "reloc3r-512")
    wide, tall = views(rng, 2, width=640, height=480), views(rng, 2, width=480, height=640)
    a, b, c, d = predictor.encode([wide[0], tall[0], wide[1], tall[1]])
    pairs = [(a, b), (a, c), (b, d), (c, a), (d, c)]
    together, alone = predictor.relate(pairs), [predictor.relate([pair])[0] for pair in pairs]
    for one, other in zip(together, alone, strict=True):
        R, S = estimate(one).i_from_j_rotation, estimate(other).i_from_j_rotation
        assert rotation_angle(R.T @ S) < 1e-3


def test_no_pairs_and_no_images_are_no_problem(predictor: Reloc3rPredictor) -> None:
    assert predictor.encode([]) == []
    assert predictor.relate([]) == []


def test_images_that_differ_in_one_pixel_are_two_images(predictor: Reloc3rPredictor) -> None:
    gray = np.full((224, 224, 3), 90, np.uint8)
    marked = gray.copy()
    marked[7, 9, 1] = 91
    a, b = predictor.encode([CalibratedImage(gray), CalibratedImage(marked)])
    assert a is not b
    assert not np.array_equal(predictor.describe(a), predictor.describe(b))


def test_the_prepared_image_comes_back_without_loss_from_half_of_its_memory(
    predictor: Reloc3rPredictor, rng: np.random.Generator
) -> None:
    [view] = views(rng, 1)
    [encoded] = predictor.encode([view])
    prepared = prepare_loose(view.image, 224).pixels
    kept = encoded.pixels  # type: ignore[attr-defined]
    assert np.array_equal(kept(), prepared)
    assert kept.nbytes < prepared.nbytes / 2


def test_the_cache_keeps_to_its_bound_and_answers_stay_the_same(
    model: Reloc3r, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = views(rng, 4)
    roomy = Reloc3rPredictor(model, "reloc3r-224")
    one_image = 14 * 14 * 32 * 2
    tight = Reloc3rPredictor(model, "reloc3r-224", cache_bytes=2 * one_image)
    kept, spilled = roomy.encode(images), tight.encode(images)
    assert roomy.cached_bytes == 4 * one_image
    assert tight.cached_bytes == 2 * one_image
    counting = _Counting(model, monkeypatch)
    again, same = roomy.relate([(kept[0], kept[3])])[0], tight.relate([(spilled[0], spilled[3])])[0]
    assert counting.images == 1
    assert tight.cached_bytes == 2 * one_image
    assert np.array_equal(estimate(again).i_from_j_rotation, estimate(same).i_from_j_rotation)


def test_what_nobody_remembers_leaves_the_cache(predictor: Reloc3rPredictor, rng: np.random.Generator) -> None:
    keyframe, passing, *latest = predictor.encode(views(rng, 4))
    before = predictor.cached_bytes
    del passing
    gc.collect()
    assert predictor.cached_bytes == before * 3 // 4
    assert keyframe is not None
    assert latest


def test_a_descriptor_is_a_unit_vector_that_finds_its_image_again(
    predictor: Reloc3rPredictor, rng: np.random.Generator
) -> None:
    images = views(rng, 4)
    noisy = np.clip(images[2].image.astype(int) + rng.integers(-6, 7, (240, 320, 3)), 0, 255)
    *places, query = predictor.encode([*images, CalibratedImage(noisy.astype(np.uint8))])
    descriptors = np.array([predictor.describe(place) for place in places])
    assert descriptors.shape == (4, 32)
    assert descriptors.dtype == np.float32
    assert np.linalg.norm(descriptors, axis=1) == pytest.approx(np.ones(4), abs=1e-6)
    assert int(np.argmax(descriptors @ predictor.describe(query))) == 2


def test_the_same_seed_gives_the_same_bytes(rng: np.random.Generator) -> None:
    pair = views(rng, 2)
    answers = []
    for _ in range(2):
        predictor = Reloc3rPredictor.random("reloc3r-224", seed=9, device="cpu", architecture=TINY)
        i, j = predictor.encode(pair)
        answers.append(estimate(predictor.relate([(i, j)])[0]))
    assert answers[0].i_from_j_rotation.tobytes() == answers[1].i_from_j_rotation.tobytes()
    assert answers[0].confidence == answers[1].confidence


def test_random_weights_say_so_in_the_name() -> None:
    predictor = Reloc3rPredictor.random("reloc3r-224", device="cpu", architecture=TINY)
    assert predictor.name == "reloc3r-224 (RANDOM WEIGHTS: poses mean nothing)"


def test_a_keyframe_of_a_saved_map_is_read_and_encoded_when_it_is_first_related(
    model: Reloc3r, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, counting = Reloc3rPredictor(model, "reloc3r-512"), _Counting(model, monkeypatch)
    camera = Camera(width=320, height=240, fx=300.0, fy=300.0, cx=159.5, cy=119.5)
    image, other = stored(rng), stored(rng)
    live, query = predictor.encode([CalibratedImage(image, camera), CalibratedImage(other, camera)])
    read: list[int] = []

    def saved() -> Image:
        read.append(1)
        return image

    descriptor = predictor.describe(live)
    recalled = predictor.restore_encoding(NO_FEATURES, camera, descriptor, saved)
    assert (read, counting.images) == ([], 2)
    found, wanted = predictor.relate([(recalled, query)])[0], predictor.relate([(live, query)])[0]
    predictor.relate([(recalled, live)])
    assert (read, counting.images) == ([1], 3)
    assert np.array_equal(estimate(found).i_from_j_rotation, estimate(wanted).i_from_j_rotation)
    assert np.array_equal(predictor.describe(recalled), descriptor)


def test_a_keyframe_of_a_saved_map_that_nobody_remembers_leaves_the_cache(
    predictor: Reloc3rPredictor, rng: np.random.Generator
) -> None:
    camera = Camera(width=320, height=240, fx=300.0, fy=300.0, cx=159.5, cy=119.5)
    [query] = predictor.encode([CalibratedImage(stored(rng), camera)])
    before = predictor.cached_bytes
    saved = stored(rng)
    recalled = predictor.restore_encoding(NO_FEATURES, camera, predictor.describe(query), lambda: saved)
    predictor.relate([(recalled, query)])
    assert predictor.cached_bytes == 2 * before
    del recalled
    gc.collect()
    assert predictor.cached_bytes == before


@pytest.mark.parametrize("turned", [False, True])
def test_the_size_of_a_saved_image_is_known_from_its_camera(model: Reloc3r, turned: bool) -> None:
    predictor = Reloc3rPredictor(model, "reloc3r-512")
    camera = Camera(width=752, height=480, fx=458.0, fy=457.0, cx=367.2, cy=248.4)
    if turned:
        camera = Camera(width=480, height=752, fx=457.0, fy=458.0, cx=248.4, cy=367.2)
    image = np.zeros((camera.height, camera.width, 3), np.uint8)
    [live] = predictor.encode([CalibratedImage(image, camera)])
    recalled = predictor.restore_encoding(NO_FEATURES, camera, predictor.describe(live), lambda: image)
    assert recalled.size == live.size == recalled.pixels().shape[:2]  # type: ignore[attr-defined]


def test_a_camera_decides_the_size_of_the_prepared_image(model: Reloc3r, rng: np.random.Generator) -> None:
    predictor = Reloc3rPredictor(model, "reloc3r-512")
    camera = Camera(width=752, height=480, fx=458.0, fy=457.0, cx=367.2, cy=248.4)
    loose, calibrated = predictor.encode(
        [CalibratedImage(np.zeros((480, 752, 3), np.uint8), c) for c in (None, camera)]
    )
    assert loose.size == (320, 512)  # type: ignore[attr-defined]
    assert calibrated.size == (336, 512)  # type: ignore[attr-defined]


def test_bad_images_are_refused_before_anything_is_encoded(predictor: Reloc3rPredictor) -> None:
    with pytest.raises(SequenceError, match="smaller than one patch"):
        predictor.encode([CalibratedImage(np.zeros((8, 8, 3), np.uint8))])
    camera = Camera(width=64, height=48, fx=50.0, fy=50.0, cx=32.0, cy=24.0)
    with pytest.raises(CameraError, match="does not fit an image of 320 x 240"):
        predictor.encode([CalibratedImage(np.zeros((240, 320, 3), np.uint8), camera)])


def test_gray_and_transparent_images_are_accepted(predictor: Reloc3rPredictor) -> None:
    gray, rgba = np.zeros((64, 64), np.uint8), np.zeros((64, 64, 4), np.uint8)
    assert len(predictor.encode([CalibratedImage(gray), CalibratedImage(rgba)])) == 2


def save(model: Reloc3r, folder: Path, img_size: int) -> Path:
    save_file({key: value.clone() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    config = {"img_size": img_size, "enc_embed_dim": 32, "enc_depth": 2, "enc_num_heads": 2}
    config |= {"dec_embed_dim": 24, "dec_depth": 2, "dec_num_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_checkpoint_loads_by_its_folder(model: Reloc3r, tmp_path: Path, rng: np.random.Generator) -> None:
    loaded = Reloc3rPredictor.load("reloc3r-224", weights=save(model, tmp_path, 224), device="cpu")
    pair = views(rng, 2)
    poses = [
        estimate(p.relate([tuple(p.encode(pair))])[0]).i_from_j_rotation  # type: ignore[list-item]
        for p in (loaded, Reloc3rPredictor(model, "reloc3r-224"))
    ]
    assert loaded.name == "reloc3r-224"
    assert rotation_angle(poses[0].T @ poses[1]) < 1e-3


def test_a_checkpoint_of_the_other_network_is_refused(model: Reloc3r, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="trained for 224 pixels, so not reloc3r-512"):
        Reloc3rPredictor.load("reloc3r-512", weights=save(model, tmp_path, 224), device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_patches_that_do_not_divide_the_images_are_refused(tmp_path: Path) -> None:
    odd = random_model(replace(TINY, patch_size=6), seed=0)
    write_weights(tmp_path, odd.architecture, odd.state_dict(), {"license": "none"})
    with pytest.raises(WeightsError, match="patches of 6 pixels do not divide 224 x 224, the images of reloc3r-224"):
        Reloc3rPredictor.load("reloc3r-224", weights=tmp_path)


def test_cuda_asked_for_and_absent_is_said_before_weights_are_searched_for() -> None:
    with pytest.raises(DeviceError, match="this machine has 0 CUDA devices"):
        Reloc3rPredictor.load("reloc3r-224", weights="/no/such/folder", device="cuda")


@pytest.mark.skipif(PARITY is None, reason="RELOC3R_PARITY does not name the folder of reference values")
def test_reference_poses_disagree_in_the_two_ways_as_their_estimates_say() -> None:
    golden = np.load(Path(str(PARITY)) / "tiny-512" / "golden.npz", allow_pickle=False)
    model = load_model(Path(str(PARITY)) / "tiny-512")
    case = "landscape_portrait_b1"
    inputs = [torch.from_numpy(network_input(golden[f"{case}/img{v}_0"]))[None] for v in (1, 2)]
    with torch.no_grad():
        tokens = [model.encode(images) for images in inputs]
        pose1, pose2 = (pose[0].double().numpy() for pose in model.decode(*tokens))
    answer = estimate(estimate_of(TwoWayPose(pose2, pose1, 2.0), PairCalibration.published(512)))
    want = golden[f"{case}/pose2"][0]
    assert np.abs(answer.i_from_j_rotation - want[:3, :3]).max() < 2e-5
    assert answer.i_from_j_direction is not None
    assert direction_angle(answer.i_from_j_direction, want[:3, 3]) < 1e-4


def test_two_way_disagreement_is_measured_in_both_parts() -> None:
    pose = two_way(0.05, 0.3)
    assert pose.rotation_disagreement_rad == pytest.approx(0.05)
    assert pose.direction_disagreement_rad == pytest.approx(0.3)


def test_ways_that_agree_are_trusted_and_ways_that_do_not_are_not() -> None:
    calibration = PairCalibration.published(512)
    good, poor, wrong = (
        estimate(estimate_of(two_way(np.radians(r), np.radians(d)), calibration))
        for r, d in ((0.5, 2.0), (4.0, 15.0), (90.0, 120.0))
    )
    assert good.confidence > 0.95 > poor.confidence > 0.3 > 0.01 > wrong.confidence
    assert good.rotation_sigma_rad < poor.rotation_sigma_rad < wrong.rotation_sigma_rad
    assert good.direction_sigma_rad < poor.direction_sigma_rad < wrong.direction_sigma_rad


def test_the_length_of_the_translation_changes_nothing() -> None:
    calibration = PairCalibration.published(224)
    short, long = (estimate(estimate_of(two_way(0.02, 0.1, length=length), calibration)) for length in (1e-4, 1e4))
    assert short.i_from_j_direction is not None
    assert long.i_from_j_direction is not None
    assert np.allclose(short.i_from_j_direction, long.i_from_j_direction)
    assert short.direction_sigma_rad == pytest.approx(long.direction_sigma_rad)
    assert short.confidence == pytest.approx(long.confidence)


def test_a_rotation_that_nine_numbers_hardly_fix_is_trusted_less() -> None:
    calibration = PairCalibration.published(512)
    firm, loose = (estimate(estimate_of(two_way(margin=m), calibration)) for m in (2.0, 0.1))
    assert loose.rotation_sigma_rad == pytest.approx(20 * firm.rotation_sigma_rad)
    assert loose.confidence < 0.1 < firm.confidence


def test_a_translation_of_zero_and_an_answer_of_nan_give_no_estimate() -> None:
    calibration = PairCalibration.published(512)
    still, broken = two_way(), two_way()
    still.i_from_j[:3, 3] = 0.0
    broken.i_from_j[0, 0] = np.nan
    for pose, part in ((still, "translation of exactly zero"), (broken, "not finite")):
        answer = estimate_of(pose, calibration)
        assert isinstance(answer, NoEstimate)
        assert part in answer.reason


def test_the_assumed_calibration_says_the_truth_on_pairs_drawn_from_its_own_error_model(
    rng: np.random.Generator,
) -> None:
    level = ErrorLevel(median_rad=np.radians(3.0), log_sd=0.7, correlation=0.5)
    calibration = Calibration.assumed(level, axes=2, right_rad=np.radians(20.0))
    count = 20_000
    scale = level.median_rad * np.exp(level.log_sd * rng.normal(size=(count, 1)))
    common, own, back = rng.normal(size=(3, count, 2)) * np.sqrt(0.5)
    error, other = scale * (common + own), scale * (common + back)
    disagreement = np.linalg.norm(error - other, axis=1)
    for low, high in ((2.0, 3.0), (8.0, 12.0), (20.0, 30.0)):
        members = (np.degrees(disagreement) > low) & (np.degrees(disagreement) < high)
        found = np.sqrt((error[members] ** 2).mean())
        said = np.mean([calibration.sigma(float(d)) for d in disagreement[members]])
        assert said == pytest.approx(found, rel=0.1)


def test_a_measured_calibration_gives_back_the_errors_it_was_measured_on(
    rng: np.random.Generator,
) -> None:
    disagreement = rng.uniform(0.01, 0.3, 4000)
    error = np.linalg.norm(rng.normal(size=(4000, 2)), axis=1) * 0.5 * disagreement
    calibration = Calibration.measured(disagreement, error, axes=2, right_rad=0.1)
    for found in (0.05, 0.15, 0.25):
        assert calibration.sigma(found) == pytest.approx(0.5 * found, rel=0.1)
    assert calibration.probability(0.05) > 0.99 > calibration.probability(0.28)


def test_a_calibration_from_too_few_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected two \(N,\) arrays with N >= 100"):
        Calibration.measured(np.zeros(20), np.zeros(20), axes=2, right_rad=0.1)

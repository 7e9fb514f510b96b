"""What a map in memory promises, who can read it, and how a keyframe is recalled."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from map_samples import CAMERA, small_map

from relocalizer.camera import Camera
from relocalizer.config import FeaturesConfig, GeometricConfig
from relocalizer.errors import MapError
from relocalizer.features import detect_features, root_sift
from relocalizer.interfaces import CalibratedImage
from relocalizer.maps.map_rules import validate
from relocalizer.maps.reference_map import (
    EdgeTable,
    FrameTable,
    check_predictor,
    provenance_of,
    quantized,
    restore_encoding,
    restored,
)
from relocalizer.network.model import Architecture
from relocalizer.network.weights import random_model
from relocalizer.predictors.geometric_predictor import GeometricPredictor
from relocalizer.predictors.reloc3r_predictor import Reloc3rPredictor

TINY = Architecture(enc_embed_dim=32, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, dec_depth=1, dec_num_heads=2)


def textured(rng, width=320, height=240):
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 8, axis=0), 8, axis=1)


# --- values -------------------------------------------------------------------------------------------


def test_points_lie_in_the_world_by_way_of_their_anchors_unit():
    m = small_map()
    table = replace(m.keyframes, scales=np.full(4, 2.0), translations=m.keyframes.translations + 5.0)
    moved = replace(m, keyframes=table)
    expected = table.world_from_keyframe(0).apply(m.landmarks.points_in_anchor)
    assert np.allclose(moved.points_world, expected)


def test_each_keyframe_owns_its_features():
    m = small_map()
    pixels = np.concatenate([m.features.of(row).pixels for row in range(4)])
    assert np.array_equal(pixels, m.features.pixels)
    assert m.features.landmarks_of(2).tolist() == list(range(12))


def test_bytes_of_descriptors_stay_within_one_when_packed_again(rng):
    packed = quantized(root_sift(rng.gamma(0.3, 40.0, (2000, 128)).astype(np.float32)))
    assert np.abs(quantized(restored(packed)).astype(int) - packed).max() <= 1


def test_packed_descriptors_are_nearly_the_ones_they_were(rng):
    descriptors = root_sift(rng.gamma(0.3, 40.0, (200, 128)).astype(np.float32))
    similarity = np.einsum("nd,nd->n", restored(quantized(descriptors)), descriptors)
    assert similarity.min() > 0.9995


def test_a_map_without_edges_and_frames_keeps_the_rules():
    validate(replace(small_map(), edges=EdgeTable.none(), frames=FrameTable.none()))


@pytest.mark.parametrize(
    ("table", "column", "what"),
    [
        ("keyframes", "timestamps_ns", "keyframes.timestamps_ns: expected 4 rows"),
        ("features", "landmark", "features.landmark: expected 48 rows"),
        ("observations", "landmark", "observations.landmark: expected 48 rows"),
        ("landmarks", "colors", "landmarks.colors: expected 12 rows"),
        ("edges", "sigmas", "edges.sigmas: expected 3 rows"),
        ("frames", "keyframe", "frames.keyframe: expected 8 rows"),
    ],
)
def test_a_column_with_a_row_missing_breaks_a_rule(table, column, what):
    m = small_map()
    short = replace(getattr(m, table), **{column: getattr(getattr(m, table), column)[:-1]})
    with pytest.raises(ValueError, match=what.replace(".", r"\.")):
        validate(replace(m, **{table: short}))


# --- predictors ---------------------------------------------------------------------------------------


def geometric():
    return GeometricPredictor(FeaturesConfig(), GeometricConfig())


def test_a_map_says_which_predictor_made_it():
    made = provenance_of(geometric(), {"max_features": 900})
    assert (made.predictor, made.descriptor, made.weights_sha256) == ("geometric", "vlad", "")
    assert made.features == {"max_features": 900}


def test_random_weights_are_distinguished_by_their_seed():
    names = [Reloc3rPredictor.random("reloc3r-224", seed=s, device="cpu", architecture=TINY) for s in (1, 2)]
    first, second = (provenance_of(predictor, {}) for predictor in names)
    assert first.predictor == second.predictor
    with pytest.raises(MapError, match="made with the weights"):
        check_predictor(first, names[1])


def test_a_predictor_without_known_weights_reads_any_map_of_its_name():
    check_predictor(
        replace(provenance_of(geometric(), {}), weights_sha256="a" * 64),
        SimpleNamespace(name="geometric", descriptor="vlad"),
    )


def test_the_geometric_predictor_recalls_a_keyframe_without_its_image():
    m = small_map(image=lambda row: pytest.fail("the image was read"))
    encoded = restore_encoding(geometric(), m, 1)
    assert np.array_equal(encoded.features.pixels, m.features.of(1).pixels)
    assert encoded.camera == CAMERA


def test_a_recalled_pair_is_related_as_the_pair_itself(rng):
    predictor, image = geometric(), textured(rng)
    camera = Camera(width=320, height=240, fx=300.0, fy=300.0, cx=159.5, cy=119.5)
    features = detect_features(image.mean(axis=2).astype(np.uint8), FeaturesConfig())
    [encoded] = predictor.encode([CalibratedImage(image, camera, features)])
    again = predictor.restore_encoding(features, camera, predictor.describe(encoded), lambda: image)
    assert again.order == encoded.order


def test_reloc3r_encodes_a_recalled_keyframe_only_when_it_is_related(rng):
    predictor = Reloc3rPredictor(random_model(TINY, seed=4), "reloc3r-224")
    images = [textured(rng), textured(rng)]
    camera = Camera(width=320, height=240, fx=300.0, fy=300.0, cx=159.5, cy=119.5)
    whole = predictor.encode([CalibratedImage(image, camera) for image in images])
    [expected] = predictor.relate([(whole[0], whole[1])])
    before = predictor.cached_bytes
    features = small_map().features.of(0)
    again = [
        predictor.restore_encoding(features, camera, predictor.describe(e), lambda i=i: i)
        for e, i in zip(whole, images, strict=True)
    ]
    assert predictor.cached_bytes == before
    assert np.array_equal(predictor.describe(again[0]), predictor.describe(whole[0]))
    [found] = predictor.relate([(again[0], again[1])])
    assert predictor.cached_bytes > before
    assert np.allclose(found.i_from_j_rotation, expected.i_from_j_rotation, atol=1e-5)


def test_another_predictor_sees_the_image_again():
    class Plain:
        name = "plain"

        def encode(self, views):
            return [view.image.shape for view in views]

    assert restore_encoding(Plain(), small_map(), 2) == (48, 64, 3)

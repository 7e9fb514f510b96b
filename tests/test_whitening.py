"""Whitened descriptors: what all places share is gone, and directions count alike."""

from __future__ import annotations

import numpy as np
import pytest

from relocalizer.whitening import Whitening


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def descriptors(rng: np.random.Generator, count: int = 400, size: int = 32) -> np.ndarray:
    """Unit vectors with a large part in common, along directions of very different strength."""
    vectors = 5.0 + rng.normal(size=(count, size)) * np.geomspace(1.0, 0.05, size)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_along_its_axes_the_descriptors_it_was_fitted_on_are_uncorrelated_and_of_equal_variance(rng):
    given = descriptors(rng)
    whitening = Whitening.fit(given, dimensions=12)
    along = (given - whitening.mean) @ whitening.axes
    assert along.shape == (400, 12)
    assert np.cov(along.T) == pytest.approx(np.eye(12), abs=1e-9)


def test_whitened_descriptors_are_unit_vectors_that_no_longer_all_look_alike(rng):
    given = descriptors(rng)
    whitened = Whitening.fit(given).apply(given)
    assert whitened.dtype == np.float32
    assert np.linalg.norm(whitened, axis=1) == pytest.approx(np.ones(400), abs=1e-6)
    apart = ~np.eye(400, dtype=bool)
    assert (given @ given.T)[apart].mean() > 0.9
    assert abs((whitened @ whitened.T)[apart].mean()) < 0.01


def test_a_place_seen_again_is_found_among_places_that_differ_where_variance_is_small(rng):
    given = descriptors(rng)
    again = given + rng.normal(0, 2e-4, given.shape)
    whitening = Whitening.fit(given)
    found = (whitening.apply(again) @ whitening.apply(given).T).argmax(axis=1)
    assert (found == np.arange(400)).mean() > 0.99


def test_no_more_directions_are_kept_than_the_descriptors_have(rng):
    assert Whitening.fit(descriptors(rng, count=6)).axes.shape == (32, 5)


def test_a_descriptor_that_equals_the_mean_looks_like_no_place(rng):
    whitening = Whitening.fit(descriptors(rng), dimensions=8)
    found = whitening.apply(whitening.mean)
    assert np.linalg.norm(found) == pytest.approx(1.0)
    assert found == pytest.approx(np.full(8, 8**-0.5))


def test_equal_descriptors_give_no_whitening():
    with pytest.raises(ValueError, match="2 descriptors, of which no two differ"):
        Whitening.fit(np.ones((2, 8)))


def test_none_give_no_whitening():
    with pytest.raises(ValueError, match="0 descriptors, of which no two differ"):
        Whitening.fit(np.ones((0, 8)))

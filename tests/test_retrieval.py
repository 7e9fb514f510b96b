import threading

import faiss
import numpy as np
import pytest

from relocalizer.features import LocalFeatures
from relocalizer.retrieval import FaissRetriever
from relocalizer.vlad import Vlad, Vocabulary, shipped_vlad, train_vocabulary


def unit(*numbers):
    vector = np.array(numbers, np.float32)
    return vector / np.linalg.norm(vector)


def features_of(descriptors):
    count = len(descriptors)
    return LocalFeatures(np.zeros((count, 2), np.float32), descriptors, np.ones(count, np.float32))


def rooted(rng, count):
    raw = rng.gamma(0.6, size=(count, 128)).astype(np.float32)
    return np.sqrt(raw / raw.sum(axis=1, keepdims=True))


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def three():
    retriever = FaissRetriever()
    retriever.add(10, unit(1, 0))
    retriever.add(20, unit(1, 1))
    retriever.add(7, unit(0, 1))
    return retriever


def test_the_most_similar_comes_first_with_its_inner_product(three):
    found = three.query(unit(1, 0), 3, frozenset())
    assert [candidate.key for candidate in found] == [10, 20, 7]
    assert [candidate.similarity for candidate in found] == pytest.approx([1.0, np.sqrt(0.5), 0.0], abs=1e-6)


def test_excluded_keys_are_replaced_by_the_next_best(three):
    assert [candidate.key for candidate in three.query(unit(1, 0), 2, frozenset({10}))] == [20, 7]


def test_excluding_keys_that_are_not_there_changes_nothing(three):
    assert [candidate.key for candidate in three.query(unit(1, 0), 1, frozenset({99, 98}))] == [10]


def test_excluding_everything_finds_nothing(three):
    assert three.query(unit(1, 0), 2, frozenset({7, 10, 20})) == []


def test_asking_for_more_than_there_is_gives_all(three):
    assert len(three.query(unit(1, 0), 100, frozenset())) == 3


def test_equal_similarity_is_ordered_by_key():
    retriever = FaissRetriever()
    for key in (5, 3, 4):
        retriever.add(key, unit(0, 1))
    assert [candidate.key for candidate in retriever.query(unit(0, 1), 3, frozenset())] == [3, 4, 5]


@pytest.mark.parametrize("retriever", [FaissRetriever(), FaissRetriever(dimension=2)])
def test_an_empty_one_finds_nothing(retriever):
    assert len(retriever) == 0
    assert retriever.query(unit(1, 0), 5, frozenset()) == []


def test_asking_for_none_gives_none(three):
    assert three.query(unit(1, 0), 0, frozenset()) == []


def test_a_removed_key_is_not_found_and_can_be_used_again(three):
    three.remove(10)
    assert len(three) == 2
    assert 10 not in three
    assert [candidate.key for candidate in three.query(unit(1, 0), 3, frozenset())] == [20, 7]
    three.add(10, unit(0, -1))
    assert three.query(unit(0, -1), 1, frozenset())[0].key == 10


def test_removing_what_is_not_there_is_an_error(three):
    with pytest.raises(KeyError, match="key 11 is not there"):
        three.remove(11)


def test_a_key_can_be_added_once_only(three):
    with pytest.raises(ValueError, match="key 20 is there already"):
        three.add(20, unit(1, 0))
    assert len(three) == 3


def test_a_negative_key_is_refused():
    with pytest.raises(ValueError, match="keys are 0 or more, got -1"):
        FaissRetriever().add(-1, unit(1, 0))


def test_a_descriptor_of_another_length_is_refused(three):
    with pytest.raises(ValueError, match=r"expected a descriptor of shape \(2,\), got \(3,\)"):
        three.add(1, unit(1, 0, 0))
    with pytest.raises(ValueError, match=r"expected a descriptor of shape \(2,\), got \(3,\)"):
        three.query(unit(1, 0, 0), 1, frozenset())


@pytest.mark.parametrize("numbers", [(2.0, 0.0), (0.0, 0.0), (np.nan, 0.0)])
def test_a_descriptor_that_is_no_unit_vector_is_refused(three, numbers):
    with pytest.raises(ValueError, match="expected a unit vector, got length"):
        three.add(1, np.array(numbers, np.float32))


def test_search_agrees_with_sorting_all_inner_products(rng):
    vectors = rng.standard_normal((300, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    retriever = FaissRetriever()
    for key, vector in enumerate(vectors):
        retriever.add(key, vector)
    exclude = frozenset(range(0, 300, 3))
    order = [int(k) for k in np.argsort(-(vectors @ vectors[42])) if int(k) not in exclude][:20]
    assert [c.key for c in retriever.query(vectors[42], 20, exclude)] == order


def test_a_search_in_another_thread_runs_on_one_thread(three):
    seen = []

    def search():
        faiss.omp_set_num_threads(4)
        three.query(unit(1, 0), 1, frozenset())
        seen.append(faiss.omp_get_max_threads())

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert seen == [1]


def places(rng, count, dimension=512):
    """Unit vectors of a walk: neighbors half alike, the rest of each its own."""
    steps = rng.standard_normal((count, dimension)).astype(np.float32)
    for k in range(1, count):
        steps[k] = 0.8 * steps[k - 1] + 0.6 * steps[k]
    vectors = steps + rng.standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def filled(vectors, keys=None, **options):
    retriever = FaissRetriever(**options)
    for key, vector in zip(keys if keys is not None else range(len(vectors)), vectors, strict=True):
        retriever.add(key, vector)
    return retriever


@pytest.fixture(scope="module")
def walk():
    return places(np.random.default_rng(9), 6000)


@pytest.fixture(scope="module")
def coded(walk):
    return filled(walk, keys=range(5000, 11000), exact_numbers=400 * 512)


def test_beyond_the_stated_size_codes_take_over(walk):
    retriever = filled(walk[:400], exact_numbers=400 * 512)
    assert retriever.is_exact
    retriever.add(400, walk[400])
    assert not retriever.is_exact
    assert len(retriever) == 401


def test_codes_find_nearly_all_of_the_ten_most_similar(walk, coded):
    exact = filled(walk, keys=range(5000, 11000))
    missed = 0
    for q in range(0, 6000, 200):
        near = frozenset(range(5000 + q - 3, 5000 + q + 4))
        best = {c.key for c in exact.query(walk[q], 10, near)}
        missed += len(best - {c.key for c in coded.query(walk[q], 10, near)})
    assert missed <= 0.02 * 300


def test_similarities_behind_codes_are_still_inner_products_in_full(walk, coded):
    for candidate in coded.query(walk[7], 5, frozenset({5007})):
        assert candidate.similarity == pytest.approx(float(walk[7] @ walk[candidate.key - 5000]), abs=1e-6)


def test_a_key_removed_from_the_codes_is_not_found_and_can_be_used_again(walk):
    retriever = filled(walk[:600], exact_numbers=400 * 512)
    retriever.remove(300)
    assert 300 not in [c.key for c in retriever.query(walk[300], 600)]
    assert retriever.query(walk[301], 1)[0].key == 301
    retriever.add(300, walk[1900])
    assert retriever.query(walk[1900], 1)[0].key == 300


def test_codes_give_what_is_left_when_nearly_all_is_excluded(walk, coded):
    exclude = frozenset(range(5000, 11000)) - {5003, 6400}
    assert {c.key for c in coded.query(walk[700], 5, exclude)} == {5003, 6400}


def test_every_key_is_still_its_own_most_similar_when_most_around_it_are_removed(walk):
    retriever = filled(walk[:4000], keys=range(5000, 9000), exact_numbers=400 * 512)
    for row in range(4000):
        if row % 4:
            retriever.remove(5000 + row)
    retriever.add(3, walk[4000])
    assert len(retriever) == 1001
    assert retriever.query(walk[4000], 1)[0].key == 3
    for row in range(0, 4000, 40):
        found = retriever.query(walk[row], 10)
        assert found[0].key == 5000 + row
        assert all(candidate.key in retriever for candidate in found)


def test_codes_give_all_that_is_there_when_more_is_asked_for(walk):
    retriever = filled(walk[:410], exact_numbers=400 * 512)
    retriever.remove(200)
    assert {c.key for c in retriever.query(walk[3], 500)} == set(range(410)) - {200}


def test_one_coordinate_far_larger_than_the_rest_does_not_spoil_the_codes(walk):
    peaked = walk.copy()
    peaked[:, 100] = 1.5
    peaked /= np.linalg.norm(peaked, axis=1, keepdims=True)
    exact, coded = filled(peaked), filled(peaked, exact_numbers=400 * 512)
    for q in range(0, 6000, 600):
        best = {c.key for c in exact.query(peaked[q], 10)}
        assert len(best & {c.key for c in coded.query(peaked[q], 10)}) >= 9


def test_the_same_descriptors_in_the_same_order_give_the_same_answers(walk, coded):
    again = filled(walk, keys=range(5000, 11000), exact_numbers=400 * 512)
    assert all(again.query(walk[q], 10) == coded.query(walk[q], 10) for q in range(0, 6000, 400))


def test_descriptors_are_kept_once_however_many_use_them(walk):
    vector = walk[0].copy()
    retriever = filled([vector])
    assert np.shares_memory(retriever._rows[0], vector)


def test_vlad_by_hand():
    axes = np.eye(2, dtype=np.float32)
    words = np.array([[0, 0], [10, 0]], np.float32)
    vlad = Vlad(Vocabulary(np.zeros(2, np.float32), axes, words))
    # Around the first word the residuals sum to (1, 4), square roots (1, 2); around the second to (0, -9).
    described = vlad.describe(features_of(np.array([[1, 1], [0, 3], [10, -9]], np.float32)))
    first = np.array([1, 2]) / np.sqrt(5)
    np.testing.assert_allclose(described, np.array([*first, 0, -1]) / np.sqrt(2), atol=1e-6)


def test_the_order_of_features_does_not_matter(rng):
    descriptors = rooted(rng, 200)
    a, b = (shipped_vlad().describe(features_of(d)) for d in (descriptors, descriptors[::-1].copy()))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_an_image_with_most_of_its_features_again_is_more_similar_than_another(rng):
    here, there = rooted(rng, 400), rooted(rng, 400)
    again = np.concatenate([here[:250], rooted(rng, 150)])
    vlad = shipped_vlad()
    query, same, other = (vlad.describe(features_of(d)) for d in (here, again, there))
    assert query @ same > query @ other + 0.1


@pytest.mark.parametrize("count", [0, 1, 2])
def test_an_image_with_next_to_no_features_still_has_a_finite_unit_vector(rng, count):
    described = shipped_vlad().describe(features_of(rooted(rng, count)))
    assert described.dtype == np.float32
    assert described.shape == (shipped_vlad().dimension,)
    assert np.linalg.norm(described) == pytest.approx(1.0, abs=1e-5)


def test_training_finds_the_clusters_and_repeats_itself(rng):
    centers = rooted(rng, 4)
    crowd = np.concatenate([center + 0.01 * rng.standard_normal((50, 128)) for center in centers])
    first, second = (train_vocabulary([crowd], words=4, dimensions=8, seed=1) for _ in range(2))
    assert first.words.tobytes() == second.words.tobytes()
    nearest = np.linalg.norm(first.reduce(centers)[:, None] - first.words[None], axis=2)
    assert (nearest.min(axis=1) < 0.05).all()
    assert sorted(nearest.argmin(axis=1).tolist()) == [0, 1, 2, 3]


def test_training_needs_as_many_descriptors_as_words(rng):
    with pytest.raises(ValueError, match="3 descriptors for 4 words"):
        train_vocabulary([rooted(rng, 3)], words=4, dimensions=2, seed=0)


def test_a_vocabulary_whose_parts_do_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"expected mean \(N,\), axes \(N, D\), words \(W, D\)"):
        Vocabulary(np.zeros(3, np.float32), np.zeros((4, 2), np.float32), np.zeros((5, 2), np.float32))

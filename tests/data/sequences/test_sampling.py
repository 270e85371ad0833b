"""Sampling: the window of text of each sequence."""

import numpy as np
import pytest

from ml.data.randomness import derive_seed, permute, random_integers
from ml.data.sequences.sampling import RandomWindows, ShuffledEpochs

SAMPLINGS = [ShuffledEpochs(), RandomWindows()]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097])
def test_a_permutation_visits_every_index_once(size):
    permuted = permute(7, np.arange(size), size)
    assert sorted(permuted) == list(range(size))


def test_permutations_of_different_seeds_differ_and_none_is_the_identity():
    permutations = [tuple(permute(seed, np.arange(100), 100)) for seed in range(20)]
    assert len({*permutations, tuple(range(100))}) == 21


def test_a_permutation_spreads_every_start_over_the_whole_range():
    # The image of index 0 over many seeds is uniform: chi-squared with 9 degrees of freedom, 99.9% below 27.9.
    landed = [int(permute(seed, np.array([0]), 10)[0]) for seed in range(2000)]
    counts = np.bincount(landed, minlength=10)
    assert ((counts - 200.0) ** 2 / 200.0).sum() < 27.9


def test_random_integers_are_uniform_and_independent_of_other_requests():
    drawn = random_integers(3, np.arange(10_000), 10)
    assert ((np.bincount(drawn, minlength=10) - 1000.0) ** 2 / 1000.0).sum() < 27.9
    assert random_integers(3, np.array([1234]), 10)[0] == drawn[1234]


def test_derived_seeds_differ_and_do_not_depend_on_the_process():
    assert len({derive_seed(seed, word, step) for seed in range(3) for word in "ab" for step in range(50)}) == 300
    assert derive_seed(0, "dropout", 1) == 707529395999947328


@pytest.mark.parametrize(("num_tokens", "length"), [(101, 10), (105, 10), (11, 10), (1000, 7)])
def test_every_epoch_visits_every_window_once_in_another_order(num_tokens, length):
    num_windows = (num_tokens - 1) // length
    starts = ShuffledEpochs().starts(np.arange(3 * num_windows), num_tokens, length, seed=1)
    epochs = starts.reshape(3, num_windows)
    for epoch in epochs:
        assert sorted(epoch) == [length * window for window in range(num_windows)]
    if num_windows > 5:
        assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda sampling: type(sampling).__name__)
def test_a_start_depends_on_its_index_and_the_seed_only(sampling):
    together = sampling.starts(np.arange(200), 1000, 9, seed=5)
    alone = [int(sampling.starts(np.array([index]), 1000, 9, seed=5)[0]) for index in reversed(range(200))]
    assert together.tolist() == alone[::-1]
    assert together.tolist() != sampling.starts(np.arange(200), 1000, 9, seed=6).tolist()


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda sampling: type(sampling).__name__)
@pytest.mark.parametrize("num_tokens", [10, 11, 18, 19, 20])
def test_every_sequence_and_its_last_target_are_inside_the_text(sampling, num_tokens):
    starts = sampling.starts(np.arange(500), num_tokens, 9, seed=0)
    assert starts.min() >= 0
    assert starts.max() + 9 <= num_tokens - 1


def test_random_windows_reach_the_first_and_the_last_start():
    starts = RandomWindows().starts(np.arange(1000), 20, 9, seed=0)
    assert (starts.min(), starts.max()) == (0, 10)

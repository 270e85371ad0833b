"""Sequence indices of each rank, for any number of ranks."""

import pytest

from ml.data.sequences.batch_indices import sequence_indices


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_the_ranks_together_use_each_sequence_of_each_step_once_in_order(num_ranks):
    taken = []
    for consumed in range(0, 40, 8):
        for rank in range(num_ranks):
            taken += sequence_indices(consumed, 8, rank, num_ranks)
    assert taken == list(range(40))

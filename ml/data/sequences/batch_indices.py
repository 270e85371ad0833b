"""Assignment of sequences to steps and ranks."""

from collections.abc import Iterator

import numpy as np


def sequence_indices(consumed: int, batch_size: int, rank: int = 0, num_ranks: int = 1) -> range:
    """Returns the indices of the sequences that a rank processes in a step.

    Ranks take equal contiguous slices: together, in rank order, they are the same batch for any number of ranks.

    Args:
        consumed: Sequences of all earlier steps.
        batch_size: Sequences per step on all ranks.
        rank: Rank of the process.
        num_ranks: Number of ranks; must divide `batch_size`.
    """
    assert 0 <= rank < num_ranks
    assert batch_size % num_ranks == 0, f"{num_ranks} ranks cannot share {batch_size} sequences"
    size = batch_size // num_ranks
    first = consumed + rank * size
    return range(first, first + size)


def held_out_indices(count: int, size: int, rank: int = 0, num_ranks: int = 1) -> Iterator[np.ndarray]:
    """Yields the indices of the held-out sequences in each batch of a rank.

    Together, the batches of all ranks are all sequences, once. Few sequences are work for every rank.

    Args:
        count: Number of held-out sequences.
        size: Largest number of sequences per batch.
        rank: Rank of the process.
        num_ranks: Number of ranks.
    """
    size = max(1, min(size, -(-count // num_ranks)))
    for first in range(rank * size, count, num_ranks * size):
        yield np.arange(first, min(first + size, count))

"""Assignment of sequences to steps and ranks."""


def sequence_indices(step: int, batch_size: int, rank: int = 0, num_ranks: int = 1) -> range:
    """Returns the indices of the sequences that a rank processes in a step.

    Ranks take equal contiguous slices: together, in rank order, they are the same batch for any number of ranks.

    Args:
        step: Step, counted from 1.
        batch_size: Sequences per step on all ranks.
        rank: Rank of the process.
        num_ranks: Number of ranks; must divide `batch_size`.
    """
    assert 0 <= rank < num_ranks
    assert batch_size % num_ranks == 0, f"{num_ranks} ranks cannot share {batch_size} sequences"
    size = batch_size // num_ranks
    first = (step - 1) * batch_size + rank * size
    return range(first, first + size)

"""Which sequences of a run each step and each rank takes."""


def numbers_of_step(step: int, batch_size: int, rank: int = 0, num_ranks: int = 1) -> range:
    """The numbers of the sequences that a rank takes in a step, counted from 1, of `batch_size` sequences in all.

    The batch is cut in equal stretches: those of all ranks, in order, are the batch, however many ranks there are.
    """
    assert 0 <= rank < num_ranks
    assert batch_size % num_ranks == 0, f"{num_ranks} ranks cannot share {batch_size} sequences"
    size = batch_size // num_ranks
    first = (step - 1) * batch_size + rank * size
    return range(first, first + size)

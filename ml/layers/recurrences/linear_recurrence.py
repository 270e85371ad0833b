"""A linear recurrence of vectors, each entry for itself."""

import torch
from torch import Tensor


def linear_recurrence_(
    decay: Tensor, states: Tensor, initial: Tensor, num_chunks: int = 1, reverse: bool = False
) -> None:
    """Turns what each step adds into the states: states_t <- decay_t · states_{t-1} + states_t, in place.

    decay, states: (T, ...), contiguous; initial: (...), what stands before the first step. `reverse` begins at the
    last. T must be a multiple of `num_chunks`: the chunks take their steps together, as if nothing came before each;
    then the chunks follow one another; then what came before each is added. With T = n² that is 3 n steps instead of
    n², each as large as n, and three times the work.
    """
    if num_chunks == 1:
        _follow(decay, states, initial, reverse)
        return
    # (T / num_chunks, num_chunks, ...): a view, whose steps are those of all chunks
    decays, parts = (tensor.unflatten(0, (num_chunks, -1)).transpose(0, 1) for tensor in (decay, states))
    steps = range(len(decays))[:: -1 if reverse else 1]
    _follow(decays, parts, None, reverse)
    whole = torch.prod(decays, dim=0)
    entering = parts[steps[-1]].clone()  # the last state of each chunk, and then of all before it too
    _follow(whole, entering, initial, reverse)
    neighbours = (entering[1:], initial[None]) if reverse else (initial[None], entering[:-1])
    entering = torch.cat(neighbours)
    for step in steps:
        entering = entering * decays[step]
        parts[step].add_(entering)


def _follow(decay: Tensor, states: Tensor, state: Tensor | None, reverse: bool) -> None:
    """One step after the other; `state` None is zero."""
    for step in range(len(states))[:: -1 if reverse else 1]:
        if state is not None:
            states[step].addcmul_(decay[step], state)
        state = states[step]

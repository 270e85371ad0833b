"""Which stretch of the text each sequence of a run is.

A sequence has a number, counted from the start of the run. A sampling maps numbers to places in the text, the same for
the same seed whatever was asked before.
"""

import abc

import numpy as np

from ml.config import configurable
from ml.data.randomness import derive_seed, permute, random_integers


class Sampling(abc.ABC):
    """Maps the numbers of sequences to where they start."""

    @abc.abstractmethod
    def starts(self, indices: np.ndarray, num_tokens: int, sequence_length: int, seed: int) -> np.ndarray:
        """The first token of each sequence `indices`; the text goes on for `sequence_length` tokens after it."""


@configurable
class ShuffledEpochs(Sampling):
    """Cuts the text in windows and visits each once an epoch, in an order of its own for each epoch.

    Two neighbouring windows share one token, the last target of one and the first input of the other, so that every
    token is predicted exactly once an epoch. What is left over at the end, less than a window, is not visited.
    """

    def starts(self, indices: np.ndarray, num_tokens: int, sequence_length: int, seed: int) -> np.ndarray:
        num_windows = (num_tokens - 1) // sequence_length
        epochs, places = np.divmod(indices, num_windows)
        windows = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            windows[here] = permute(derive_seed(seed, "epoch", int(epoch)), places[here], num_windows)
        return windows * sequence_length


@configurable
class RandomWindows(Sampling):
    """Starts each sequence at a random token, independently of the others."""

    def starts(self, indices: np.ndarray, num_tokens: int, sequence_length: int, seed: int) -> np.ndarray:
        return random_integers(derive_seed(seed, "windows"), indices, num_tokens - sequence_length)

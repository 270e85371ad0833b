"""Which tokens of a stream each sequence is.

A sequence has a number, counted from the start of the run. A sampling maps numbers to tokens, the same for the same
seed whatever was asked before.
"""

import abc
from typing import Any

import numpy as np

from ml.config import configurable
from ml.data.errors import DataError
from ml.data.randomness import derive_seed, permute, random_integers
from ml.data.sequences.batch import Batch
from ml.data.sequences.streams import TokenStream
from ml.targets import IGNORED


class Sequences(abc.ABC):
    """The sequences that a sampling makes of a stream, by number.

    num_sequences: how many there are in an epoch.
    """

    num_sequences: int

    @abc.abstractmethod
    def batch(self, numbers: np.ndarray) -> Batch:
        """The sequences of these numbers (B,)."""

    def describe(self) -> dict[str, Any]:
        """What there is to say of them, for the record."""
        return {}


class Sampling(abc.ABC):
    """Cuts a stream in sequences."""

    separates_documents: bool  # where nobody says whether documents are told apart

    def separates(self, asked: bool | None) -> bool:
        """Whether documents are separated, given what a configuration asks for; None leaves it to the sampling."""
        return self.separates_documents if asked is None else asked

    @abc.abstractmethod
    def sequences(self, stream: TokenStream, length: int, seed: int, separate: bool) -> Sequences:
        """Those to train on, without end; `separate`: documents neither see nor predict each other.

        Raises:
            DataError: The stream is not enough for one.
        """

    @abc.abstractmethod
    def in_order(self, stream: TokenStream, length: int, separate: bool, num_tokens: int | None) -> Sequences:
        """An epoch of the stream from its start, or of as much of it as predicts about `num_tokens` tokens."""


class WindowSampling(Sampling):
    """Makes a sequence of any tokens that follow one another, across documents."""

    separates_documents = False

    @abc.abstractmethod
    def starts(self, indices: np.ndarray, num_tokens: int, sequence_length: int, seed: int) -> np.ndarray:
        """The first token of each sequence `indices`; the text goes on for `sequence_length` tokens after it."""

    def sequences(self, stream: TokenStream, length: int, seed: int, separate: bool) -> Sequences:
        if stream.num_tokens <= length:
            raise DataError(
                f"the training text has {stream.num_tokens} tokens, but one sequence takes {length + 1}: "
                "give more text or a smaller Trainer.sequence_length"
            )
        return _Windows(self, stream, length, seed, separate)

    def in_order(self, stream: TokenStream, length: int, separate: bool, num_tokens: int | None) -> Sequences:
        """Each token is predicted once, but for the first, which has nothing before it."""
        return _WindowsInOrder(stream, length, separate, num_tokens)


@configurable
class ShuffledEpochs(WindowSampling):
    """Cuts the text in windows and visits each once an epoch, in an order of its own for each epoch.

    Two neighbouring windows share one token, the last target of one and the first input of the other, so that every
    token is predicted exactly once an epoch. What is left over at the end, less than a window, is not visited.
    """

    def starts(self, indices: np.ndarray, num_tokens: int, sequence_length: int, seed: int) -> np.ndarray:
        num_windows = (num_tokens - 1) // sequence_length
        return shuffled_epochs(indices, num_windows, seed) * sequence_length


@configurable
class RandomWindows(WindowSampling):
    """Starts each sequence at a random token, independently of the others."""

    def starts(self, indices: np.ndarray, num_tokens: int, sequence_length: int, seed: int) -> np.ndarray:
        return random_integers(derive_seed(seed, "windows"), indices, num_tokens - sequence_length)


def shuffled_epochs(numbers: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Which of `size` things comes at each of `numbers`, if all come once an epoch and each epoch has its own order."""
    epochs, places = np.divmod(numbers, size)
    drawn = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        drawn[here] = permute(derive_seed(seed, "epoch", int(epoch)), places[here], size)
    return drawn


class _Windows(Sequences):
    def __init__(self, sampling: WindowSampling, stream: TokenStream, length: int, seed: int, separate: bool):
        self._sampling = sampling
        self._stream = stream
        self._length = length
        self._seed = seed
        self._separate = separate
        self.num_sequences = (stream.num_tokens - 1) // length

    def batch(self, numbers: np.ndarray) -> Batch:
        stream, length = self._stream, self._length
        starts = self._sampling.starts(numbers, stream.num_tokens, length, self._seed)
        return windows(stream, starts, length, self._separate, stream.num_tokens)


class _WindowsInOrder(Sequences):
    def __init__(self, stream: TokenStream, length: int, separate: bool, num_tokens: int | None):
        available = max(stream.num_tokens - 1, 0)
        self._num_targets = available if num_tokens is None else min(num_tokens, available)
        self._stream = stream
        self._length = length
        self._separate = separate
        self.num_sequences = -(-self._num_targets // length)

    def batch(self, numbers: np.ndarray) -> Batch:
        return windows(self._stream, numbers * self._length, self._length, self._separate, self._num_targets + 1)


def windows(stream: TokenStream, starts: np.ndarray, length: int, separate: bool, end: int) -> Batch:
    """The `length` tokens from each of `starts` (B,), and what follows each of them in its document before `end`.

    Where that is to be ignored, and behind `end`, the target is `IGNORED`.
    """
    stretches = stream.clipped(starts, length + 1, end)  # (B, T + 1)
    targets = stretches[:, 1:].astype(np.int64)
    places = starts[:, None] + np.arange(length)  # (B, T)
    documents = None
    if separate:
        documents = np.searchsorted(stream.ends, places, side="right")
        targets[np.searchsorted(stream.ends, places + 1, side="right") != documents] = IGNORED
    targets[places + 1 >= end] = IGNORED
    return Batch.of(stretches[:, :-1], targets, documents=documents)

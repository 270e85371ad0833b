"""Sampling of sequences from a stream of tokens.

A sequence has an index, counted from the start of the run. A sampling is a pure function of indices and a seed.
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
    """Sequences of a stream, by index.

    Attributes:
        num_sequences: Number of sequences in an epoch.
    """

    num_sequences: int

    @abc.abstractmethod
    def batch(self, indices: np.ndarray) -> Batch:
        """Returns the sequences with these indices, (B,)."""

    def num_cut_documents(self) -> int | None:
        """Returns the number of documents that no sequence holds whole; None if unknown."""
        return None

    def describe(self) -> dict[str, Any]:
        """Returns a description of the sequences for the run's records."""
        return {}


class Sampling(abc.ABC):
    """Cuts a stream into sequences.

    Attributes:
        separates_documents: Default for data that does not set `separate_documents`.
    """

    separates_documents: bool

    def separates(self, asked: bool | None) -> bool:
        """Returns True if documents are separated, given the configured value; None is the sampling's default."""
        return self.separates_documents if asked is None else asked

    @abc.abstractmethod
    def sequences(self, stream: TokenStream, length: int, seed: int, separate: bool) -> Sequences:
        """Returns the training sequences, which repeat without end.

        Args:
            stream: Stream to train on.
            length: Tokens per sequence.
            seed: Seed of the sampling.
            separate: True if documents neither attend to nor predict each other.

        Raises:
            DataError: The stream is too short for one sequence.
        """

    @abc.abstractmethod
    def in_order(self, stream: TokenStream, length: int, separate: bool, num_tokens: int | None) -> Sequences:
        """Returns one epoch of the stream, in order.

        Args:
            stream: Held-out stream.
            length: Tokens per sequence.
            separate: True if documents neither attend to nor predict each other.
            num_tokens: Approximate number of targets, from the start of the stream; None for all.
        """


class WindowSampling(Sampling):
    """Samples contiguous windows of tokens, across document boundaries."""

    separates_documents = False

    @abc.abstractmethod
    def starts(self, indices: np.ndarray, num_tokens: int, sequence_length: int, seed: int) -> np.ndarray:
        """Returns the position of the first token of each sequence.

        Args:
            indices: Indices of sequences, (B,).
            num_tokens: Number of tokens of the stream.
            sequence_length: Tokens per sequence; the target of the last one must be in the stream too.
            seed: Seed of the sampling.
        """

    def num_cut(self, stream: TokenStream, length: int) -> int:
        """Returns the number of documents that no window of `length` tokens, with the target of the last, holds whole.

        Args:
            stream: Stream of documents.
            length: Tokens per sequence.
        """
        return int(np.count_nonzero(stream.ends - document_starts(stream) > length + 1))

    def sequences(self, stream: TokenStream, length: int, seed: int, separate: bool) -> Sequences:
        if stream.num_tokens <= length:
            raise DataError(
                f"the training text has {stream.num_tokens} tokens, but one sequence takes {length + 1}: "
                "add text, or lower Trainer.sequence_length"
            )
        return _Windows(self, stream, length, seed, separate)

    def in_order(self, stream: TokenStream, length: int, separate: bool, num_tokens: int | None) -> Sequences:
        """Returns windows in order; every token but the first is a target once."""
        return _WindowsInOrder(stream, length, separate, num_tokens)


@configurable
class ShuffledEpochs(WindowSampling):
    """Cuts the text into windows and visits each once per epoch, in a different order every epoch.

    Consecutive windows share one token, the last target of one and the first input of the next, so that every token is
    a target exactly once per epoch. A remainder at the end that is shorter than a window is skipped.
    """

    def starts(self, indices: np.ndarray, num_tokens: int, sequence_length: int, seed: int) -> np.ndarray:
        num_windows = (num_tokens - 1) // sequence_length
        return shuffled_epochs(indices, num_windows, seed) * sequence_length

    def num_cut(self, stream: TokenStream, length: int) -> int:
        starts = document_starts(stream)
        last = (stream.num_tokens - 1) // length * length  # the last token of the last window
        is_whole = (starts // length == (stream.ends - 2) // length) & (stream.ends - 1 <= last)
        is_whole |= (stream.ends - starts == 1) & (starts <= last)
        return int(np.count_nonzero(~is_whole))


@configurable
class RandomWindows(WindowSampling):
    """Starts each sequence at an independent random position."""

    def starts(self, indices: np.ndarray, num_tokens: int, sequence_length: int, seed: int) -> np.ndarray:
        return random_integers(derive_seed(seed, "windows"), indices, num_tokens - sequence_length)


def document_starts(stream: TokenStream) -> np.ndarray:
    """Returns the position of the first token of each document, (documents,)."""
    return np.concatenate(([0], stream.ends[:-1])).astype(np.int64)


def shuffled_epochs(indices: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Maps indices to items so that each epoch visits every item once, in a different order.

    Args:
        indices: Indices, counted across epochs, (B,).
        size: Number of items.
        seed: Seed of the orders.

    Returns:
        Index of an item for each index, (B,).
    """
    epochs, positions = np.divmod(indices, size)
    shuffled = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        shuffled[here] = permute(derive_seed(seed, "epoch", int(epoch)), positions[here], size)
    return shuffled


class _Windows(Sequences):
    def __init__(self, sampling: WindowSampling, stream: TokenStream, length: int, seed: int, separate: bool):
        self._sampling = sampling
        self._stream = stream
        self._length = length
        self._seed = seed
        self._separate = separate
        self.num_sequences = (stream.num_tokens - 1) // length

    def batch(self, indices: np.ndarray) -> Batch:
        stream, length = self._stream, self._length
        starts = self._sampling.starts(indices, stream.num_tokens, length, self._seed)
        return windows(stream, starts, length, self._separate, stream.num_tokens)

    def num_cut_documents(self) -> int:
        return self._sampling.num_cut(self._stream, self._length)


class _WindowsInOrder(Sequences):
    def __init__(self, stream: TokenStream, length: int, separate: bool, num_tokens: int | None):
        available = max(stream.num_tokens - 1, 0)
        self._num_targets = available if num_tokens is None else min(num_tokens, available)
        self._stream = stream
        self._length = length
        self._separate = separate
        self.num_sequences = -(-self._num_targets // length)

    def batch(self, indices: np.ndarray) -> Batch:
        return windows(self._stream, indices * self._length, self._length, self._separate, self._num_targets + 1)


def windows(stream: TokenStream, starts: np.ndarray, length: int, separate: bool, end: int) -> Batch:
    """Cuts windows from a stream.

    Args:
        stream: Stream of tokens.
        starts: Position of the first token of each window, (B,).
        length: Tokens per window.
        separate: True ignores targets in the next document and returns document ids.
        end: Position from which targets are ignored.
    """
    slices = stream.clipped(starts, length + 1, end)  # (B, T + 1)
    targets = slices[:, 1:].astype(np.int64)
    positions = starts[:, None] + np.arange(length)  # (B, T)
    documents = None
    if separate:
        documents = np.searchsorted(stream.ends, positions, side="right")
        targets[np.searchsorted(stream.ends, positions + 1, side="right") != documents] = IGNORED
    targets[positions + 1 >= end] = IGNORED
    for row, start in zip(targets, starts.tolist(), strict=True):
        predicted = stream.is_predicted(start + 1, min(start + length + 1, end))
        if predicted is not None:
            row[: len(predicted)][~predicted] = IGNORED
    return Batch.of(slices[:, :-1], targets, documents=documents)

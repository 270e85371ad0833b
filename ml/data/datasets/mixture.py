"""Weighted mixture of datasets."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from ml.config import REQUIRED, UNORDERED, configurable, require
from ml.data.datasets.combined import CombinedData, CombinedDataset
from ml.data.datasets.dataset import Data, Dataset, ImageFormat
from ml.data.randomness import derive_seed

_BITS = 32  # fractional bits; integer arithmetic is equal on every machine
_ONE = 2**_BITS


@configurable
class Mixture(CombinedData):
    """Sequences of several datasets in proportion to their weights, without end.

    The names are gin scopes: with `datasets = {'books': @TokenFiles, 'code': @TokenFiles}`, the paths are
    `books/TokenFiles.paths` and `code/TokenFiles.paths`. Sequences are interleaved evenly: among the first n sequences
    of the run, each dataset has its share of n, up to an error of the number of datasets. Each dataset has separate
    epochs. The held-out split is the union of theirs; a prefix of it is divided among them in proportion to their
    held-out tokens.

    Args:
        datasets: Parts by name; the names are their gin scopes.
        weights: Relative number of sequences of each part, by name; positive, normalized to sum to 1.
    """

    def __init__(
        self,
        datasets: dict[str, Callable[..., Data]] = REQUIRED,
        weights: Annotated[dict[str, float], UNORDERED] = REQUIRED,
    ):
        super().__init__(datasets)
        require(weights.keys() == datasets.keys(), "weights", f"must be given for {', '.join(datasets)}")
        positive = all(0.0 < weight < math.inf for weight in weights.values())
        require(positive, "weights", f"must be positive and finite: {weights}")
        self.weights = {name: weights.get(name, 1.0) for name in datasets}

    def epochs(self, num_tokens: float) -> dict[str, float]:
        """Returns the number of epochs of each part, given its share of `num_tokens`."""
        return _epochs_of_parts(self.datasets, self.weights, num_tokens)

    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> "MixedDataset":
        """Opens all parts.

        Args:
            sequence_length: Tokens per sequence.
            seed: Seed of the mixture; each part gets a seed derived from it.
            images: Images that the model takes; None if it takes none.

        Raises:
            DataError: A part cannot be used.
        """
        return MixedDataset(self.open_parts(sequence_length, seed, images), self.weights, seed)


class MixedDataset(CombinedDataset):
    """Datasets interleaved by weight."""

    def __init__(self, parts: dict[str, Dataset], weights: dict[str, float], seed: int):
        super().__init__(parts)
        self._weights = weights
        self._splits = splits([weights[name] for name in parts], seed)

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return draw_parts(self._splits, indices)

    def epochs(self, num_sequences: float) -> dict[str, float]:
        return _epochs_of_parts(self.parts, self._weights, num_sequences)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "weights": self._weights}


def _epochs_of_parts(
    parts: Mapping[str, Data] | Mapping[str, Dataset], weights: Mapping[str, float], amount: float
) -> dict[str, float]:
    """Returns the epochs of each part in a run of `amount` sequences or tokens; nested names are `outer/inner`."""
    epochs: dict[str, float] = {}
    for name, part in parts.items():
        share = amount * weights[name] / sum(weights.values())
        epochs |= {f"{name}/{inner}".rstrip("/"): times for inner, times in part.epochs(share).items()}
    return epochs


def splits(weights: Sequence[float], seed: int) -> list[tuple[int, int]]:
    """Converts weights to a chain of binary splits.

    Args:
        weights: Weight of each part.
        seed: Seed of the phases.

    Returns:
        For each part but the last: its share of what earlier parts leave, and a phase, both in units of 2^-32.
    """
    made = []
    for part, weight in enumerate(weights[:-1]):
        share = round(weight / sum(weights[part:]) * _ONE)
        made.append((share, derive_seed(seed, "mixture", part) % _ONE))
    return made


def draw_parts(splits: list[tuple[int, int]], indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Assigns each sequence to a part.

    Of the first m sequences that earlier parts leave, a part takes floor(m share + phase): a sequence is its own where
    that count grows (a Beatty sequence). Sequences that it does not take are renumbered for the later parts. No state
    is replayed, and the error of each part is less than one sequence per split.

    Args:
        splits: As returned by `splits`.
        indices: Indices of sequences, (B,).

    Returns:
        Index of the part of each sequence, (B,), and index of the sequence in that part, (B,).
    """
    part_of = np.full(len(indices), len(splits), dtype=np.int64)
    remaining = indices.astype(np.int64)
    unassigned = np.ones(len(indices), dtype=bool)
    for part, (share, phase) in enumerate(splits):
        before = _taken(remaining, share, phase)
        is_taken = unassigned & (_taken(remaining + 1, share, phase) > before)
        part_of[is_taken] = part
        remaining = np.where(is_taken, before, np.where(unassigned, remaining - before, remaining))
        unassigned &= ~is_taken
    return part_of, remaining


def _taken(count: np.ndarray, share: int, phase: int) -> np.ndarray:
    """Computes floor((count share + phase) / 2^32) - floor(phase / 2^32) exactly, for counts below 2^62."""
    high, low = (part.astype(np.uint64) for part in np.divmod(count, _ONE))
    part = (low * np.uint64(share) + np.uint64(phase)) >> np.uint64(_BITS)  # below 2^64: both factors are at most 2^32
    return (high * np.uint64(share) + part).astype(np.int64)

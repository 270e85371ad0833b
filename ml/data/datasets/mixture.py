"""Datasets mixed by weight."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from ml.config import REQUIRED, UNORDERED, configurable, require
from ml.data.datasets.combined import CombinedData, CombinedDataset
from ml.data.datasets.dataset import Data, Dataset, ImageFormat
from ml.data.randomness import derive_seed

_BITS = 32  # of a fraction: all is whole numbers, equal on every machine
_ONE = 2**_BITS


@configurable
class Mixture(CombinedData):
    """Sequences of several datasets, each as often as its weight says; none ends before the others.

    The names are the scopes: `datasets = {'books': @TokenFiles, 'code': @TokenFiles}` is set apart by
    `books/TokenFiles.paths` and `code/TokenFiles.paths`. Sequences of a dataset are spread evenly: of any first n
    sequences of the run, those of a dataset are its share of n, up to the number of datasets. Each dataset goes through
    its own epochs. Held out is what each dataset holds out, and of a part of that each has its share by its tokens.

    Args:
        datasets: What is mixed, by name.
        weights: The part of the sequences that each dataset gives, relative to the others.
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
        """Those of each part, which has its share of the tokens by its weight."""
        return _epochs_of_parts(self.datasets, self.weights, num_tokens)

    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> "MixedDataset":
        """Opens all parts.

        Raises:
            DataError: One of them cannot be used.
        """
        return MixedDataset(self.open_parts(sequence_length, seed, images), self.weights, seed)


class MixedDataset(CombinedDataset):
    """Datasets mixed by weight."""

    def __init__(self, parts: dict[str, Dataset], weights: dict[str, float], seed: int):
        super().__init__(parts)
        self._weights = weights
        self._splits = splits([weights[name] for name in parts], seed)

    def places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return drawn(self._splits, numbers)

    def epochs(self, num_sequences: float) -> dict[str, float]:
        return _epochs_of_parts(self.parts, self._weights, num_sequences)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "weights": self._weights}


def _epochs_of_parts(
    parts: Mapping[str, Data] | Mapping[str, Dataset], weights: Mapping[str, float], amount: float
) -> dict[str, float]:
    """The epochs of each part of a mixture in a run of `amount` sequences or tokens; nested ones as `outer/inner`."""
    epochs = {}
    for name, part in parts.items():
        share = amount * weights[name] / sum(weights.values())
        epochs |= {f"{name}/{inner}".rstrip("/"): times for inner, times in part.epochs(share).items()}
    return epochs


def splits(weights: Sequence[float], seed: int) -> list[tuple[int, int]]:
    """For each part but the last, its share of what the ones before it leave, and a phase, in units of 2^-32."""
    made = []
    for place, weight in enumerate(weights[:-1]):
        share = round(weight / sum(weights[place:]) * _ONE)
        made.append((share, derive_seed(seed, "mixture", place) % _ONE))
    return made


def drawn(splits: list[tuple[int, int]], numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which part each of the numbers (B,) belongs to, and how many before it do.

    Of any first m numbers that are left for it and the later ones, a part takes floor(m share + phase): a number is its
    own where that grows (a Beatty sequence). What it does not take is counted anew for the parts behind it, so nothing
    is replayed from the start, and each part is off its share by less than one number at each split.
    """
    part_of = np.full(len(numbers), len(splits), dtype=np.int64)
    left = numbers.astype(np.int64)
    open_ones = np.ones(len(numbers), dtype=bool)
    for part, (share, phase) in enumerate(splits):
        before = _taken(left, share, phase)
        is_own = open_ones & (_taken(left + 1, share, phase) > before)
        part_of[is_own] = part
        left = np.where(is_own, before, np.where(open_ones, left - before, left))
        open_ones &= ~is_own
    return part_of, left


def _taken(count: np.ndarray, share: int, phase: int) -> np.ndarray:
    """floor((count share + phase) / 2^32) - floor(phase / 2^32), exactly, for counts below 2^62."""
    high, low = (part.astype(np.uint64) for part in np.divmod(count, _ONE))
    part = (low * np.uint64(share) + np.uint64(phase)) >> np.uint64(_BITS)  # below 2^64: both factors are at most 2^32
    return (high * np.uint64(share) + part).astype(np.int64)

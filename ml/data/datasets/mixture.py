"""Weighted mixture of datasets."""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

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
        earlier: Weights that were in force earlier in the run, in order, each after the number of sequences with which
            its stretch ends. Every part continues where the stretch before left it.
    """

    def __init__(
        self,
        datasets: dict[str, Callable[..., Data]] = REQUIRED,
        weights: Annotated[dict[str, float], UNORDERED] = REQUIRED,
        earlier: Sequence[tuple[int, dict[str, float]]] = (),
    ):
        super().__init__(datasets)
        self.weights = self._checked("weights", weights, datasets)
        ends = [end for end, _ in earlier]
        in_order = all(before < end for before, end in itertools.pairwise([0, *ends]))
        require(in_order, "earlier", f"must end after increasing numbers of sequences, not {ends}")
        self.earlier = [(end, self._checked("earlier", each, datasets)) for end, each in earlier]

    @staticmethod
    def _checked(parameter: str, weights: Mapping[str, float], names: Collection[str]) -> dict[str, float]:
        """Returns positive weights of all parts, in the order of the parts."""
        require(weights.keys() == set(names), parameter, f"must be given for {', '.join(names)}")
        positive = all(0.0 < weight < math.inf for weight in weights.values())
        require(positive, parameter, f"must be positive and finite: {weights}")
        return {name: weights.get(name, 1.0) for name in names}

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
        return MixedDataset(self.open_parts(sequence_length, seed, images), self.weights, seed, self.earlier)


class Stretch(NamedTuple):
    """Sequences of a run with the same weights.

    Attributes:
        begin: Index of its first sequence.
        splits: Its weights, from `splits`.
        taken: Number of sequences of each part before it.
    """

    begin: int
    splits: list[tuple[int, int]]
    taken: np.ndarray


class MixedDataset(CombinedDataset):
    """Datasets interleaved by weight."""

    def __init__(
        self,
        parts: dict[str, Dataset],
        weights: dict[str, float],
        seed: int,
        earlier: Sequence[tuple[int, dict[str, float]]] = (),
    ):
        super().__init__(parts)
        self._weights = weights
        ends, all_weights = [end for end, _ in earlier], [*(each for _, each in earlier), weights]
        self._stretches = stretches([[each[name] for name in parts] for each in all_weights], ends, seed)

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return draw_in_stretches(self._stretches, indices)

    def sequences_of_parts(self, num_sequences: int) -> np.ndarray:
        last = next(stretch for stretch in reversed(self._stretches) if stretch.begin <= num_sequences)
        return last.taken + taken_of_parts(last.splits, num_sequences - last.begin)

    def epochs(self, num_sequences: float) -> dict[str, float]:
        return _epochs_of_parts(self.parts, self._weights, num_sequences)

    def describe(self) -> dict[str, Any]:
        ends = [stretch.begin for stretch in self._stretches[1:]]
        return {**super().describe(), "weights": self._weights, **({"earlier_until": ends} if ends else {})}


def _epochs_of_parts(
    parts: Mapping[str, Data] | Mapping[str, Dataset], weights: Mapping[str, float], amount: float
) -> dict[str, float]:
    """Returns the epochs of each part in a run of `amount` sequences or tokens; nested names are `outer/inner`."""
    epochs: dict[str, float] = {}
    for name, part in parts.items():
        share = amount * weights[name] / sum(weights.values())
        epochs |= {f"{name}/{inner}".rstrip("/"): times for inner, times in part.epochs(share).items()}
    return epochs


def stretches(weights: Sequence[Sequence[float]], ends: Sequence[int], seed: int) -> list[Stretch]:
    """Returns the stretches of a run.

    Args:
        weights: Weights of the parts in each stretch.
        ends: Number of sequences after which each stretch but the last ends.
        seed: Seed of the phases.
    """
    found = [Stretch(0, splits(weights[0], seed), np.zeros(len(weights[0]), dtype=np.int64))]
    for of_parts, end in zip(weights[1:], ends, strict=True):
        last = found[-1]
        taken = last.taken + taken_of_parts(last.splits, end - last.begin)
        found.append(Stretch(end, splits(of_parts, seed), taken))
    return found


def draw_in_stretches(stretches: Sequence[Stretch], indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Assigns each sequence to a part, as `draw_parts` does with the weights of its stretch."""
    part_of, within = np.empty(len(indices), dtype=np.int64), np.empty(len(indices), dtype=np.int64)
    for stretch in stretches:  # a later one overwrites what is its own
        is_own = indices >= stretch.begin
        parts, numbers = draw_parts(stretch.splits, indices[is_own] - stretch.begin)
        part_of[is_own], within[is_own] = parts, numbers + stretch.taken[parts]
    return part_of, within


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


def taken_of_parts(splits: list[tuple[int, int]], count: int) -> np.ndarray:
    """Returns how many of the first `count` sequences are of each part.

    Args:
        splits: As returned by `splits`.
        count: Number of sequences.
    """
    left, taken = np.array([count], dtype=np.int64), []
    for share, phase in splits:
        taken.append(_taken(left, share, phase))
        left = left - taken[-1]
    return np.concatenate([*taken, left])


def _taken(count: np.ndarray, share: int, phase: int) -> np.ndarray:
    """Computes floor((count share + phase) / 2^32) - floor(phase / 2^32) exactly, for counts below 2^62."""
    high, low = (part.astype(np.uint64) for part in np.divmod(count, _ONE))
    part = (low * np.uint64(share) + np.uint64(phase)) >> np.uint64(_BITS)  # below 2^64: both factors are at most 2^32
    return (high * np.uint64(share) + part).astype(np.int64)

"""Concatenation of datasets."""

from collections.abc import Callable

import numpy as np

from ml.config import REQUIRED, configurable
from ml.data.datasets.combined import CombinedData, CombinedDataset
from ml.data.datasets.dataset import Data, Dataset, ImageFormat
from ml.data.sequences.sampling import shuffled_epochs


@configurable
class Concatenation(CombinedData):
    """Several datasets as one: an epoch is one epoch of each, and their sequences are shuffled together.

    Args:
        datasets: Parts by name; the names are their gin scopes.
    """

    def __init__(self, datasets: dict[str, Callable[..., Data]] = REQUIRED):
        super().__init__(datasets)

    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> "ConcatenatedDataset":
        """Opens all parts.

        Args:
            sequence_length: Tokens per sequence.
            seed: Seed of the order; each part gets a seed derived from it.
            images: Images that the model takes; None if it takes none.

        Raises:
            DataError: A part cannot be used.
        """
        return ConcatenatedDataset(self.open_parts(sequence_length, seed, images), seed)


class ConcatenatedDataset(CombinedDataset):
    """Datasets that share one epoch."""

    def __init__(self, parts: dict[str, Dataset], seed: int):
        super().__init__(parts)
        self._seed = seed
        self._sizes = np.array([part.num_sequences for part in parts.values()])
        self._ends = np.cumsum(self._sizes)

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shuffled = shuffled_epochs(indices, self.num_sequences, self._seed)
        part_of = np.searchsorted(self._ends, shuffled, side="right")
        sizes = self._sizes[part_of]
        within = shuffled - (self._ends[part_of] - sizes)
        return part_of, indices // self.num_sequences * sizes + within

    def sequences_of_parts(self, num_sequences: int) -> np.ndarray:
        """Returns the count of each part, in the last epoch up to its random order."""
        return num_sequences * self._sizes / self.num_sequences

"""Datasets one after another, as if they were one."""

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
        datasets: The parts by name; the names are their scopes.
    """

    def __init__(self, datasets: dict[str, Callable[..., Data]] = REQUIRED):
        super().__init__(datasets)

    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> "ConcatenatedDataset":
        """Opens all parts.

        Raises:
            DataError: One of them cannot be used.
        """
        return ConcatenatedDataset(self.open_parts(sequence_length, seed, images), seed)


class ConcatenatedDataset(CombinedDataset):
    """Datasets whose epochs are one."""

    def __init__(self, parts: dict[str, Dataset], seed: int):
        super().__init__(parts)
        self._seed = seed
        self._sizes = np.array([part.num_sequences for part in parts.values()])
        self._ends = np.cumsum(self._sizes)

    def places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shuffled = shuffled_epochs(numbers, self.num_sequences, self._seed)
        part_of = np.searchsorted(self._ends, shuffled, side="right")
        sizes = self._sizes[part_of]
        within = shuffled - (self._ends[part_of] - sizes)
        return part_of, numbers // self.num_sequences * sizes + within

"""Streams of tokens as a dataset: one to train on, one that is held out."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ml.data.datasets.dataset import Dataset
from ml.data.sequences.batch import Batch
from ml.data.sequences.sampling import Sampling, Sequences
from ml.data.sequences.streams import TokenStream
from ml.data.tokenizers import Tokenizer


class TokenDataset(Dataset):
    """Sequences of a stream to train on by their number; those of another one, held out, from its start."""

    def __init__(
        self,
        train: TokenStream | None,
        validation: TokenStream,
        tokenizer: Tokenizer,
        sampling: Sampling,
        sequence_length: int,
        seed: int,
        sha256: str,
        separate_documents: bool | None = None,
    ):
        """`separate_documents`: whether documents neither see nor predict each other; None is as the sampling does.

        Where `train` is None there is no sequence to train on: it is data that a run is only measured on.

        Raises:
            DataError: There is not enough to train on.
        """
        self.train = train
        self.validation = validation
        self.sequence_length = sequence_length
        self.sha256 = sha256
        self.num_train_tokens = train.num_tokens if train else 0
        self.num_validation_tokens = max(validation.num_tokens - 1, 0)
        self.tokenizer = tokenizer
        self._sampling = sampling
        self.separates_documents = sampling.separates(separate_documents)
        made = sampling.sequences(train, sequence_length, seed, self.separates_documents) if train else None
        self._sequences = made
        self.num_sequences = self._sequences.num_sequences if self._sequences else 0
        self._held_out: dict[int | None, Sequences] = {}
        self._num_bytes: dict[int | None, int] = {}

    def sequences(self, numbers: np.ndarray) -> Batch:
        return self._sequences.batch(numbers)

    def validation_batches(self, size: int, num_tokens: int | None = None) -> Iterator[Batch]:
        """The held-out sequences in order; the last one is filled up with ignored targets."""
        held_out = self._validation(num_tokens)
        for first in range(0, held_out.num_sequences, size):
            yield held_out.batch(np.arange(first, min(first + size, held_out.num_sequences)))

    def validation_bytes(self, num_tokens: int | None = None) -> int:
        if num_tokens not in self._num_bytes:
            self._num_bytes[num_tokens] = super().validation_bytes(num_tokens)
        return self._num_bytes[num_tokens]

    def describe(self) -> dict[str, Any]:
        return {
            "sha256": self.sha256,
            "train_tokens": self.num_train_tokens,
            "validation_tokens": self.validation.num_tokens,
            **(self._sequences.describe() if self._sequences else {}),
        }

    def _validation(self, num_tokens: int | None) -> Sequences:
        if num_tokens not in self._held_out:
            made = self._sampling.in_order(self.validation, self.sequence_length, self.separates_documents, num_tokens)
            self._held_out[num_tokens] = made
        return self._held_out[num_tokens]

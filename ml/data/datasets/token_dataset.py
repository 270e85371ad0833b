"""Token streams as a dataset."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ml.data.datasets.dataset import Dataset
from ml.data.datasets.statistics import DocumentStatistics
from ml.data.sequences.batch import Batch
from ml.data.sequences.batch_indices import held_out_indices
from ml.data.sequences.document_begin import Begin, begun
from ml.data.sequences.sampling import Sampling, Sequences
from ml.data.sequences.streams import TokenStream
from ml.data.tokenizers import Tokenizer


class TokenDataset(Dataset):
    """Training sequences sampled from one stream, and held-out sequences read in order from another."""

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
        begin: Begin | None = None,
        losses: tuple[int, int] = (0, 0),
    ):
        """Builds the training sequences.

        Args:
            train: Stream to train on; None for data that is only evaluated.
            validation: Held-out stream.
            tokenizer: Tokenizer of both streams.
            sampling: Sampling of sequences.
            sequence_length: Tokens per sequence.
            seed: Seed of the sampling.
            sha256: Hash of the data.
            separate_documents: True masks documents from each other; None follows the sampling.
            begin: Begin of each document, which is inserted; None inserts nothing.
            losses: Number of documents that were cut, and skipped, before the training stream was made.

        Raises:
            DataError: The training stream is too short.
        """
        self.train = train
        self.validation = validation
        self.sequence_length = sequence_length
        self.num_train_tokens = train.num_tokens if train else 0
        inserted = None if begin is None else begin.inserted
        self.num_validation_tokens = max(validation.num_tokens - (inserted is None), 0)
        self.sha256 = sha256
        if begin is not None and inserted is not None:
            self.sha256 = hashlib.sha256(f"{sha256} begin {inserted}".encode()).hexdigest()
            train, validation = train and begun(train, begin), begun(validation, begin)
        self._held_out_stream = validation
        self.tokenizer = tokenizer
        self._losses = losses
        self._sampling = sampling
        self.separates_documents = sampling.separates(separate_documents)
        made = sampling.sequences(train, sequence_length, seed, self.separates_documents) if train else None
        self._sequences = made
        self.num_sequences = self._sequences.num_sequences if self._sequences else 0
        self._held_out: dict[int | None, Sequences] = {}
        self._num_bytes: dict[int | None, int] = {}

    def sequences(self, indices: np.ndarray) -> Batch:
        assert self._sequences is not None  # without sequences to train on there are no indices of them
        return self._sequences.batch(indices)

    def validation_batches(self, size: int, num_tokens: int | None = None) -> Iterator[Batch]:
        """Yields the held-out sequences in order; the last one is padded with ignored targets."""
        yield from self.validation_part(size, num_tokens)

    def validation_part(
        self, size: int, num_tokens: int | None = None, rank: int = 0, num_ranks: int = 1
    ) -> Iterator[Batch]:
        held_out = self._validation(num_tokens)
        for indices in held_out_indices(held_out.num_sequences, size, rank, num_ranks):
            yield held_out.batch(indices)

    def validation_bytes(self, num_tokens: int | None = None) -> int:
        if num_tokens not in self._num_bytes:
            self._num_bytes[num_tokens] = super().validation_bytes(num_tokens)
        return self._num_bytes[num_tokens]

    def statistics(self) -> dict[str, DocumentStatistics]:
        if self.train is None or self._sequences is None:
            return {}
        num_cut = self._sequences.num_cut_documents()
        whole = None if num_cut is None else num_cut + self._losses[0]
        return {"": DocumentStatistics.of(self.train.ends, whole, self.train.num_learned, self._losses[1])}

    def describe(self) -> dict[str, Any]:
        return {
            "sha256": self.sha256,
            "train_tokens": self.num_train_tokens,
            "validation_tokens": self.validation.num_tokens,
            **(self._sequences.describe() if self._sequences else {}),
        }

    def _validation(self, num_tokens: int | None) -> Sequences:
        if num_tokens not in self._held_out:
            made = self._sampling.in_order(
                self._held_out_stream, self.sequence_length, self.separates_documents, num_tokens
            )
            self._held_out[num_tokens] = made
        return self._held_out[num_tokens]

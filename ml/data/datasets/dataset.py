"""What the trainer asks of data, whatever it is made of."""

import abc
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ml.data.sequences.batch import Batch
from ml.data.sequences.document_separator import Separator
from ml.data.tokenizers import Tokenizer
from ml.targets import IGNORED


class Dataset(abc.ABC):
    """Data that was opened: sequences to train on by their number, held-out ones from the first.

    num_train_tokens, num_validation_tokens: tokens that are there to be predicted. num_sequences: those of an epoch to
    train on. separates_documents: whether batches to train on tell documents apart. sha256: of all that a batch is made
    from.
    """

    num_train_tokens: int
    num_validation_tokens: int
    num_sequences: int
    sequence_length: int
    separates_documents: bool = False
    sha256: str
    tokenizer: Tokenizer

    @abc.abstractmethod
    def sequences(self, numbers: np.ndarray) -> Batch:
        """The sequences of these numbers (B,) of the run: a pure function of data, seed and numbers.

        Raises:
            DataError: What it is made from cannot be read any more, or is not what it was said to be.
        """

    def batch(self, first: int, size: int) -> Batch:
        """The sequences number `first` to `first + size - 1` of the run."""
        return self.sequences(np.arange(first, first + size))

    @abc.abstractmethod
    def validation_batches(self, size: int, num_tokens: int | None = None) -> Iterator[Batch]:
        """The held-out sequences, or the first of them, which predict about `num_tokens` tokens; each token once."""

    def validation_bytes(self, num_tokens: int | None = None) -> int:
        """The bytes of UTF-8 that the targets of `validation_batches` stand for."""
        targets = (batch.targets for batch in self.validation_batches(64, num_tokens))
        return sum(self.tokenizer.num_bytes(rows[rows != IGNORED].numpy()) for rows in targets)

    def epochs(self, num_sequences: float) -> dict[str, float]:
        """The number of times that a run of `num_sequences` reads each part, by name; data without parts is ""."""
        return {"": num_sequences / self.num_sequences}

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the data is, for the record."""


class ImageFormat(NamedTuple):
    """The images that a model takes."""

    token_id: int  # what stands in the places of an image
    tokens_per_image: int
    shape: tuple[int, int, int]  # channels, height, width


class Data(abc.ABC):
    """What a configuration says of data; nothing is read before it is opened.

    vocab_size: all tokens are below it; None where that stands in files that are not there. tokenizer: what the tokens
    are. separator: what stands behind a document. validation_fraction: the part that is held out, 1 where nothing is
    left to train on; None where that is decided elsewhere.
    """

    vocab_size: int | None
    tokenizer: Tokenizer
    separator: Separator
    validation_fraction: float | None = None

    @property
    def separates_documents(self) -> bool:
        """Whether sequences hold several documents that must not see each other, which every mixer has to respect."""
        return False

    def misfit(self, images: ImageFormat | None) -> str | None:
        """Why it does not suit a model that takes such images, or none; None where it does."""
        return None

    @property
    def num_train_tokens(self) -> int | None:
        """The number of tokens to train on; None where it is not known before the data is opened."""
        return None

    def epochs(self, num_tokens: float) -> dict[str, float]:
        """The number of times that a run of `num_tokens` reads each part, as `Dataset.epochs`; empty if not known."""
        return {"": num_tokens / self.num_train_tokens} if self.num_train_tokens else {}

    @abc.abstractmethod
    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> Dataset:
        """Reads the data, for a model that takes such images.

        Raises:
            DataError: It cannot be used.
        """

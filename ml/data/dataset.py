"""What the trainer asks of data, whatever it is made of."""

import abc
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ml.data.batch import Batch


class Dataset(abc.ABC):
    """Data that was read: sequences to train on by their number, held-out ones from the first.

    train, validation: tokens that are there to be predicted, (tokens,) each. sha256: of all that a batch is made from.
    """

    train: np.ndarray
    validation: np.ndarray
    sequence_length: int
    sha256: str

    @abc.abstractmethod
    def batch(self, first: int, size: int) -> Batch:
        """The sequences number `first` to `first + size - 1` of the run: a pure function of data, seed and numbers."""

    @abc.abstractmethod
    def validation_batches(self, size: int, num_tokens: int | None = None) -> Iterator[Batch]:
        """The held-out sequences, or the first of them, which predict about `num_tokens` tokens; each token once."""

    @abc.abstractmethod
    def validation_bytes(self, num_tokens: int | None = None) -> int:
        """The bytes of UTF-8 that the targets of `validation_batches` stand for."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the data is, for the record."""


class ImageFormat(NamedTuple):
    """The images that a model takes."""

    token_id: int  # what stands in the places of an image
    tokens_per_image: int
    shape: tuple[int, int, int]  # channels, height, width


class Data(abc.ABC):
    """What a configuration says of data; nothing is read before it is opened."""

    vocab_size: int  # all tokens are below it

    def misfit(self, images: ImageFormat | None) -> str | None:
        """Why it does not suit a model that takes such images, or none; None where it does."""
        return None

    @abc.abstractmethod
    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> Dataset:
        """Reads the data, for a model that takes such images.

        Raises:
            DataError: It cannot be used.
        """

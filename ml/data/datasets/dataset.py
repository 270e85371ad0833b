"""Contract between the trainer and its data."""

import abc
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ml.data.chat.encoding import ChatFormat
from ml.data.chat.template import ChatTemplate
from ml.data.datasets.statistics import DocumentStatistics, Portion
from ml.data.sequences.batch import Batch
from ml.data.sequences.document_begin import Begin
from ml.data.sequences.document_separator import Separator
from ml.data.sequences.ending import Ending
from ml.data.tokenizers import Tokenizer
from ml.data.tokenizers.lent import Lender
from ml.targets import IGNORED


class Dataset(abc.ABC):
    """Opened data: training sequences by index, and a held-out split.

    Attributes:
        num_train_tokens: Number of targets in an epoch.
        num_validation_tokens: Number of targets in the held-out split.
        num_sequences: Number of training sequences in an epoch.
        sequence_length: Tokens per sequence.
        separates_documents: True if training batches carry document ids.
        has_pairs: True if batches are pairs of a preferred and a rejected answer.
        sha256: Hash of everything that batches are made from.
        tokenizer: Tokenizer of the tokens.
    """

    num_train_tokens: int
    num_validation_tokens: int
    num_sequences: int
    sequence_length: int
    separates_documents: bool = False
    has_pairs: bool = False
    sha256: str
    tokenizer: Tokenizer

    @abc.abstractmethod
    def sequences(self, indices: np.ndarray) -> Batch:
        """Returns training sequences: a pure function of data, seed and indices.

        Args:
            indices: Indices of sequences, counted from the start of the run and across epochs, (B,).

        Raises:
            DataError: The files cannot be read any more, or have changed.
        """

    def batch(self, first: int, size: int) -> Batch:
        """Returns consecutive training sequences.

        Args:
            first: Index of the first sequence.
            size: Number of sequences.
        """
        return self.sequences(np.arange(first, first + size))

    @abc.abstractmethod
    def validation_batches(self, size: int, num_tokens: int | None = None) -> Iterator[Batch]:
        """Yields the held-out sequences in order; each token is a target once.

        Args:
            size: Sequences per batch.
            num_tokens: Approximate number of targets, from the start of the split; None for all.
        """

    def validation_part(
        self, size: int, num_tokens: int | None = None, rank: int = 0, num_ranks: int = 1
    ) -> Iterator[Batch]:
        """Yields the batches of a rank: those of all ranks together are `validation_batches`.

        A subclass overrides it where it can skip the batches of the other ranks without reading them.

        Args:
            size: Largest number of sequences per batch.
            num_tokens: As in `validation_batches`.
            rank: Index of the rank.
            num_ranks: Number of ranks among which the sequences are divided.
        """
        return itertools.islice(self.validation_batches(size, num_tokens), rank, None, num_ranks)

    def validation_bytes(self, num_tokens: int | None = None) -> int:
        """Returns the number of UTF-8 bytes that the targets of `validation_batches` represent.

        Args:
            num_tokens: As in `validation_batches`.
        """
        targets = (batch.targets for batch in self.validation_batches(64, num_tokens))
        return sum(self.tokenizer.num_bytes(rows[rows != IGNORED].numpy()) for rows in targets)

    def epochs(self, num_sequences: float) -> dict[str, float]:
        """Returns the number of epochs of each part in a run of `num_sequences`, by name; "" if there are no parts."""
        return {"": num_sequences / self.num_sequences}

    def portions(self, num_sequences: int) -> dict[str, Portion]:
        """Returns what each part contributes to the first `num_sequences` of a run, by name; "" if there are no parts.

        Args:
            num_sequences: Number of sequences, from the first of the run.
        """
        return {"": Portion(1.0, num_sequences / self.num_sequences)}

    def statistics(self) -> dict[str, DocumentStatistics]:
        """Returns the statistics of the training documents of each part, by name as `portions`; empty if unknown."""
        return {}

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns a description of the data for the run's records."""


class ImageFormat(NamedTuple):
    """Images that a model takes.

    Attributes:
        token_id: Token at the positions of an image.
        tokens_per_image: Number of positions of an image.
        shape: Channels, height, width.
    """

    token_id: int
    tokens_per_image: int
    shape: tuple[int, int, int]


class Data(abc.ABC):
    """Configured data; nothing is read before `open`.

    Attributes:
        vocab_size: Exclusive upper bound of the token ids; None if the files that state it are missing.
        tokenizer: Tokenizer of the tokens; that of the run for data without its own.
        separator: Separator after each document.
        validation_fraction: Fraction that is held out, 1 if nothing is left to train on; None if it is decided
            elsewhere.
    """

    if TYPE_CHECKING:  # each an attribute or a property

        @property
        def vocab_size(self) -> int | None: ...
        @property
        def tokenizer(self) -> Tokenizer: ...
        @property
        def separator(self) -> Separator: ...

    validation_fraction: float | None = None

    @property
    def has_pairs(self) -> bool:
        """True if sequences are pairs of a preferred and a rejected answer."""
        return False

    @property
    def separates_documents(self) -> bool:
        """True if sequences hold several documents that every mixer has to mask from each other."""
        return False

    @property
    def begin(self) -> Begin:
        """Begin of each document, from which evaluation and generation start too."""
        return Begin.after(self.separator)

    @property
    def ending(self) -> Ending:
        """End of a generated document."""
        return Ending.of(self.separator)

    @property
    def chat_template(self) -> ChatTemplate | None:
        """Template of conversations; None if the data has none."""
        return None

    @property
    def chat(self) -> ChatFormat | None:
        """Tokens of conversations, for generation as in training; None if the data has none."""
        return None

    @property
    def has_own_tokenizer(self) -> bool:
        """True unless the data takes the tokenizer of the run."""
        return True

    def lend_tokenizer(self, lender: Lender) -> None:
        """Sets the tokenizer of the run, for data without its own.

        Args:
            lender: Returns the tokenizer, at every use the same; None for bytes.
        """
        assert self.has_own_tokenizer  # otherwise the subclass takes it

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:  # noqa: B027
        """Uses the copy of an own tokenizer that a run keeps; the files of the data may be gone.

        Args:
            tokenizer: The copy.
        """

    def misfit(self, images: ImageFormat | None) -> str | None:
        """Returns the reason that the data does not fit the model, or None.

        Args:
            images: Images that the model takes; None if it takes none.
        """
        return None

    @property
    def num_train_tokens(self) -> int | None:
        """Number of training tokens; None if unknown before the data is opened."""
        return None

    def epochs(self, num_tokens: float) -> dict[str, float]:
        """Returns the number of epochs of each part in a run of `num_tokens`, as `Dataset.epochs`; empty if unknown."""
        return {"": num_tokens / self.num_train_tokens} if self.num_train_tokens else {}

    @abc.abstractmethod
    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> Dataset:
        """Opens the data.

        Args:
            sequence_length: Tokens per sequence.
            seed: Seed of sampling and order.
            images: Images that the model takes; None if it takes none.

        Raises:
            DataError: The data cannot be used.
        """

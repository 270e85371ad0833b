"""Text as training data: read, tokenize, split, and cut in sequences."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ml.config import child, configurable, require
from ml.data.batch import Batch
from ml.data.corpus import Corpus, Document, TextFiles
from ml.data.dataset import Data, Dataset, ImageFormat
from ml.data.errors import DataError
from ml.data.sampling import Sampling, ShuffledEpochs
from ml.data.split import hold_out
from ml.data.tokenizers import ByteTokenizer, Tokenizer
from ml.layers.loss import IGNORED


class TokenDataset(Dataset):
    """The tokens of a corpus, in memory: sequences to train on by their number, held-out text from its start."""

    def __init__(
        self,
        train: np.ndarray,
        validation: np.ndarray,
        tokenizer: Tokenizer,
        sampling: Sampling,
        sequence_length: int,
        seed: int,
        document_ends: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        """`document_ends`: where the documents of both parts end, if they are to be told apart."""
        self.train = train  # (tokens,)
        self.validation = validation  # (tokens,)
        self._train_ends, self._validation_ends = document_ends or (None, None)
        self.sequence_length = sequence_length
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._seed = seed
        self.sha256 = _sha256(train, validation, *(document_ends or ()))

    def batch(self, first: int, size: int) -> Batch:
        """The sequences number `first` to `first + size - 1` of the run: a pure function of data, seed and numbers."""
        indices = np.arange(first, first + size)
        starts = self._sampling.starts(indices, len(self.train), self.sequence_length, self._seed)
        places = starts[:, None] + np.arange(self.sequence_length)  # (B, T)
        return self._batch(self.train, self._train_ends, places)

    def validation_batches(self, size: int, num_tokens: int | None = None) -> Iterator[Batch]:
        """The held-out text, or the start of it that predicts `num_tokens` tokens, each token once.

        The first token has nothing before it and is not predicted. The last sequence is filled up with ignored targets.
        """
        end = self._validation_end(num_tokens)
        length = self.sequence_length
        for first in range(0, end, size * length):
            places = np.arange(first, min(first + size * length, end))
            padding = -len(places) % length
            rows = np.pad(places, (0, padding), mode="edge").reshape(-1, length)
            is_padding = np.arange(rows.size).reshape(rows.shape) >= len(places)
            yield self._batch(self.validation, self._validation_ends, rows, is_padding)

    def _batch(
        self, tokens: np.ndarray, ends: np.ndarray | None, places: np.ndarray, is_padding: np.ndarray | None = None
    ) -> Batch:
        """The tokens at `places` (B, T) and what follows each, which is ignored where it is of another document."""
        targets = tokens[places + 1].astype(np.int64)
        documents = None
        if ends is not None:
            documents = np.searchsorted(ends, places, side="right")
            targets[np.searchsorted(ends, places + 1, side="right") != documents] = IGNORED
        if is_padding is not None:
            targets[is_padding] = IGNORED
        return Batch.of(tokens[places], targets, documents=documents)

    def describe(self) -> dict[str, Any]:
        """What the data is, for the record."""
        return {"sha256": self.sha256, "train_tokens": len(self.train), "validation_tokens": len(self.validation)}

    def validation_bytes(self, num_tokens: int | None = None) -> int:
        """The bytes of UTF-8 that the targets of `validation_batches` stand for."""
        predicted = np.arange(1, self._validation_end(num_tokens) + 1)
        if self._validation_ends is not None:
            predicted = predicted[~np.isin(predicted, self._validation_ends)]  # nothing predicts how a document starts
        return self._tokenizer.num_bytes(self.validation[predicted])

    def _validation_end(self, num_tokens: int | None) -> int:
        available = len(self.validation) - 1
        return available if num_tokens is None else min(num_tokens, available)


@configurable
class TextData(Data):
    """Documents one after another as a single stream of tokens.

    Args:
        corpus: Where the documents come from.
        tokenizer: What their tokens are.
        sampling: Which stretch of the stream each sequence is.
        separator: Text put behind each document; "" for none. The default, a zero byte, stands in no text.
        validation_fraction: The part of the corpus that is held out, whole documents where there are enough. 1 leaves
            nothing to train on: so is data that a run is only measured on.
        separate_documents: Whether a document neither sees nor predicts another one in its sequence, and positions
            start anew in each.
    """

    def __init__(
        self,
        corpus: Callable[..., Corpus] = TextFiles,
        tokenizer: Callable[..., Tokenizer] = ByteTokenizer,
        sampling: Callable[..., Sampling] = ShuffledEpochs,
        separator: str = "\0",
        validation_fraction: float = 0.05,
        separate_documents: bool = False,
    ):
        require(
            0.0 <= validation_fraction <= 1.0, "validation_fraction", f"must be in [0, 1], not {validation_fraction}"
        )
        self.corpus = child("corpus", corpus)
        self.tokenizer = child("tokenizer", tokenizer)
        self.sampling = child("sampling", sampling)
        self.separator = separator
        self.validation_fraction = validation_fraction
        self.separate_documents = separate_documents

    @property
    def vocab_size(self) -> int:
        """All tokens are below this number."""
        return self.tokenizer.vocab_size

    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> TokenDataset:
        """Reads the corpus.

        Nothing is kept on disk: the default corpus is read and tokenized in a fraction of a second.

        Raises:
            DataError: There is nothing to read, or not enough for one sequence.
        """
        trained, held_out = hold_out(list(self.corpus.documents()), self.validation_fraction)
        train, validation = self._encode(trained), self._encode(held_out)
        if len(train) <= sequence_length and self.validation_fraction < 1.0:
            raise DataError(
                f"the training text has {len(train)} tokens, but one sequence takes {sequence_length + 1}: "
                "give more text (TextFiles.paths) or a smaller Trainer.sequence_length"
            )
        ends = (self._ends(trained), self._ends(held_out)) if self.separate_documents else None
        return TokenDataset(train, validation, self.tokenizer, self.sampling, sequence_length, seed, ends)

    def _encode(self, documents: list[Document]) -> np.ndarray:
        if self.separate_documents:
            return np.concatenate(
                [self._encode_alone(document) for document in documents] or [self.tokenizer.encode("")]
            )
        return self.tokenizer.encode("".join(document.text + self.separator for document in documents))

    def _encode_alone(self, document: Document) -> np.ndarray:
        return self.tokenizer.encode(document.text + self.separator)

    def _ends(self, documents: list[Document]) -> np.ndarray:
        """Behind which token of the stream each document ends."""
        return np.cumsum([len(self._encode_alone(document)) for document in documents])


def _sha256(*streams: np.ndarray) -> str:
    """One hash of everything that a batch is made from."""
    digest = hashlib.sha256()
    for stream in streams:
        digest.update(f"{stream.dtype.str} {len(stream)}\n".encode())
        digest.update(np.ascontiguousarray(stream).data)
    return digest.hexdigest()

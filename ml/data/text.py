"""Text as training data: read, tokenize, split, and cut in sequences."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ml.config import child, configurable, require
from ml.data.batch import Batch
from ml.data.corpus import Corpus, Document, TextFiles
from ml.data.errors import DataError
from ml.data.sampling import Sampling, ShuffledEpochs
from ml.data.split import hold_out
from ml.data.tokenizers import ByteTokenizer, Tokenizer
from ml.layers.loss import IGNORED


class TokenDataset:
    """The tokens of a corpus, in memory: sequences to train on by their number, held-out text from its start."""

    def __init__(
        self,
        train: np.ndarray,
        validation: np.ndarray,
        tokenizer: Tokenizer,
        sampling: Sampling,
        sequence_length: int,
        seed: int,
    ):
        self.train = train  # (tokens,)
        self.validation = validation  # (tokens,)
        self.sequence_length = sequence_length
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._seed = seed
        self.sha256 = _sha256(train, validation)

    def batch(self, first: int, size: int) -> Batch:
        """The sequences number `first` to `first + size - 1` of the run: a pure function of data, seed and numbers."""
        indices = np.arange(first, first + size)
        starts = self._sampling.starts(indices, len(self.train), self.sequence_length, self._seed)
        windows = self.train[starts[:, None] + np.arange(self.sequence_length + 1)]  # (B, T + 1)
        return Batch.of(windows[:, :-1], windows[:, 1:])

    def validation_batches(self, size: int, num_tokens: int | None = None) -> Iterator[Batch]:
        """The held-out text, or the start of it that predicts `num_tokens` tokens, each token once.

        The first token has nothing before it and is not predicted. The last sequence is filled up with ignored targets.
        """
        end = self._validation_end(num_tokens)
        length = self.sequence_length
        for first in range(0, end, size * length):
            places = np.arange(first, min(first + size * length, end))
            padding = -len(places) % length
            tokens = np.pad(self.validation[places].astype(np.int64), (0, padding))
            targets = np.pad(self.validation[places + 1].astype(np.int64), (0, padding), constant_values=IGNORED)
            yield Batch.of(tokens.reshape(-1, length), targets.reshape(-1, length))

    def describe(self) -> dict[str, Any]:
        """What the data is, for the record."""
        return {"sha256": self.sha256, "train_tokens": len(self.train), "validation_tokens": len(self.validation)}

    def validation_bytes(self, num_tokens: int | None = None) -> int:
        """The bytes of UTF-8 that the targets of `validation_batches` stand for."""
        return self._tokenizer.num_bytes(self.validation[1 : self._validation_end(num_tokens) + 1])

    def _validation_end(self, num_tokens: int | None) -> int:
        available = len(self.validation) - 1
        return available if num_tokens is None else min(num_tokens, available)


@configurable
class TextData:
    """Documents one after another as a single stream of tokens.

    Args:
        corpus: Where the documents come from.
        tokenizer: What their tokens are.
        sampling: Which stretch of the stream each sequence is.
        separator: Text put behind each document; "" for none. The default, a zero byte, stands in no text.
        validation_fraction: The part of the corpus that is held out, whole documents where there are enough.
    """

    def __init__(
        self,
        corpus: Callable[..., Corpus] = TextFiles,
        tokenizer: Callable[..., Tokenizer] = ByteTokenizer,
        sampling: Callable[..., Sampling] = ShuffledEpochs,
        separator: str = "\0",
        validation_fraction: float = 0.05,
    ):
        require(
            0.0 <= validation_fraction < 1.0, "validation_fraction", f"must be in [0, 1), not {validation_fraction}"
        )
        self.corpus = child("corpus", corpus)
        self.tokenizer = child("tokenizer", tokenizer)
        self.sampling = child("sampling", sampling)
        self.separator = separator
        self.validation_fraction = validation_fraction

    @property
    def vocab_size(self) -> int:
        """All tokens are below this number."""
        return self.tokenizer.vocab_size

    def open(self, sequence_length: int, seed: int) -> TokenDataset:
        """Reads the corpus.

        Nothing is kept on disk: the default corpus is read and tokenized in a fraction of a second.

        Raises:
            DataError: There is nothing to read, or not enough for one sequence.
        """
        trained, held_out = hold_out(list(self.corpus.documents()), self.validation_fraction)
        train, validation = self._encode(trained), self._encode(held_out)
        if len(train) <= sequence_length:
            raise DataError(
                f"the training text has {len(train)} tokens, but one sequence takes {sequence_length + 1}: "
                "give more text (TextFiles.paths) or a smaller Trainer.sequence_length"
            )
        return TokenDataset(train, validation, self.tokenizer, self.sampling, sequence_length, seed)

    def _encode(self, documents: list[Document]) -> np.ndarray:
        return self.tokenizer.encode("".join(document.text + self.separator for document in documents))


def _sha256(*streams: np.ndarray) -> str:
    """One hash of everything that a batch is made from."""
    digest = hashlib.sha256()
    for stream in streams:
        digest.update(f"{stream.dtype.str} {len(stream)}\n".encode())
        digest.update(np.ascontiguousarray(stream).data)
    return digest.hexdigest()

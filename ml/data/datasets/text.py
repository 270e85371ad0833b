"""Text as training data: read, tokenize, split, and cut in sequences."""

from collections.abc import Callable

import numpy as np

from ml.config import child, configurable, require
from ml.data.corpora.text_files import Corpus, TextFiles
from ml.data.datasets.dataset import Data, ImageFormat
from ml.data.datasets.token_dataset import TokenDataset
from ml.data.reading.documents import Document
from ml.data.reading.hold_out import hold_out
from ml.data.sequences.document_separator import Separator
from ml.data.sequences.fill_in_the_middle import FillInTheMiddle, vocab_size_with
from ml.data.sequences.sampling import Sampling, ShuffledEpochs
from ml.data.sequences.streams import ArrayStream, sha256_of
from ml.data.tokenizers import ByteTokenizer, Tokenizer


@configurable
class TextData(Data):
    """Documents one after another as a single stream of tokens.

    Args:
        corpus: Where the documents come from.
        tokenizer: What their tokens are.
        sampling: Which tokens of the stream each sequence is.
        separator: Text put behind each document; "" for none. None is the token that the tokenizer has for it, which
            stands in no text: for bytes, a zero byte.
        validation_fraction: The part of the corpus that is held out, whole documents where there are enough. 1 leaves
            nothing to train on: so is data that a run is only measured on.
        separate_documents: Whether a document neither sees nor predicts another one in its sequence, and positions
            start anew in each; None is as the sampling does, which is yes for packed documents and no for windows.
        fill_in_the_middle: How documents to train on are turned round, so that a gap in them is learned to be filled.
    """

    def __init__(
        self,
        corpus: Callable[..., Corpus] = TextFiles,
        tokenizer: Callable[..., Tokenizer] = ByteTokenizer,
        sampling: Callable[..., Sampling] = ShuffledEpochs,
        separator: str | None = None,
        validation_fraction: float = 0.05,
        separate_documents: bool | None = None,
        fill_in_the_middle: Callable[..., FillInTheMiddle] | None = None,
    ):
        require(
            0.0 <= validation_fraction <= 1.0, "validation_fraction", f"must be in [0, 1], not {validation_fraction}"
        )
        self.corpus = child("corpus", corpus)
        self.tokenizer = child("tokenizer", tokenizer)
        self.sampling = child("sampling", sampling)
        self._separator = separator
        self.validation_fraction = validation_fraction
        self.separate_documents = separate_documents
        self.fill_in_the_middle = child("fill_in_the_middle", fill_in_the_middle) if fill_in_the_middle else None

    @property
    def separates_documents(self) -> bool:
        """As `separate_documents` says, or else the sampling."""
        return self.sampling.separates(self.separate_documents)

    @property
    def vocab_size(self) -> int | None:
        """All tokens are below this number."""
        return vocab_size_with(self.tokenizer.vocab_size, self.fill_in_the_middle)

    @property
    def separator(self) -> Separator:
        """What stands behind a document."""
        return Separator.of(self.tokenizer, self._separator)

    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> TokenDataset:
        """Reads the corpus.

        Nothing is kept on disk: the default corpus is read and tokenized in a fraction of a second.

        Raises:
            DataError: There is nothing to read, or not enough for one sequence.
        """
        parts = hold_out(list(self.corpus.documents()), self.validation_fraction)
        train, validation = (self._stream(part) for part in parts)
        sha256 = sha256_of(train.tokens, train.ends, validation.tokens, validation.ends)
        if self.fill_in_the_middle is not None:
            train = self.fill_in_the_middle.of(train, self.tokenizer, seed)
        trained = train if self.validation_fraction < 1.0 else None
        return TokenDataset(
            trained, validation, self.tokenizer, self.sampling, sequence_length, seed, sha256, self.separate_documents
        )

    def _stream(self, documents: list[Document]) -> ArrayStream:
        ending = self.separator.tokens
        encoded = [np.concatenate((self.tokenizer.encode(document.text), ending)) for document in documents]
        return ArrayStream.of(encoded, num_end_tokens=len(ending))

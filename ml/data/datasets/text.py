"""Text data: documents that are tokenized in memory."""

import logging
from collections.abc import Callable

import numpy as np

from ml.config import child, configurable, require
from ml.data.corpora.text_files import Corpus, TextFiles
from ml.data.datasets.dataset import ImageFormat
from ml.data.datasets.token_dataset import TokenDataset
from ml.data.datasets.tokenized_data import TokenizedData
from ml.data.reading.documents import Document
from ml.data.reading.hold_out import hold_out, num_shared
from ml.data.reading.options import HoldOutBy
from ml.data.sequences.document_begin import Begin
from ml.data.sequences.document_separator import Separator
from ml.data.sequences.fill_in_the_middle import FillInTheMiddle, vocab_size_with
from ml.data.sequences.sampling import Sampling, ShuffledEpochs
from ml.data.sequences.streams import ArrayStream, TokenStream, sha256_of
from ml.data.tokenizers import Tokenizer
from ml.data.tokenizers.lent import OwnOrLent

logger = logging.getLogger(__name__)


@configurable
class TextData(TokenizedData):
    """Documents tokenized in memory and concatenated into one stream.

    Args:
        corpus: Source of documents.
        tokenizer: Tokenizer of the text. None is that of the run, or of the run that it starts from, or else bytes.
        sampling: Sampling of sequences from the stream.
        separator: Text after each document; "" for none. None is the tokenizer's end-of-document token, which no text
            contains: for bytes, the zero byte.
        validation_fraction: Fraction of the text that is held out, in [0, 1]; whole documents if there are enough. 1
            leaves nothing to train on, for data that is only evaluated.
        hold_out_by: "name" holds out files by the hash of their names, "content" by that of their text, so that equal
            files are on the same side. Rows are always held out by their text.
        separate_documents: True masks attention and targets between documents of a sequence, and restarts positions in
            each. None follows the sampling: True for packed documents, False for windows.
        begin_token: Token before each document, from which its first token is predicted: a special token of the
            tokenizer, or text that is one token; "" for none. None is the tokenizer's begin-of-document token, or the
            last token of the separator if documents are separated.
        fill_in_the_middle: Rearranges training documents so that the model learns to fill gaps; None leaves them
            unchanged.
    """

    validation_fraction: float

    def __init__(
        self,
        corpus: Callable[..., Corpus] = TextFiles,
        tokenizer: Callable[..., Tokenizer] | None = None,
        sampling: Callable[..., Sampling] = ShuffledEpochs,
        separator: str | None = None,
        validation_fraction: float = 0.05,
        hold_out_by: HoldOutBy = "name",
        separate_documents: bool | None = None,
        begin_token: str | None = None,
        fill_in_the_middle: Callable[..., FillInTheMiddle] | None = None,
    ):
        require(
            0.0 <= validation_fraction <= 1.0, "validation_fraction", f"must be in [0, 1], not {validation_fraction}"
        )
        self.corpus = child("corpus", corpus)
        self._tokenizer = OwnOrLent(None if tokenizer is None else child("tokenizer", tokenizer))
        self.sampling = child("sampling", sampling)
        self._separator = separator
        self.validation_fraction = validation_fraction
        self.hold_out_by: HoldOutBy = hold_out_by
        self.separate_documents = separate_documents
        self._begin_token = begin_token
        self.fill_in_the_middle = child("fill_in_the_middle", fill_in_the_middle) if fill_in_the_middle else None

    @property
    def separates_documents(self) -> bool:
        """Value of `separate_documents`, or that of the sampling if it is None."""
        return self.sampling.separates(self.separate_documents)

    @property
    def vocab_size(self) -> int | None:
        """Exclusive upper bound of the token ids, sentinels included; None if the tokenizer of the run is missing."""
        return vocab_size_with(self._tokenizer.vocab_size, self.fill_in_the_middle)

    @property
    def separator(self) -> Separator:
        """Separator after each document."""
        return Separator.of(self.tokenizer, self._separator)

    @property
    def begin(self) -> Begin:
        """Begin of each document."""
        return Begin.of(self.tokenizer, self.separator, self._begin_token, self.separates_documents)

    def open(self, sequence_length: int, seed: int, images: ImageFormat | None = None) -> TokenDataset:
        """Reads and tokenizes the corpus.

        Nothing is cached on disk: the default corpus takes a fraction of a second.

        Args:
            sequence_length: Tokens per sequence.
            seed: Seed of sampling and fill-in-the-middle.
            images: Images that the model takes; ignored.

        Raises:
            DataError: There is no text, or not enough for one sequence.
        """
        parts = hold_out(list(self.corpus.documents()), self.validation_fraction, self.hold_out_by)
        if shared := num_shared(*parts):
            advice = 'TextData.hold_out_by = "content" keeps equal files on one side'
            logger.warning("%d held-out documents are equal to documents that are trained on; %s", shared, advice)
        train, validation = (self._stream(part) for part in parts)
        sha256 = sha256_of(train.tokens, train.ends, validation.tokens, validation.ends)
        rearranged: TokenStream = train
        if self.fill_in_the_middle is not None:
            rearranged = self.fill_in_the_middle.apply(train, self.tokenizer, seed)
        trained = rearranged if self.validation_fraction < 1.0 else None
        return TokenDataset(
            trained, validation, self.tokenizer, self.sampling, sequence_length, seed, sha256, self.separate_documents,
            self.begin,
        )  # fmt: skip

    def _stream(self, documents: list[Document]) -> ArrayStream:
        ending = self.separator.tokens
        encoded = [np.concatenate((self.tokenizer.encode(document.text), ending)) for document in documents]
        return ArrayStream.of(encoded, num_end_tokens=len(ending))

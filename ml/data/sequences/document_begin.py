"""Begin of a document: the token from which its first token is predicted."""

from typing import NamedTuple, Self

import numpy as np

from ml.data.errors import DataError
from ml.data.sequences.document_separator import Separator
from ml.data.sequences.streams import TokenStream
from ml.data.tokenizers import Tokenizer


class Begin(NamedTuple):
    """Begin of a document, in training and at inference.

    Attributes:
        tokens: Tokens from which the first token of a document is predicted: the begin-of-document token, or the
            separator after the document before; empty if the data has neither.
        is_inserted: True if training inserts the token before every document. Any text then begins with it.
    """

    tokens: np.ndarray
    is_inserted: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer, separator: Separator, text: str | None, separates: bool) -> Self:
        """Resolves the parameter `begin_token` of data.

        Args:
            tokenizer: Tokenizer of the documents.
            separator: Separator after each document.
            text: Text of the token; "" for none. None is the tokenizer's begin-of-document token, or else the last
                token of the separator.
            separates: True if documents are masked from each other. Otherwise a separator before the document does
                for a begin token that is equal.

        Raises:
            DataError: The text is not a single token.
        """
        if text == "":
            return cls.after(separator)
        last = [int(token) for token in separator.tokens[-1:]]
        chosen = tokenizer.begin_of_document if text is None else _single_token(tokenizer, text)
        token = chosen if chosen is not None else next(iter(last), None)
        if token is None or (token in last and not separates):
            return cls.after(separator)
        return cls(np.array([token], dtype=np.min_scalar_type(token)), True)

    @classmethod
    def after(cls, separator: Separator) -> Self:
        """Returns the begin of documents before which nothing is inserted."""
        return cls(separator.tokens, False)

    @property
    def inserted(self) -> int | None:
        """Token that training inserts before every document; None if it inserts none."""
        return int(self.tokens[0]) if self.is_inserted else None

    def before(self, text: np.ndarray) -> np.ndarray:
        """Returns a text as a model reads it, (tokens,): with the inserted token, unless it begins with that already.

        Args:
            text: Tokens of the text, (tokens,).
        """
        if self.inserted is None or text[:1].tolist() == [self.inserted]:
            return text
        return np.concatenate((self.tokens, text))


def _single_token(tokenizer: Tokenizer, text: str) -> int:
    special = tokenizer.special_token(text)
    tokens = tokenizer.encode(text).tolist() if special is None else [special]
    if len(tokens) != 1:
        raise DataError(f"begin_token = {text!r} must be one token, not {len(tokens)} ({tokens})")
    return tokens[0]


def begun(stream: TokenStream, begin: Begin) -> TokenStream:
    """Returns a stream with the token that `begin` inserts before every document; nothing is read yet."""
    return stream if begin.inserted is None else _BegunStream(stream, begin.inserted)


class _BegunStream(TokenStream):
    """Stream with a token before every document, which is never a target."""

    def __init__(self, stream: TokenStream, token: int):
        self._stream = stream
        self._token = np.array([token], dtype=np.min_scalar_type(token))
        count = np.arange(1, len(stream.ends) + 1)
        self.ends = stream.ends + count
        self.num_tokens = stream.num_tokens + len(count)
        self.num_end_tokens = stream.num_end_tokens
        self._begins = np.concatenate(([0], self.ends[:-1]))[: len(count)]

    def read(self, start: int, stop: int) -> np.ndarray:
        first, last = np.searchsorted(self._begins, (start, stop)).tolist()
        text = self._stream.read(start - first, stop - last)
        wide = text.astype(np.result_type(text, self._token), copy=False)
        return np.insert(wide, self._places(first, last, start), self._token[0])

    def is_predicted(self, start: int, stop: int) -> np.ndarray | None:
        first, last = np.searchsorted(self._begins, (start, stop)).tolist()
        predicted = self._stream.is_predicted(start - first, stop - last)
        if first == last:
            return predicted
        of_text = np.ones(stop - start - (last - first), dtype=bool) if predicted is None else predicted
        return np.insert(of_text, self._places(first, last, start), False)

    def _places(self, first: int, last: int, start: int) -> np.ndarray:
        """Returns the positions of begins `first` to `last - 1` in the underlying tokens of a slice from `start`."""
        return self._begins[first:last] - start - np.arange(last - first)

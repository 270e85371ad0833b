"""Separator after each document."""

from typing import NamedTuple, Self

import numpy as np

from ml.data.tokenizers import Tokenizer


class Separator(NamedTuple):
    """End of a document, and thereby the start of the next.

    Attributes:
        tokens: Tokens after each document; empty without a separator.
        text: Their text; "" for a token that decodes to nothing.
    """

    tokens: np.ndarray
    text: str

    @classmethod
    def of(cls, tokenizer: Tokenizer, text: str | None) -> Self:
        """Encodes a separator.

        Args:
            tokenizer: Tokenizer of the documents.
            text: Text of the separator; None for the tokenizer's end-of-document token, if it has one.
        """
        if text is not None:
            return cls(tokenizer.encode(text), text)
        ending = [] if tokenizer.end_of_document is None else [tokenizer.end_of_document]
        tokens = np.array(ending, dtype=np.min_scalar_type(max(ending, default=0)))
        return cls(tokens, tokenizer.decode(tokens))

    @property
    def token(self) -> int | None:
        """The separator as a single token; None if it has no tokens or several."""
        return int(self.tokens[0]) if len(self.tokens) == 1 else None

"""What stands behind each document."""

from typing import NamedTuple, Self

import numpy as np

from ml.data.tokenizers import Tokenizer


class Separator(NamedTuple):
    """The end of a document, which is also the start of the next; both are empty where there is none.

    tokens: those that are put there. text: what they show as; "" for a token that shows as nothing.
    """

    tokens: np.ndarray
    text: str

    @classmethod
    def of(cls, tokenizer: Tokenizer, text: str | None) -> Self:
        """That of a text, or where it is None the token that the tokenizer has for the end of a document."""
        if text is not None:
            return cls(tokenizer.encode(text), text)
        ending = [] if tokenizer.end_of_document is None else [tokenizer.end_of_document]
        tokens = np.array(ending, dtype=np.min_scalar_type(max(ending, default=0)))
        return cls(tokens, tokenizer.decode(tokens))

    @property
    def token(self) -> int | None:
        """The one token that it is; None where it is none or several."""
        return int(self.tokens[0]) if len(self.tokens) == 1 else None

"""What stands behind each document."""

import numpy as np

from ml.data.tokenizers import Tokenizer


def end_tokens(tokenizer: Tokenizer, separator: str | None) -> np.ndarray:
    """The tokens behind a document: those of a text, or where that is None the one that the tokenizer has for it."""
    if separator is not None:
        return tokenizer.encode(separator)
    ending = [] if tokenizer.end_of_document is None else [tokenizer.end_of_document]
    return np.array(ending, dtype=np.min_scalar_type(max(ending, default=0)))


def end_text(tokenizer: Tokenizer, separator: str | None) -> str:
    """The same as text, as it shows where a model writes it; "" for none."""
    return tokenizer.decode(end_tokens(tokenizer, None)) if separator is None else separator

"""The tokenizer that needs nothing."""

import re
from pathlib import Path

import numpy as np

from ml.config import configurable
from ml.data.tokenizers.base import SavedArguments, Tokenizer


@configurable
class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8 are the tokens: 256 of them, nothing to train and no text out of reach.

    The zero byte, which stands in no text, ends a document.
    """

    vocab_size = 256
    end_of_document = 0
    may_cut_behind = re.compile(rb"(?=[\x00-\x7f\xc0-\xff])")  # before whatever begins a character

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of `tokens`; bytes that are no UTF-8, such as half a character at the end, become U+FFFD."""
        return np.asarray(tokens).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def num_bytes(self, tokens: np.ndarray) -> int:
        """One for each token, the zero byte included: it could stand in a text."""
        return len(tokens)

    def save(self, folder: Path) -> SavedArguments:
        return SavedArguments({}, {})

"""Byte tokenizer."""

import re
from pathlib import Path

import numpy as np

from ml.config import configurable
from ml.data.tokenizers.base import SavedArguments, Tokenizer


@configurable
class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as tokens: a vocabulary of 256 that needs no training and encodes any text.

    The zero byte, which does not occur in text, ends a document.
    """

    vocab_size = 256
    end_of_document = 0
    safe_cut = re.compile(rb"(?=[\x00-\x7f\xc0-\xff])")  # before the first byte of a character

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the text of `tokens`; invalid UTF-8, such as half a character at the end, becomes U+FFFD."""
        return np.asarray(tokens).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def num_bytes(self, tokens: np.ndarray) -> int:
        """Returns one byte per token, the zero byte included: it is valid UTF-8."""
        return len(tokens)

    def save(self, folder: Path) -> SavedArguments:
        return SavedArguments({}, {})

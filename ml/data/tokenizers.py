"""Text to numbers and back."""

import abc

import numpy as np

from ml.config import configurable


class Tokenizer(abc.ABC):
    """Maps text to tokens in [0, vocab_size)."""

    vocab_size: int

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The tokens of `text`, in the smallest unsigned type that holds them."""

    @abc.abstractmethod
    def decode(self, tokens: np.ndarray) -> str:
        """The text of `tokens`."""

    @abc.abstractmethod
    def num_bytes(self, tokens: np.ndarray) -> int:
        """How many bytes of UTF-8 the tokens stand for: the measure of a loss that no tokenizer can flatter."""


@configurable
class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8 are the tokens: 256 of them, nothing to train and no text out of reach."""

    vocab_size = 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of `tokens`; bytes that are no UTF-8, such as half a character at the end, become U+FFFD."""
        return np.asarray(tokens).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def num_bytes(self, tokens: np.ndarray) -> int:
        return len(tokens)

"""Byte tokenizer."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ml.config import configurable
from ml.data.tokenizers.base import SavedArguments, SpecialToken, Tokenizer
from ml.data.tokenizers.definition import Definition
from ml.data.tokenizers.token_bytes import TokenBytes

_NUM_BYTES = 256


@configurable
class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as tokens: a vocabulary of 256 that needs no training and encodes any text.

    The zero byte, which does not occur in text, ends a document.

    Args:
        added_tokens: Special tokens to add after the bytes, in this order.
    """

    vocab_size = 256
    end_of_document = 0
    safe_cut = re.compile(rb"(?=[\x00-\x7f\xc0-\xff])")  # before the first byte of a character

    _added: Mapping[str, int] = {}

    def __init__(self, added_tokens: Sequence[str] = ()):
        self._added = {name: _NUM_BYTES + index for index, name in enumerate(dict.fromkeys(added_tokens))}
        if self._added:
            self.vocab_size = _NUM_BYTES + len(self._added)
            special = {token: name for name, token in self._added.items()}
            pieces = [bytes([byte]) for byte in range(_NUM_BYTES)]
            self._bytes = TokenBytes([*pieces, *(b"" for _ in special)], special)

    def encode(self, text: str) -> np.ndarray:
        tokens = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        return tokens.astype(np.uint16) if self._added else tokens

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the text of `tokens`; invalid UTF-8, such as half a character at the end, becomes U+FFFD."""
        if self._added:
            return self._bytes.decode(tokens)
        return np.asarray(tokens).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def num_bytes(self, tokens: np.ndarray) -> int:
        """Returns one byte per token, the zero byte included: it is valid UTF-8. Added tokens count as none."""
        return self._bytes.num_bytes(tokens) if self._added else len(tokens)

    @property
    def control_tokens(self) -> Mapping[str, SpecialToken]:
        """Added tokens by their text."""
        return {name: SpecialToken(token) for name, token in self._added.items()}

    def save(self, folder: Path) -> SavedArguments:
        return SavedArguments({"added_tokens": list(self._added)} if self._added else {}, {})

    def definition(self) -> Definition:
        ordinary = [type(self).__qualname__, self.vocab_size - len(self._added)]
        return Definition(ordinary, {token: name for name, token in self._added.items()})

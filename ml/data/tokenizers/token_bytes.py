"""Bytes represented by each token of a vocabulary."""

from collections.abc import Mapping, Sequence

import numpy as np


class TokenBytes:
    """Bytes of each token, for decoding and for counting the UTF-8 bytes that tokens represent."""

    def __init__(self, pieces: Sequence[bytes], special: Mapping[int, str]):
        """Stores the bytes.

        Args:
            pieces: Bytes of each token, by id; b"" for unused ids.
            special: Text of special tokens, which represent no bytes of a document.
        """
        self._pieces = [special[token].encode() if token in special else piece for token, piece in enumerate(pieces)]
        self._lengths = np.array([0 if token in special else len(piece) for token, piece in enumerate(pieces)])

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the text of `tokens`; invalid UTF-8, such as half a character at the end, becomes U+FFFD."""
        pieces = self._pieces
        return b"".join([pieces[token] for token in np.asarray(tokens).tolist()]).decode("utf-8", errors="replace")

    def num_bytes(self, tokens: np.ndarray) -> int:
        """Returns the number of bytes that the tokens represent; special tokens count as zero."""
        return int(self._lengths[np.asarray(tokens)].sum())

"""What each token of a vocabulary stands for."""

from collections.abc import Mapping, Sequence

import numpy as np


class TokenBytes:
    """The bytes behind each token: they put text together again, and tell how many bytes of UTF-8 tokens stand for."""

    def __init__(self, pieces: Sequence[bytes], special: Mapping[int, str]):
        """`pieces`: the bytes of each token, b"" where there are none. `special`: tokens that stand for no text."""
        self._pieces = [special[token].encode() if token in special else piece for token, piece in enumerate(pieces)]
        self._lengths = np.array([0 if token in special else len(piece) for token, piece in enumerate(pieces)])

    def decode(self, tokens: np.ndarray) -> str:
        """The text; bytes that are no UTF-8, such as half a character at the end, become U+FFFD."""
        pieces = self._pieces
        return b"".join([pieces[token] for token in np.asarray(tokens).tolist()]).decode("utf-8", errors="replace")

    def num_bytes(self, tokens: np.ndarray) -> int:
        """How many bytes the tokens stand for; special ones for none."""
        return int(self._lengths[np.asarray(tokens)].sum())

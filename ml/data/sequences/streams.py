"""Token streams: concatenated documents, in memory or on disk."""

import abc
import bisect
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class TokenStream(abc.ABC):
    """Tokens by position, and the document boundaries.

    Attributes:
        num_tokens: Number of tokens of all documents.
        ends: Position after the last token of each document, ascending, (documents,) int64; the last is `num_tokens`.
        num_end_tokens: Number of tokens after the text of each document that only mark its end.
        cache_folder: Folder in which a packing of the documents is kept; None for none.
    """

    num_tokens: int
    ends: np.ndarray
    num_end_tokens: int
    cache_folder: Path | None = None

    @abc.abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns the tokens at `start` to `stop - 1`, in any unsigned type."""

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Reads windows.

        Args:
            starts: Position of the first token of each window, (B,).
            length: Tokens per window.

        Returns:
            (B, length), in any unsigned type.
        """
        return np.stack([self.read(start, start + length) for start in starts.tolist()])

    def is_predicted(self, start: int, stop: int) -> np.ndarray | None:
        """Returns which of the tokens at `start` to `stop - 1` are targets, bool; None for all."""
        return None

    @property
    def num_learned(self) -> int | None:
        """Number of tokens that are targets; None for all."""
        return None

    def clipped(self, starts: np.ndarray, length: int, end: int) -> np.ndarray:
        """Reads windows as `gather`, repeating the last token before `end` from there on."""
        if not len(starts) or starts.max() + length <= end:
            return self.gather(starts, length)
        rows = [self.read(start, min(start + length, end)) for start in starts.tolist()]
        return np.stack([np.pad(row, (0, length - len(row)), mode="edge") for row in rows])


class ArrayStream(TokenStream):
    """Stream of tokens in memory."""

    def __init__(
        self, tokens: np.ndarray, ends: np.ndarray, num_end_tokens: int = 0, predicted: np.ndarray | None = None
    ):
        """Wraps arrays.

        Args:
            tokens: (tokens,).
            ends: Position after the last token of each document, (documents,).
            num_end_tokens: Number of tokens after the text of each document that only mark its end.
            predicted: Marks the targets, (tokens,) bool; None for all.
        """
        self.tokens = tokens
        self.num_tokens = len(tokens)
        self.ends = ends
        self.num_end_tokens = num_end_tokens
        self.predicted = predicted

    @classmethod
    def of(cls, documents: Sequence[np.ndarray], num_end_tokens: int = 0) -> "ArrayStream":
        """Concatenates documents.

        Args:
            documents: Tokens of each document.
            num_end_tokens: Number of tokens at the end of each that only mark its end.
        """
        tokens = np.concatenate(documents) if documents else np.zeros(0, dtype=np.uint8)
        return cls(tokens, np.cumsum([len(document) for document in documents], dtype=np.int64), num_end_tokens)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.tokens[start:stop]

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        return self.tokens[starts[:, None] + np.arange(length)]

    def is_predicted(self, start: int, stop: int) -> np.ndarray | None:
        return None if self.predicted is None else self.predicted[start:stop]

    @property
    def num_learned(self) -> int | None:
        return None if self.predicted is None else int(np.count_nonzero(self.predicted))


class StreamPart(TokenStream):
    """Tokens of a stream at `first` to `stop - 1`; documents may be cut at both ends."""

    def __init__(self, stream: TokenStream, first: int, stop: int):
        self._stream = stream
        self._first = first
        self.num_tokens = stop - first
        self.num_end_tokens = stream.num_end_tokens
        inside = stream.ends[np.searchsorted(stream.ends, first, "right") : np.searchsorted(stream.ends, stop)]
        self.ends = np.append(inside, [stop] if stop > first else []).astype(np.int64) - first

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._stream.read(self._first + start, self._first + stop)

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        return self._stream.gather(self._first + starts, length)


class JoinedStream(TokenStream):
    """Concatenation of streams."""

    def __init__(self, streams: Sequence[TokenStream]):
        self._streams = [stream for stream in streams if stream.num_tokens]
        self._offsets = np.cumsum([0, *(stream.num_tokens for stream in self._streams)]).tolist()
        self.num_tokens = self._offsets[-1]
        self.num_end_tokens = min((stream.num_end_tokens for stream in self._streams), default=0)
        shifted = [stream.ends + offset for stream, offset in zip(self._streams, self._offsets, strict=False)]
        self.ends = np.concatenate(shifted) if shifted else np.zeros(0, dtype=np.int64)

    def read(self, start: int, stop: int) -> np.ndarray:
        first = bisect.bisect_right(self._offsets, start) - 1
        parts = []
        for stream, offset in zip(self._streams[first:], self._offsets[first:], strict=False):
            if offset >= stop:
                break
            parts.append(stream.read(max(start - offset, 0), min(stop - offset, stream.num_tokens)))
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint8)


def sha256_of(*arrays: np.ndarray) -> str:
    """Hashes arrays with their types and lengths."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {len(array)}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

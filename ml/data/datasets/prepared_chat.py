"""Prepared conversations as token streams."""

import hashlib
from typing import NamedTuple

import numpy as np

from ml.data.reading.hold_out import held_out_names
from ml.data.sequences.streams import TokenStream
from ml.data.token_files.conversations import ConversationFolder

_AT_ONCE = 4096  # conversations that are hashed


class Fitting(NamedTuple):
    """Conversations of a folder that fit in a sequence.

    Attributes:
        indices: Indices of the conversations, (conversations,).
        sizes: Number of their tokens, cut to what fits, (conversations,).
        is_cut: True for those that were cut, (conversations,) bool.
        num_long: Number of conversations that do not fit whole.
        num_empty: Number of conversations without a target in what fits.
    """

    indices: np.ndarray
    sizes: np.ndarray
    is_cut: np.ndarray
    num_long: int
    num_empty: int

    @classmethod
    def of(cls, folder: ConversationFolder, largest: int, skips_long: bool) -> "Fitting":
        """Selects conversations.

        Args:
            folder: The folder.
            largest: Largest number of tokens of a conversation.
            skips_long: True omits longer ones, False keeps their start.
        """
        lengths = np.diff(folder.ends, prepend=0)
        is_long = lengths > largest
        sizes = np.minimum(lengths, largest)
        is_tried = ~is_long if skips_long else np.ones_like(is_long)
        is_kept = is_tried & (folder.first < sizes)
        chosen = np.flatnonzero(is_kept)
        return cls(chosen, sizes[chosen], is_long[chosen], int(is_long.sum()), int((is_tried & ~is_kept).sum()))

    def is_held_out(self, folder: ConversationFolder, fraction: float) -> np.ndarray:
        """Returns which conversations are held out: a fraction of the distinct ones, bool (conversations,)."""
        names = folder.names()
        chosen = [names[index] for index in self.indices.tolist()]
        held_out = held_out_names(chosen, fraction)
        return np.array([name in held_out for name in chosen], dtype=bool)

    def stream(self, folder: ConversationFolder, chosen: np.ndarray) -> "ConversationStream":
        """Returns the stream of some of the conversations, (conversations,) bool."""
        return ConversationStream(folder, self.indices[chosen], self.sizes[chosen])


class ConversationStream(TokenStream):
    """Stream of some conversations of a folder, which are read from the disk when they are used."""

    num_end_tokens = 0

    def __init__(self, folder: ConversationFolder, indices: np.ndarray, sizes: np.ndarray):
        starts = np.concatenate(([0], folder.ends[:-1])).astype(np.int64)
        self._folder = folder
        self._starts = starts[indices]  # in the folder
        self.ends = np.cumsum(sizes, dtype=np.int64)
        self._begins = self.ends - sizes  # in this stream
        self.num_tokens = int(self.ends[-1]) if len(self.ends) else 0
        self.cache_folder = folder.path

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._read(self._folder.tokens, start, stop)

    def is_predicted(self, start: int, stop: int) -> np.ndarray:
        return self._read(self._folder.targets, start, stop)

    @property
    def num_learned(self) -> int:
        return sum(int(np.count_nonzero(self.is_predicted(*border))) for border in self._blocks())

    def _read(self, array: np.ndarray, start: int, stop: int) -> np.ndarray:
        first, last = np.searchsorted(self.ends, (start, max(stop - 1, start)), side="right").tolist()
        parts = [np.zeros(0, array.dtype)]
        for index in range(first, min(last + 1, len(self.ends))):
            offset = int(self._starts[index]) - int(self._begins[index])
            low, high = max(start, int(self._begins[index])), min(stop, int(self.ends[index]))
            parts.append(array[offset + low : offset + high])
        return np.concatenate(parts)

    def _blocks(self) -> list[tuple[int, int]]:
        borders = [0, *self.ends[_AT_ONCE - 1 :: _AT_ONCE].tolist()]
        return list(zip(borders, [*borders[1:], self.num_tokens], strict=True))

    def update(self, digest: "hashlib._Hash") -> None:
        """Adds the tokens, the ends and the mask to a hash, as `sha256_of` does of the arrays."""
        digest.update(f"{self._folder.tokens.dtype.str} {self.num_tokens}\n".encode())
        for border in self._blocks():
            digest.update(np.ascontiguousarray(self.read(*border)).data)
        digest.update(f"{self.ends.dtype.str} {len(self.ends)}\n".encode())
        digest.update(np.ascontiguousarray(self.ends).data)
        digest.update(f"{np.dtype(bool).str} {self.num_tokens}\n".encode())
        for border in self._blocks():
            digest.update(np.ascontiguousarray(self.is_predicted(*border)).data)


def sha256_of_streams(*streams: ConversationStream) -> str:
    """Hashes streams as `sha256_of` hashes their arrays."""
    digest = hashlib.sha256()
    for stream in streams:
        stream.update(digest)
    return digest.hexdigest()

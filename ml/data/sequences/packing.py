"""Whole documents packed in sequences, so that few of them are cut."""

from typing import Any, NamedTuple

import numpy as np

from ml.config import configurable, require
from ml.data.errors import DataError
from ml.data.randomness import derive_seed, permute
from ml.data.sequences.batch import Batch
from ml.data.sequences.sampling import Sampling, Sequences, shuffled_epochs
from ml.data.sequences.streams import TokenStream
from ml.targets import IGNORED


@configurable
class PackedDocuments(Sampling):
    """Puts whole documents in sequences: each in the first that has room for it (first fit; Johnson 1974).

    A document of n tokens takes n - 1 places, each with the token that follows; what is left of a sequence is padding.
    One that does not fit in a sequence is cut in pieces that do, and no token is lost. Which documents are together is
    decided once, by the seed; each sequence comes once an epoch, in an order of its own for each epoch. Where documents
    are told apart, which is what packing does if nobody says otherwise, they do not see each other and positions start
    anew; they never predict each other.

    Args:
        window: How many documents, or pieces of long ones, are packed together, neighbours in a random order of all:
            more waste less.
        longest_first: Whether the longest of them are packed first ("first fit decreasing"), which wastes less.
        max_documents: How many documents a sequence has at most; None for any number, 1 for no packing.
    """

    separates_documents = True

    def __init__(self, window: int = 4096, longest_first: bool = True, max_documents: int | None = None):
        require(window > 0, "window", f"must be positive, not {window}")
        fits = max_documents is None or max_documents > 0
        require(fits, "max_documents", f"must be positive, not {max_documents}")
        self.window = window
        self.longest_first = longest_first
        self.max_documents = max_documents

    def sequences(self, stream: TokenStream, length: int, seed: int, separate: bool) -> Sequences:
        documents = permute(derive_seed(seed, "packing"), np.arange(len(stream.ends)), max(len(stream.ends), 1))
        packed = self._packed(cut(stream, documents, length), length)
        if not packed.num_rows:
            raise DataError("no document to train on has two tokens: there is nothing to predict")
        return _PackedSequences(stream, packed, length, separate, seed)

    def in_order(self, stream: TokenStream, length: int, separate: bool, num_tokens: int | None) -> Sequences:
        """Documents in their order, as many as it takes to predict `num_tokens` tokens; the last may be cut."""
        pieces = cut(stream, np.arange(len(stream.ends)), length)
        if num_tokens is not None:
            left = num_tokens - (np.cumsum(pieces.sizes) - pieces.sizes)  # before each piece
            pieces = Pieces(pieces.starts, np.minimum(pieces.sizes, left)).where(left > 0)
        return _PackedSequences(stream, self._packed(pieces, length), length, separate, None)

    def _packed(self, pieces: "Pieces", length: int) -> "Packed":
        rows, num_rows = np.empty(len(pieces.sizes), dtype=np.int64), 0
        for first in range(0, len(rows), self.window):
            sizes = pieces.sizes[first : first + self.window]
            order = np.argsort(-sizes, kind="stable") if self.longest_first else np.arange(len(sizes))
            rows[first + order] = num_rows + first_fit(sizes[order], length, self.max_documents)
            num_rows = 1 + int(rows[first : first + self.window].max())
        order = np.argsort(rows, kind="stable")
        offsets = np.searchsorted(rows[order], np.arange(num_rows + 1))
        return Packed(pieces.starts[order], pieces.sizes[order], offsets)


class Pieces(NamedTuple):
    """Parts of documents: each predicts `sizes` tokens, the ones behind `starts`."""

    starts: np.ndarray  # (pieces,) int64, places in the stream
    sizes: np.ndarray  # (pieces,) int64

    def where(self, chosen: np.ndarray) -> "Pieces":
        return Pieces(self.starts[chosen], self.sizes[chosen])


class Packed(NamedTuple):
    """Pieces in the order of the rows that they are in."""

    starts: np.ndarray  # (pieces,)
    sizes: np.ndarray  # (pieces,)
    offsets: np.ndarray  # (rows + 1,): the pieces of row r are number offsets[r] to offsets[r + 1] - 1

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1


def cut(stream: TokenStream, documents: np.ndarray, length: int) -> Pieces:
    """Documents, in this order, cut in pieces that predict at most `length` tokens, and each token but the first once.

    The last token of a piece is the first of the next one.
    """
    starts = np.concatenate(([0], stream.ends[:-1])).astype(np.int64)[documents]
    num_targets = stream.ends[documents] - starts - 1
    num_pieces = -(-np.maximum(num_targets, 0) // length)
    document = np.repeat(np.arange(len(documents)), num_pieces)
    number = np.arange(len(document)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    sizes = np.minimum(num_targets[document] - number * length, length)
    return Pieces(starts[document] + number * length, sizes)


def first_fit(sizes: np.ndarray, capacity: int, max_items: int | None = None) -> np.ndarray:
    """The bin of each item: the first with room for it, after those before it. An item may fill a bin, no more."""
    room = np.full(len(sizes), capacity)  # as many bins as items are enough
    count = np.zeros(len(sizes), dtype=np.int64)
    bins = np.empty(len(sizes), dtype=np.int64)
    first_open, num_used, smallest = 0, 0, int(sizes.min(initial=capacity))
    for item, size in enumerate(sizes.tolist()):
        place = first_open + int(np.argmax(room[first_open : num_used + 1] >= size))
        bins[item] = place
        room[place] -= size
        count[place] += 1
        if count[place] == max_items:
            room[place] = 0
        num_used = max(num_used, place + 1)
        while first_open < num_used and room[first_open] < smallest:
            first_open += 1
    return bins


class _PackedSequences(Sequences):
    def __init__(self, stream: TokenStream, packed: Packed, length: int, separate: bool, seed: int | None):
        """`seed` decides the order of the rows in each epoch; None is as they are."""
        self._stream = stream
        self._packed = packed
        self._length = length
        self._separate = separate
        self._seed = seed
        self.num_sequences = packed.num_rows

    def batch(self, numbers: np.ndarray) -> Batch:
        rows = numbers if self._seed is None else shuffled_epochs(numbers, self.num_sequences, self._seed)
        tokens = np.zeros((len(rows), self._length), dtype=np.int64)
        targets = np.full_like(tokens, IGNORED)
        documents = np.zeros_like(tokens)
        for place, row in enumerate(rows.tolist()):
            self._fill(row, tokens[place], targets[place], documents[place])
        return Batch.of(tokens, targets, documents=documents if self._separate else None)

    def _fill(self, row: int, tokens: np.ndarray, targets: np.ndarray, documents: np.ndarray) -> None:
        """Writes the pieces of a row in (T,) arrays; padding is a document of its own."""
        first, last = self._packed.offsets[row : row + 2].tolist()
        begin, number = 0, 0
        for number, piece in enumerate(range(first, last)):
            start, size = int(self._packed.starts[piece]), int(self._packed.sizes[piece])
            end = begin + size
            text = self._stream.read(start, start + size + 1)
            tokens[begin:end], targets[begin:end], documents[begin:end] = text[:-1], text[1:], number
            predicted = self._stream.is_predicted(start + 1, start + size + 1)
            if predicted is not None:
                targets[begin:end][~predicted] = IGNORED
            begin = end
        documents[begin:] = number + 1

    def describe(self) -> dict[str, Any]:
        places = self.num_sequences * self._length
        return {
            "sequences": self.num_sequences,
            "packed_documents": len(self._packed.starts),
            "packing_efficiency": round(int(self._packed.sizes.sum()) / max(places, 1), 4),
        }

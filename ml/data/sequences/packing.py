"""Packing of whole documents into sequences, so that few of them are cut."""

import contextlib
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ml.config import configurable, require
from ml.data.errors import DataError
from ml.data.randomness import derive_seed, permute
from ml.data.sequences.batch import Batch
from ml.data.sequences.sampling import Sampling, Sequences, shuffled_epochs
from ml.data.sequences.streams import TokenStream, sha256_of
from ml.files import write_atomically
from ml.targets import IGNORED

_CACHE_FORMAT = 1


@configurable
class PackedDocuments(Sampling):
    """Packs whole documents into sequences: each into the first with enough room (first fit; Johnson 1974).

    A document of n tokens takes n - 1 positions, each with the next token as its target; the rest of a sequence is
    padded. A document longer than a sequence is cut into pieces, and no token is lost. The seed decides once which
    documents share a sequence; each sequence is visited once per epoch, in a different order every epoch. Unless the
    data sets `separate_documents = False`, documents are masked from each other and positions restart in each; a
    document never predicts the next.

    Args:
        window: Number of documents, or pieces of long ones, that are packed together, consecutive in a random order of
            all; a larger window needs less padding.
        longest_first: True packs the longest documents of a window first ("first fit decreasing"), which needs less
            padding.
        max_documents: Largest number of documents in a sequence; None for no limit, 1 for no packing.
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
        packed = self._kept(stream.cache_folder, cut(stream, documents, length), length)
        if not packed.num_rows:
            raise DataError("no training document has two tokens: there is nothing to predict")
        return _PackedSequences(stream, packed, length, separate, seed)

    def _kept(self, folder: Path | None, pieces: "Pieces", length: int) -> "Packed":
        """Returns the packing of pieces from a file in the folder, named by the hash of all that it depends on."""
        if folder is None:
            return self.packed(pieces, length)
        settings = (type(self).__qualname__, length, self.window, self.longest_first, self.max_documents)
        of_pieces = sha256_of(pieces.starts, pieces.sizes)
        name = hashlib.sha256(f"{_CACHE_FORMAT} {settings} {of_pieces}".encode()).hexdigest()
        file = folder / f"packing-{name[:32]}.npz"
        with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), np.load(file) as kept:
            return Packed(*(kept[field] for field in Packed._fields))
        packed = self.packed(pieces, length)
        content = io.BytesIO()
        np.savez(content, **packed._asdict())
        with contextlib.suppress(OSError):  # a folder that cannot be written to
            write_atomically(file, content.getvalue())
        return packed

    def in_order(self, stream: TokenStream, length: int, separate: bool, num_tokens: int | None) -> Sequences:
        """Packs documents in their order, as many as predict `num_tokens` tokens; the last may be cut."""
        pieces = cut(stream, np.arange(len(stream.ends)), length)
        if num_tokens is not None:
            remaining = num_tokens - (np.cumsum(pieces.sizes) - pieces.sizes)  # before each piece
            pieces = Pieces(pieces.starts, np.minimum(pieces.sizes, remaining)).where(remaining > 0)
        return _PackedSequences(stream, self.packed(pieces, length), length, separate, None)

    def packed(self, pieces: "Pieces", length: int) -> "Packed":
        """Packs pieces into rows of `length` positions, a window of them at a time, in their order."""
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
    """Parts of documents.

    Attributes:
        starts: Position of the first token of each piece in the stream, (pieces,) int64.
        sizes: Number of targets of each piece, the tokens after its first, (pieces,) int64.
    """

    starts: np.ndarray
    sizes: np.ndarray

    def where(self, chosen: np.ndarray) -> "Pieces":
        return Pieces(self.starts[chosen], self.sizes[chosen])


class Packed(NamedTuple):
    """Pieces, sorted by the row that they are in.

    Attributes:
        starts: As in `Pieces`, (pieces,).
        sizes: As in `Pieces`, (pieces,).
        offsets: Row r has pieces offsets[r] to offsets[r + 1] - 1, (rows + 1,).
    """

    starts: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1


def cut(stream: TokenStream, documents: np.ndarray, length: int) -> Pieces:
    """Cuts documents into pieces of at most `length` targets; every token but the first is a target once.

    The last token of a piece is the first token of the next.

    Args:
        stream: Stream of documents.
        documents: Indices of the documents, in the order of the result, (documents,).
        length: Largest number of targets of a piece.
    """
    starts = np.concatenate(([0], stream.ends[:-1])).astype(np.int64)[documents]
    num_targets = stream.ends[documents] - starts - 1
    num_pieces = -(-np.maximum(num_targets, 0) // length)
    document = np.repeat(np.arange(len(documents)), num_pieces)
    number = np.arange(len(document)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    sizes = np.minimum(num_targets[document] - number * length, length)
    return Pieces(starts[document] + number * length, sizes)


def first_fit(sizes: np.ndarray, capacity: int, max_items: int | None = None) -> np.ndarray:
    """Assigns items to bins: each to the first bin with enough room, in order.

    Args:
        sizes: Size of each item, at most `capacity`, (items,).
        capacity: Size of a bin.
        max_items: Largest number of items in a bin; None for no limit.

    Returns:
        Index of the bin of each item, (items,).
    """
    room = np.full(len(sizes), capacity)  # upper bound: one bin for each item
    count = np.zeros(len(sizes), dtype=np.int64)
    bins = np.empty(len(sizes), dtype=np.int64)
    first_open, num_used, smallest = 0, 0, int(sizes.min(initial=capacity))
    for item, size in enumerate(sizes.tolist()):
        target = first_open + int(np.argmax(room[first_open : num_used + 1] >= size))
        bins[item] = target
        room[target] -= size
        count[target] += 1
        if count[target] == max_items:
            room[target] = 0
        num_used = max(num_used, target + 1)
        while first_open < num_used and room[first_open] < smallest:
            first_open += 1
    return bins


class _PackedSequences(Sequences):
    def __init__(self, stream: TokenStream, packed: Packed, length: int, separate: bool, seed: int | None):
        """`seed` shuffles the rows in each epoch; None keeps their order."""
        self._stream = stream
        self._packed = packed
        self._length = length
        self._separate = separate
        self._seed = seed
        self.num_sequences = packed.num_rows

    def batch(self, indices: np.ndarray) -> Batch:
        rows = indices if self._seed is None else shuffled_epochs(indices, self.num_sequences, self._seed)
        tokens = np.zeros((len(rows), self._length), dtype=np.int64)
        targets = np.full_like(tokens, IGNORED)
        documents = np.zeros_like(tokens)
        for index, row in enumerate(rows.tolist()):
            self._fill(row, tokens[index], targets[index], documents[index])
        return Batch.of(tokens, targets, documents=documents if self._separate else None)

    def _fill(self, row: int, tokens: np.ndarray, targets: np.ndarray, documents: np.ndarray) -> None:
        """Writes the pieces of a row into (T,) arrays; padding counts as a separate document."""
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

    def num_cut_documents(self) -> int:
        """Returns the number of documents in several pieces."""
        documents = np.searchsorted(self._stream.ends, self._packed.starts, side="right")
        return int(np.count_nonzero(np.unique(documents, return_counts=True)[1] > 1))

    def describe(self) -> dict[str, Any]:
        num_positions = self.num_sequences * self._length
        return {
            "sequences": self.num_sequences,
            "packed_documents": len(self._packed.starts),
            "packing_efficiency": round(int(self._packed.sizes.sum()) / max(num_positions, 1), 4),
        }

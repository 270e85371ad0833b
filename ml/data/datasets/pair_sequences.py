"""Sequences of pairs: a preferred and a rejected answer, each a document."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ml.data.chat.encoding import Example
from ml.data.randomness import derive_seed, permute
from ml.data.sequences.batch import Batch
from ml.data.sequences.packing import PackedDocuments, Pieces
from ml.data.sequences.sampling import Sequences, shuffled_epochs
from ml.targets import IGNORED


class Pair(NamedTuple):
    """Tokens of a preference.

    Attributes:
        name: Hash of what both sides begin with, which decides whether the pair is held out.
        chosen: The preferred side.
        rejected: The other side.
    """

    name: str
    chosen: Example
    rejected: Example

    @property
    def size(self) -> int:
        """Positions in a sequence: those of each side without its last token, which is only predicted."""
        return len(self.chosen.tokens) + len(self.rejected.tokens) - 2

    @property
    def num_targets(self) -> int:
        """Number of predicted tokens of both sides."""
        return sum(int(side.is_target[1:].sum()) for side in (self.chosen, self.rejected))


class PairSequences(Sequences):
    """Pairs packed into sequences; both sides of a pair are in one sequence."""

    def __init__(self, pairs: Sequence[Pair], packing: PackedDocuments, length: int, seed: int | None):
        """Packs the pairs.

        Args:
            pairs: The pairs, each of at most `length` positions.
            packing: Packing of pairs into sequences.
            length: Tokens per sequence.
            seed: Seed of the packing and of the order in each epoch; None keeps the order.
        """
        self._pairs = pairs
        self._length = length
        self._seed = seed
        order = np.arange(len(pairs))
        if seed is not None and len(pairs):
            order = permute(derive_seed(seed, "packing"), order, len(pairs))
        sizes = np.array([pair.size for pair in pairs], dtype=np.int64)
        self._packed = packing.packed(Pieces(order, sizes[order]), length)
        self.num_sequences = self._packed.num_rows

    def batch(self, indices: np.ndarray) -> Batch:
        rows = indices if self._seed is None else shuffled_epochs(indices, self.num_sequences, self._seed)
        tokens = np.zeros((len(rows), self._length), dtype=np.int64)
        targets, documents = np.full_like(tokens, IGNORED), np.full_like(tokens, -1)
        places = zip(rows.tolist(), tokens, targets, documents, strict=True)
        filled = [self._fill(*place) for place in places]
        return Batch.of(tokens, targets, documents=documents)._replace(pairs_per_sequence=tuple(filled))

    def _fill(self, row: int, tokens: np.ndarray, targets: np.ndarray, documents: np.ndarray) -> int:
        """Writes the pairs of a row into (T,) arrays; returns their number."""
        first, last = self._packed.offsets[row : row + 2].tolist()
        begin = 0
        for number, index in enumerate(self._packed.starts[first:last].tolist()):
            for side, example in enumerate(self._pairs[index][1:]):
                end = begin + len(example.tokens) - 1
                tokens[begin:end], documents[begin:end] = example.tokens[:-1], 2 * number + side
                targets[begin:end] = np.where(example.is_target[1:], example.tokens[1:].astype(np.int64), IGNORED)
                begin = end
        return last - first

    def num_cut_documents(self) -> int:
        return 0

    def describe(self) -> dict[str, Any]:
        num_positions = max(self.num_sequences * self._length, 1)
        efficiency = round(int(self._packed.sizes.sum()) / num_positions, 4)
        return {"sequences": self.num_sequences, "pairs": len(self._pairs), "packing_efficiency": efficiency}

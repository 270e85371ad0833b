"""Statistics of opened data: its documents, and its parts in a run."""

from typing import NamedTuple, Self

import numpy as np


class DocumentStatistics(NamedTuple):
    """Statistics of the training documents of a dataset.

    Attributes:
        num_documents: Number of documents, or conversations.
        num_tokens: Number of their tokens.
        shortest: Length of the shortest document in tokens.
        median: Median of the lengths.
        mean: Mean of the lengths.
        longest: Length of the longest document.
        num_cut: Number of documents that no sequence holds whole; None if unknown.
        num_skipped: Number of documents that are not read because they do not fit in a sequence.
        num_learned: Number of tokens that may be targets, without the masked ones; None for all.
    """

    num_documents: int
    num_tokens: int
    shortest: int
    median: float
    mean: float
    longest: int
    num_cut: int | None = None
    num_skipped: int = 0
    num_learned: int | None = None

    @classmethod
    def of(cls, ends: np.ndarray, num_cut: int | None, num_learned: int | None, num_skipped: int = 0) -> Self:
        """Computes the statistics.

        Args:
            ends: Position after the last token of each document, (documents,).
            num_cut: Number of documents that no sequence holds whole; None if unknown.
            num_learned: Number of tokens that may be targets; None for all.
            num_skipped: Number of documents that are not read.
        """
        lengths = np.diff(ends, prepend=0) if len(ends) else np.zeros(1, dtype=np.int64)
        sizes = (int(lengths.min()), float(np.median(lengths)), float(lengths.mean()), int(lengths.max()))
        return cls(len(ends), int(lengths.sum()), *sizes, num_cut, num_skipped, num_learned)


class Portion(NamedTuple):
    """Sequences that a run takes from a part of its data.

    Attributes:
        share: Fraction of the sequences of the run.
        epochs: Number of passes over the part.
    """

    share: float
    epochs: float

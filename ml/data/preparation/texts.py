"""Texts of sources, for consumers that do not encode them."""

from collections.abc import Iterator, Sequence

from ml.data.preparation.cutting import Position, tasks
from ml.data.preparation.holdout import hold_out_files
from ml.data.reading.options import Findings, Reading
from ml.data.reading.sources import Source
from ml.data.tokenizers.word_ends import WORD_END


def texts_of(sources: Sequence[Source], reading: Reading, findings: Findings) -> Iterator[str]:
    """Yields documents, and pieces of long ones that end at line ends.

    Args:
        sources: Files to read.
        reading: Options of reading.
        findings: Collects what is skipped or replaced.

    Raises:
        DataError: A source cannot be read.
    """
    held_out = hold_out_files(sources, 0.0)
    for task in tasks(sources, held_out, reading.field, WORD_END, Position()):
        for piece in task.pieces:
            for text in piece.texts(reading, findings):
                yield text.content

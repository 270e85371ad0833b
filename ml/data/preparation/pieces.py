"""Pieces of sources, small enough for a worker, and the texts in them."""

import abc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ml.data.reading.decoding import Decoded
from ml.data.reading.hold_out import hash_fraction
from ml.data.reading.options import Findings, Reading
from ml.data.reading.records import Block
from ml.data.reading.rows import decoded_text, texts_in

TRAIN, VALIDATION = 0, 1  # splits of the output


class Text(NamedTuple):
    """Document or part of one.

    Attributes:
        place: File, or file and line or row, for messages.
        content: The text.
        part: Split that it belongs to, `TRAIN` or `VALIDATION`.
        ends_document: True if the document ends here.
        is_row: True for a row of a file with many documents.
    """

    place: str
    content: str
    part: int
    ends_document: bool
    is_row: bool = False


class Piece(abc.ABC):
    """Part of a source."""

    @abc.abstractmethod
    def texts(self, reading: Reading, findings: Findings) -> Iterator[Text]:
        """Yields the texts in the piece.

        Args:
            reading: Options of reading.
            findings: Collects what is skipped or replaced.

        Raises:
            DataError: The piece is invalid, and the options do not skip or replace it.
        """


@dataclass(frozen=True)
class TextPiece(Piece):
    """Document, or the part of one that begins at byte `offset` of a file."""

    path: Path
    offset: int
    content: bytes = field(repr=False)
    part: int
    ends_document: bool

    def texts(self, reading: Reading, findings: Findings) -> Iterator[Text]:
        if not self.content:
            findings.add("empty_documents", f"{self.path} is empty")
            return
        text = decoded_text(self.content, str(self.path), self.offset, reading, findings)
        yield Text(str(self.path), text, self.part, self.ends_document)


@dataclass(frozen=True)
class RowsPiece(Piece):
    """Block of records, one document each."""

    block: Block[Decoded]

    def texts(self, reading: Reading, findings: Findings) -> Iterator[Text]:
        for place, text in texts_in(self.block, reading, findings):
            fraction = reading.validation_fraction
            held_out = fraction > 0.0 and hash_fraction(text.encode()) < fraction
            yield Text(place, text, VALIDATION if held_out else TRAIN, ends_document=True, is_row=True)

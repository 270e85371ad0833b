"""Pieces of sources, small enough to be handed to a process, and the texts in them."""

import abc
import collections
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from ml.data.errors import DataError
from ml.data.reading.decoding import SURROGATE, decode
from ml.data.reading.hold_out import hash_fraction
from ml.data.reading.json_lines import BrokenLine, OnError, parse_json
from ml.optional import optional_import

TRAIN, VALIDATION = 0, 1  # the parts of the output

# What is left out or replaced, and how it is told.
COUNTS = {
    "empty_documents": "empty documents left out",
    "skipped_rows": "broken rows left out",
    "invalid_utf8": "places that are not UTF-8 replaced by U+FFFD",
    "zero_characters": "zero characters replaced by U+FFFD",
}

_MOST_NOTES = 3  # of one kind and piece that are told; all are counted
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Reading:
    """How text is read.

    text_key: the key of the text in JSON lines, the column in Parquet. on_error: whether a row that is broken ends the
    preparation or is left out. invalid_utf8: whether what is no UTF-8 ends it or becomes U+FFFD. validation_fraction:
    of rows held out, by the hash of their text.
    """

    text_key: str = "text"
    on_error: OnError = "stop"
    invalid_utf8: Literal["replace", "error"] = "replace"
    validation_fraction: float = 0.0


@dataclass
class Findings:
    """What was left out or replaced: how often, and the first places of each kind in words."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, note: str, count: int = 1) -> None:
        self.counts[kind] += count
        told = self.notes.setdefault(kind, [])
        if len(told) < _MOST_NOTES:
            told.append(note)


class Text(NamedTuple):
    """A document or a part of one."""

    content: str
    part: int  # of the output
    ends_document: bool


class Piece(abc.ABC):
    """A stretch of a source."""

    @abc.abstractmethod
    def texts(self, reading: Reading, findings: Findings) -> Iterator[Text]:
        """The texts in it.

        Raises:
            DataError: Something is broken and is not to be left out.
        """


@dataclass(frozen=True)
class TextPiece(Piece):
    """A document, or a part of one that begins at byte `offset` of a file."""

    path: Path
    offset: int
    content: bytes = field(repr=False)
    part: int
    ends_document: bool

    def texts(self, reading: Reading, findings: Findings) -> Iterator[Text]:
        if self.offset == 0 and (place := self.content.find(0)) >= 0:
            raise DataError(f"{self.path} is not text: byte {place} is zero. Name the text files, or narrow --pattern")
        if not self.content:
            findings.add("empty_documents", f"{self.path} is empty")
            return
        text = _decoded(self.content, str(self.path), self.offset, reading, findings)
        yield Text(_without_zeros(text, str(self.path), findings), self.part, self.ends_document)


@dataclass(frozen=True)
class LinesPiece(Piece):
    """Whole lines of JSON, a document each."""

    path: Path
    first_line: int
    content: bytes = field(repr=False)

    def texts(self, reading: Reading, findings: Findings) -> Iterator[Text]:
        for number, line in enumerate(self.content.split(b"\n"), start=self.first_line):
            if line and not line.isspace():
                place = f"{self.path}:{number}"
                try:
                    text = _text_of(_decoded(line, place, 0, reading, findings), reading.text_key)
                except BrokenLine as error:
                    if reading.on_error == "stop":
                        raise DataError(f"{place}: {error}. --on_error=skip would leave it out and go on") from None
                    findings.add("skipped_rows", f"{place}: {error}")
                    continue
                yield from _row(text, place, reading, findings)


@dataclass(frozen=True)
class RowsPiece(Piece):
    """A row group of a Parquet file, a document each row; it is read only where it is encoded."""

    path: Path
    row_group: int
    first_row: int

    def texts(self, reading: Reading, findings: Findings) -> Iterator[Text]:
        pyarrow = optional_import("pyarrow", "parquet", str(self.path), DataError)
        parquet = optional_import("pyarrow.parquet", "parquet", str(self.path), DataError)
        try:
            number = self.first_row
            file = parquet.ParquetFile(self.path)
            for batch in file.iter_batches(_ROWS_AT_ONCE, [self.row_group], [reading.text_key], use_threads=False):
                column = batch.column(0)
                column = column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column
                for content in column.cast(pyarrow.large_binary()).to_pylist():  # which may be no UTF-8
                    place = f"{self.path}, row {number}"
                    yield from _row(_decoded(content or b"", place, 0, reading, findings), place, reading, findings)
                    number += 1
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{self.path}, row group {self.row_group}: {error}") from error


def _text_of(line: str, key: str) -> str:
    record = parse_json(line)
    if not isinstance(record, dict):
        raise BrokenLine("not a JSON object")
    if key not in record:
        raise BrokenLine(f"no {key!r} (--text_key) but {', '.join(map(repr, record)) or 'nothing'}")
    if not isinstance(record[key], str):
        raise BrokenLine(f"{key!r} is {json.dumps(record[key])[:40]} and not a string")
    return record[key]


def _row(text: str, place: str, reading: Reading, findings: Findings) -> Iterator[Text]:
    if not text:
        findings.add("empty_documents", f"{place} is empty")
        return
    text = _without_zeros(text, place, findings)
    if not text.isascii() and SURROGATE.search(text):  # half a character in JSON, which no UTF-8 can write
        text, count = SURROGATE.subn("\ufffd", text)
        if reading.invalid_utf8 == "error":
            raise DataError(f"{place} holds half a character; --invalid_utf8=replace would read on")
        findings.add("invalid_utf8", f"{place}: {count} halves of characters become U+FFFD", count)
    held_out = reading.validation_fraction > 0.0 and hash_fraction(text.encode()) < reading.validation_fraction
    yield Text(text, VALIDATION if held_out else TRAIN, ends_document=True)


def _decoded(content: bytes, place: str, offset: int, reading: Reading, findings: Findings) -> str:
    text, problem, count = decode(content, place, offset)
    if problem is not None and reading.invalid_utf8 == "error":
        raise DataError(f"{problem}; --invalid_utf8=replace would read on")
    if problem is not None:
        findings.add("invalid_utf8", f"{problem}; {count} invalid places here become U+FFFD", count)
    return text


def _without_zeros(text: str, place: str, findings: Findings) -> str:
    """Zero characters become U+FFFD: bytes as tokens end a document with one, so that none may stand in it."""
    if "\0" in text:  # sooner known than counted
        count = text.count("\0")
        findings.add("zero_characters", f"{place}: {count} zero characters become U+FFFD", count)
        return text.replace("\0", "\ufffd")
    return text

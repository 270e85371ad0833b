"""Pieces of sources, small enough for a worker, and the texts in them."""

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

TRAIN, VALIDATION = 0, 1  # splits of the output

# Kinds of findings, with their description in messages.
COUNTS = {
    "empty_documents": "empty documents skipped",
    "skipped_rows": "invalid rows skipped",
    "invalid_utf8": "invalid UTF-8 sequences replaced by U+FFFD",
    "zero_characters": "zero characters replaced by U+FFFD",
}

_MAX_NOTES = 3  # messages of a kind and piece; all occurrences are counted
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Reading:
    """Options of reading.

    Attributes:
        text_key: Key of the text in JSON lines, column in Parquet.
        on_error: Handling of an invalid row: "stop" ends the preparation, "skip" omits the row.
        invalid_utf8: Handling of bytes that are not UTF-8: "error" ends the preparation, "replace" substitutes U+FFFD.
        validation_fraction: Fraction of the rows that is held out, by the hash of their text.
    """

    text_key: str = "text"
    on_error: OnError = "stop"
    invalid_utf8: Literal["replace", "error"] = "replace"
    validation_fraction: float = 0.0


@dataclass
class Findings:
    """Text that was skipped or replaced.

    Attributes:
        counts: Number of occurrences of each kind.
        notes: Messages of the first occurrences of each kind.
    """

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, note: str, count: int = 1) -> None:
        self.counts[kind] += count
        notes = self.notes.setdefault(kind, [])
        if len(notes) < _MAX_NOTES:
            notes.append(note)


class Text(NamedTuple):
    """Document or part of one.

    Attributes:
        content: The text.
        part: Split that it belongs to, `TRAIN` or `VALIDATION`.
        ends_document: True if the document ends here.
    """

    content: str
    part: int
    ends_document: bool


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
        if self.offset == 0 and (place := self.content.find(0)) >= 0:
            raise DataError(f"{self.path} is not text: byte {place} is zero. List only text files, or narrow --pattern")
        if not self.content:
            findings.add("empty_documents", f"{self.path} is empty")
            return
        text = _decoded(self.content, str(self.path), self.offset, reading, findings)
        yield Text(_without_zeros(text, str(self.path), findings), self.part, self.ends_document)


@dataclass(frozen=True)
class LinesPiece(Piece):
    """Whole JSON lines, one document each."""

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
                        raise DataError(f"{place}: {error}. --on_error=skip skips such lines") from None
                    findings.add("skipped_rows", f"{place}: {error}")
                    continue
                yield from _row(text, place, reading, findings)


@dataclass(frozen=True)
class RowsPiece(Piece):
    """Row group of a Parquet file, one document per row; read by the worker."""

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
                for content in column.cast(pyarrow.large_binary()).to_pylist():  # it may not be UTF-8
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
        raise BrokenLine(f"no key {key!r} (--text_key), only {', '.join(map(repr, record)) or 'none'}")
    if not isinstance(record[key], str):
        raise BrokenLine(f"{key!r} is {json.dumps(record[key])[:40]}, not a string")
    return record[key]


def _row(text: str, place: str, reading: Reading, findings: Findings) -> Iterator[Text]:
    if not text:
        findings.add("empty_documents", f"{place} is empty")
        return
    text = _without_zeros(text, place, findings)
    if not text.isascii() and SURROGATE.search(text):  # a lone surrogate in JSON, which UTF-8 cannot encode
        text, count = SURROGATE.subn("\ufffd", text)
        if reading.invalid_utf8 == "error":
            raise DataError(f"{place} has a lone surrogate; --invalid_utf8=replace replaces it")
        findings.add("invalid_utf8", f"{place}: {count} lone surrogates replaced by U+FFFD", count)
    held_out = reading.validation_fraction > 0.0 and hash_fraction(text.encode()) < reading.validation_fraction
    yield Text(text, VALIDATION if held_out else TRAIN, ends_document=True)


def _decoded(content: bytes, place: str, offset: int, reading: Reading, findings: Findings) -> str:
    text, problem, count = decode(content, place, offset)
    if problem is not None and reading.invalid_utf8 == "error":
        raise DataError(f"{problem}; --invalid_utf8=replace replaces such bytes")
    if problem is not None:
        findings.add("invalid_utf8", f"{problem}; {count} invalid sequences here replaced by U+FFFD", count)
    return text


def _without_zeros(text: str, place: str, findings: Findings) -> str:
    """Replaces zero characters by U+FFFD, because the byte tokenizer ends documents with a zero byte."""
    if "\0" in text:  # a test is faster than counting
        count = text.count("\0")
        findings.add("zero_characters", f"{place}: {count} zero characters replaced by U+FFFD", count)
        return text.replace("\0", "\ufffd")
    return text

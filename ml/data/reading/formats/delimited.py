"""Tables of text: CSV and TSV with a header."""

import csv
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ml.data.errors import DataError
from ml.data.reading import records as sizes
from ml.data.reading.compression import opened
from ml.data.reading.decoding import Decoded, decode
from ml.data.reading.formats.json_values import BYTE_ORDER_MARK
from ml.data.reading.records import Block, BrokenRecord, Cursor, Field, Read, RecordFormat, Row


@dataclass(frozen=True)
class Delimited(RecordFormat):
    """CSV (RFC 4180) or TSV with a header, plain or compressed; quoted fields may contain line ends.

    Attributes:
        delimiter: Character between fields.
    """

    delimiter: str
    name = "CSV or TSV"

    def texts(self, path: Path, field: Field, start: Cursor) -> Iterator[Read[Decoded]]:
        for columns, lines, end, num_bytes in self._tables(path, start):
            if field.key not in columns:
                known = ", ".join(map(repr, columns))
                raise DataError(f"{path} has no column {field.key!r} ({field.option}); it has {known}")
            index = columns.index(field.key)
            cells = [(line, row if isinstance(row, str) else row[index].encode("latin-1")) for line, row in lines]
            yield Read(_Cells(path, cells), end, num_bytes)

    def records(self, path: Path, start: Cursor) -> Iterator[Read[Any]]:
        for columns, lines, end, num_bytes in self._tables(path, start):
            rows = [
                (line, row if isinstance(row, str) else [cell.encode("latin-1") for cell in row]) for line, row in lines
            ]
            yield Read(_Table(path, columns, rows), end, num_bytes)

    def _tables(self, path: Path, start: Cursor) -> Iterator["_Part"]:
        # A limit of the whole process; the default, 131,072 characters, is shorter than many documents.
        csv.field_size_limit(max(csv.field_size_limit(), sizes.LARGEST_RECORD))
        with opened(path) as content:
            lines = _Lines(content.stream)
            columns = self._header(path, lines)
            if start.offset:
                content.skip(start.offset - lines.num_bytes)
                lines.num_bytes, lines.number = start
            read, is_last = content.position(), False
            while not is_last:
                begin, rows = lines.num_bytes, []
                while lines.num_bytes - begin < sizes.BLOCK_BYTES and not is_last:
                    number = lines.number + 1
                    row = self._row(lines, len(columns))
                    is_last = row is None
                    rows += [(number, row)] if row else []
                num_bytes, read = content.position() - read, content.position()
                yield _Part(columns, rows, None if is_last else Cursor(lines.num_bytes, lines.number), num_bytes)

    def _header(self, path: Path, lines: "_Lines") -> list[str]:
        row = self._row(lines, None)
        if not isinstance(row, list):
            raise DataError(f"{path}:1: {row or 'there is no header'}")
        return [cell.encode("latin-1").decode("utf-8", errors="replace") for cell in row]

    def _row(self, lines: "_Lines", num_columns: int | None) -> list[str] | str | None:
        """Returns a row, in Latin-1; what is wrong with it; [] for a blank line; None at the end."""
        try:
            row = next(csv.reader(lines, delimiter=self.delimiter, strict=True), None)
        except csv.Error as error:
            return f"not a valid row: {error}"
        if row and num_columns is not None and len(row) != num_columns:
            return f"{len(row)} fields, but the header has {num_columns}"
        return row


class _Part(NamedTuple):
    columns: list[str]
    rows: list[tuple[int, list[str] | str]]
    end: Cursor | None
    num_bytes: int


class _Lines:
    """Lines of a stream, decoded as Latin-1, which represents all bytes.

    Attributes:
        num_bytes: Number of bytes of the lines that were returned.
        number: Number of the lines that were returned.
    """

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self.num_bytes = 0
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(sizes.LARGEST_RECORD)
        if not line:
            raise StopIteration
        self.num_bytes += len(line)
        self.number += 1
        if len(line) == sizes.LARGEST_RECORD and not line.endswith(b"\n"):
            while (rest := self._stream.readline(sizes.BLOCK_BYTES)) and not rest.endswith(b"\n"):
                self.num_bytes += len(rest)
            self.num_bytes += len(rest)
            raise csv.Error(f"line {self.number} has more than {sizes.LARGEST_RECORD:,} bytes")
        if self.number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        return line.decode("latin-1")


@dataclass(frozen=True)
class _Cells(Block[Decoded]):
    path: Path
    cells: list[tuple[int, bytes | str]] = field(repr=False)

    def rows(self) -> Iterator[Row[Decoded]]:
        for line, cell in self.cells:
            place = f"{self.path}:{line}"
            yield Row(place, functools.partial(_decoded, place, cell))


def _decoded(place: str, cell: bytes | str) -> Decoded:
    if isinstance(cell, str):
        raise BrokenRecord(cell)
    return decode(cell, place)


@dataclass(frozen=True)
class _Table(Block[Any]):
    path: Path
    columns: list[str]
    cells: list[tuple[int, list[bytes] | str]] = field(repr=False)

    def rows(self) -> Iterator[Row[Any]]:
        for line, cells in self.cells:
            yield Row(f"{self.path}:{line}", functools.partial(self._record, cells))

    def _record(self, cells: list[bytes] | str) -> dict[str, str]:
        if isinstance(cells, str):
            raise BrokenRecord(cells)
        try:
            return dict(zip(self.columns, (cell.decode("utf-8") for cell in cells), strict=True))
        except UnicodeDecodeError as error:
            raise BrokenRecord(f"byte {error.start} of a field is not UTF-8") from None

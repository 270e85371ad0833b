"""Columns of Arrow tables, which Parquet files and `datasets` folders contain."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ml.data.errors import DataError
from ml.data.reading import records as sizes
from ml.data.reading.decoding import Decoded, decode
from ml.data.reading.records import Block, Cursor, Field, Row
from ml.optional import optional_import

ROWS_AT_ONCE = 1024


def arrow_library(path: Path, module: str = "pyarrow") -> ModuleType:
    """Imports pyarrow, or a module of it.

    Raises:
        DataError: It is not installed.
    """
    return optional_import(module, "parquet", str(path), DataError)


def check_column(path: Path, schema: Any, field: Field) -> None:
    """Compares the schema of a table with the field of its text.

    Raises:
        DataError: There is no such column, or it is not text.
    """
    pyarrow = arrow_library(path)
    kinds = dict(_leaves(pyarrow, "", schema))
    if field.key not in kinds:
        raise DataError(
            f"{path} has no column {field.key!r} ({field.option}); it has {', '.join(map(repr, kinds)) or 'none'}"
        )
    kind = kinds[field.key]
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    texts = (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary(), pyarrow.large_binary())
    if kind not in texts:
        raise DataError(f"{path}: the column {field.key!r} ({field.option}) is {kind}, not text")


def _leaves(pyarrow: Any, prefix: str, fields: Any) -> Iterator[tuple[str, Any]]:
    for one in fields:
        if pyarrow.types.is_struct(one.type):
            yield from _leaves(pyarrow, f"{prefix}{one.name}.", one.type)
        else:
            yield f"{prefix}{one.name}", one.type


def text_blocks(path: Path, batch: Any, first: int, field: Field) -> Iterator[tuple[Block[Decoded], int]]:
    """Yields the texts of a batch in blocks of about `BLOCK_BYTES`, with the number of rows of each.

    Args:
        path: The file.
        batch: Record batch with the column.
        first: Number of the first row in the file, from 0.
        field: Field that holds the text.
    """
    pyarrow, compute = arrow_library(path), arrow_library(path, "pyarrow.compute")
    if field.key in batch.schema.names:
        column = batch.column(batch.schema.names.index(field.key))
    else:
        top, *keys = field.key.split(".")
        column = compute.struct_field(batch.column(top), keys)
    column = column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column
    for start, part in _parts(column):
        # as bytes, because a column may be invalid UTF-8
        yield _Cells(path, first + start, part.cast(pyarrow.large_binary()).to_pylist()), len(part)


def record_blocks(path: Path, batch: Any, first: int) -> Iterator[tuple[Block[Any], int]]:
    """Yields the rows of a batch in blocks of about `BLOCK_BYTES`, with the number of rows of each.

    Args:
        path: The file.
        batch: Record batch.
        first: Number of the first row in the file, from 0.
    """
    for start, part in _parts(batch):
        yield _Records(path, first + start, part.to_pylist()), len(part)


def rows_from(start: Cursor, row: int, batch: Any) -> tuple[int, Any]:
    """Returns the number of the first row of a batch that is to be read, and the batch from there on.

    Args:
        start: Position to start from.
        row: Number of the first row of the batch.
        batch: Record batch.
    """
    done = min(max(start.row - row, 0), len(batch))
    return row + done, batch.slice(done)


def _parts(rows: Any) -> Iterator[tuple[int, Any]]:
    count = rows_at_once(len(rows), rows.nbytes)
    for start in range(0, len(rows), count):
        yield start, rows.slice(start, count)


def rows_at_once(num_rows: int, num_bytes: int) -> int:
    """Returns the number of rows in a block, for this number of rows with this number of bytes."""
    return max(1, min(ROWS_AT_ONCE, num_rows * sizes.BLOCK_BYTES // max(num_bytes, 1)))


@dataclass(frozen=True)
class _Cells(Block[Decoded]):
    path: Path
    first: int
    cells: list[bytes | None] = field(repr=False)

    def rows(self) -> Iterator[Row[Decoded]]:
        for number, cell in enumerate(self.cells, start=self.first):
            place = f"{self.path}, row {number}"
            yield Row(place, functools.partial(decode, cell or b"", place))


@dataclass(frozen=True)
class _Records(Block[Any]):
    path: Path
    first: int
    records: list[Any] = field(repr=False)

    def rows(self) -> Iterator[Row[Any]]:
        for number, record in enumerate(self.records, start=self.first):
            yield Row(f"{self.path}, row {number}", functools.partial(_without_nulls, record))


def _without_nulls(value: Any) -> Any:
    """Returns a value without the keys that are null, because a table has every key in every row."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value

"""Parquet files, one record a row."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml.data.errors import DataError
from ml.data.reading.decoding import Decoded
from ml.data.reading.formats.columns import (
    arrow_library,
    check_column,
    record_blocks,
    rows_at_once,
    rows_from,
    text_blocks,
)
from ml.data.reading.records import Block, Cursor, Field, Read, RecordFormat

_BUFFERED = 2**18  # compressed bytes of a column that are read at once, whatever the size of its row groups

Blocks = Callable[[Any, int], Iterator[tuple[Block[Any], int]]]


class Parquet(RecordFormat):
    """Parquet file. Rows are numbered from 0."""

    name = "Parquet"

    def texts(self, path: Path, field: Field, start: Cursor) -> Iterator[Read[Decoded]]:
        with _opened(path) as file:
            check_column(path, file.schema_arrow, field)
            yield from _read(path, file, [field.key], start, lambda batch, row: text_blocks(path, batch, row, field))

    def records(self, path: Path, start: Cursor) -> Iterator[Read[Any]]:
        with _opened(path) as file:
            yield from _read(path, file, None, start, lambda batch, row: record_blocks(path, batch, row))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    pyarrow, parquet = arrow_library(path), arrow_library(path, "pyarrow.parquet")
    try:
        file = parquet.ParquetFile(path, buffer_size=_BUFFERED, pre_buffer=False)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} is not a Parquet file: {error}") from error
    with file:
        yield file


def _read(path: Path, file: Any, columns: list[str] | None, start: Cursor, blocks: Blocks) -> Iterator[Read[Any]]:
    facts, first = file.metadata, 0
    bytes_per_row = path.stat().st_size / max(facts.num_rows, 1)
    for group in range(facts.num_row_groups):
        num_rows = facts.row_group(group).num_rows
        if group >= start.offset and num_rows:
            for block, row, after in _group(path, file, columns, group, first, start, blocks):
                is_last = after == first + num_rows
                end = None if after == facts.num_rows else Cursor(group + is_last, after)
                yield Read(block, end, round(bytes_per_row * after) - round(bytes_per_row * row))
        first += num_rows


def _group(
    path: Path, file: Any, columns: list[str] | None, group: int, first: int, start: Cursor, blocks: Blocks
) -> Iterator[tuple[Block[Any], int, int]]:
    """Yields the blocks of a row group from `start` on, with the numbers of the rows at the start and end of each."""
    pyarrow = arrow_library(path)
    facts, row = file.metadata.row_group(group), first
    num_bytes = _uncompressed_bytes(facts, columns)
    try:
        batches = file.iter_batches(rows_at_once(facts.num_rows, num_bytes), [group], columns, use_threads=False)
        for whole in batches:
            row, batch = rows_from(start, row, whole)
            for block, count in blocks(batch, row):
                yield block, row, row + count
                row += count
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}, row group {group}: {error}") from error


def _uncompressed_bytes(group: Any, columns: list[str] | None) -> int:
    if columns is None:
        return group.total_byte_size
    parts = (group.column(index) for index in range(group.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema in columns)

"""Arrow IPC files, of which `datasets` folders consist."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml.data.errors import DataError
from ml.data.reading.compression import opened
from ml.data.reading.decoding import Decoded
from ml.data.reading.formats.columns import arrow_library, check_column, record_blocks, rows_from, text_blocks
from ml.data.reading.records import Block, Cursor, Field, Read, RecordFormat

FILE_START = b"ARROW1\x00\x00"
STREAM_START = b"\xff\xff\xff\xff"


class ArrowTable(RecordFormat):
    """Arrow IPC stream or file. Rows are numbered from 0."""

    name = "Arrow"

    def texts(self, path: Path, field: Field, start: Cursor) -> Iterator[Read[Decoded]]:
        with _batches(path) as (schema, batches, position):
            check_column(path, schema, field)
            yield from _read(batches, position, start, lambda batch, row: text_blocks(path, batch, row, field))

    def records(self, path: Path, start: Cursor) -> Iterator[Read[Any]]:
        with _batches(path) as (_, batches, position):
            yield from _read(batches, position, start, lambda batch, row: record_blocks(path, batch, row))


@contextlib.contextmanager
def _batches(path: Path) -> Iterator[tuple[Any, Iterator[Any], Callable[[], int]]]:
    """Yields the schema, the record batches, and a function that returns the bytes read so far."""
    pyarrow, ipc = arrow_library(path), arrow_library(path, "pyarrow.ipc")
    with opened(path) as content:
        try:
            start = content.stream.read(len(FILE_START))
            content.stream.seek(0)
            if start == FILE_START:
                file = ipc.open_file(content.stream)
                batches: Iterator[Any] = (file.get_batch(index) for index in range(file.num_record_batches))
                yield file.schema, batches, content.position
            else:
                stream = ipc.open_stream(content.stream)
                yield stream.schema, iter(stream), content.position
        except pyarrow.ArrowException as error:
            raise DataError(f"{path} is truncated or damaged: {error}") from error


def _read(
    batches: Iterator[Any],
    position: Callable[[], int],
    start: Cursor,
    blocks: Callable[[Any, int], Iterator[tuple[Block[Any], int]]],
) -> Iterator[Read[Any]]:
    """Yields the blocks from `start` on; the last one is known only once the file ends."""
    row, read, waiting = 0, position() if start.row else 0, None
    for index, whole in enumerate(batches):
        row, batch = rows_from(start, row, whole)
        for block, count in blocks(batch, row):
            row += count
            if waiting is not None:
                yield waiting
            num_bytes, read = position() - read, position()
            waiting = Read(block, Cursor(index, row), num_bytes)
    if waiting is not None:
        yield waiting._replace(end=None)

"""Records of files, parsed one by one."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ml.data.errors import DataError
from ml.data.reading.options import Findings, Reading
from ml.data.reading.records import Cursor
from ml.data.reading.rows import parsed_rows
from ml.data.reading.sources import Source

logger = logging.getLogger(__name__)

Record = TypeVar("Record")


def read_records(
    sources: Sequence[Source], parse: Callable[[Any], Record], reading: Reading
) -> Iterator[tuple[str, Record]]:
    """Yields (place, parsed record) for each row of the files, and logs the number of those that are skipped.

    Args:
        sources: Files of records; empty ones are allowed.
        parse: Converts a record, a dictionary; raises `BrokenRecord` for one that it cannot use.
        reading: Options of reading.

    Raises:
        DataError: A file cannot be read or is plain text, or a row is invalid; the message begins with its place.
    """
    findings = Findings()
    for source in sources:
        if source.format is not None:
            for read in source.format.records(source.path, Cursor()):
                yield from parsed_rows(read.block, parse, reading, findings)
        elif source.size:
            raise DataError(f"{source.path} is plain text; it must be JSON lines, a JSON array, CSV, Parquet or Arrow")
    findings.log(logger)

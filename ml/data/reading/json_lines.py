"""Records of a single file, parsed one by one."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ml.data.reading.formats.json_lines import JsonLines
from ml.data.reading.options import Findings, OnError, OptionNames, Reading
from ml.data.reading.records import BrokenRecord, Cursor
from ml.data.reading.rows import parsed_rows

logger = logging.getLogger(__name__)

Record = TypeVar("Record")
BrokenLine = BrokenRecord


def read_records(
    file: Path, parse: Callable[[Any], Record], on_error: OnError, option: str
) -> Iterator[tuple[str, Record]]:
    """Yields (`file:line`, parsed record) for each line that is not blank.

    Args:
        file: File of JSON lines, read one line at a time.
        parse: Converts the JSON value of a line; raises `BrokenLine` for one it cannot use.
        on_error: "stop" raises an error at an invalid line; "skip" omits it, and logs the number of them at the end.
        option: Option that `on_error` comes from, named in the error.

    Raises:
        DataError: The file cannot be read, or a line is invalid; the message begins with `file:line`.
    """
    reading = Reading(on_error=on_error, names=OptionNames(option.partition(".")[0]))
    findings = Findings()
    for read in JsonLines().records(file, Cursor()):
        yield from parsed_rows(read.block, parse, reading, findings)
    if findings.counts:
        kind, count = next(iter(findings.counts.items()))
        logger.warning("skipped %d invalid lines, the first: %s", count, findings.notes[kind][0])

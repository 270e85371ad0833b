"""JSON lines files, with the location of each line and handling of invalid ones."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from ml.data.errors import DataError
from ml.data.reading.files import opened

logger = logging.getLogger(__name__)

Record = TypeVar("Record")
OnError = Literal["stop", "skip"]


class BrokenLine(ValueError):
    """Invalid line. The message completes `file:line: ...`."""


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
    skipped: list[str] = []
    for place, line in numbered_lines(file):
        try:
            yield place, parse(parse_json(_decoded(line)))
        except BrokenLine as error:
            if on_error == "stop":
                raise DataError(f'{place}: {error}; {option} = "skip" skips such lines') from None
            skipped.append(f"{place}: {error}")
    if skipped:
        logger.warning("skipped %d invalid lines, the first: %s", len(skipped), skipped[0])


def numbered_lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yields (`file:line`, line) for each line of a file, plain or compressed, that is not blank.

    Args:
        file: The file.

    Raises:
        DataError: The file cannot be read.
    """
    with opened(file) as (stream, _):
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"{file}:{number}", line


def parse_json(text: str) -> Any:
    """Parses one JSON value.

    Raises:
        BrokenLine: The text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenLine(f"not JSON: {error}") from None


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BrokenLine(f"byte {error.start} is not UTF-8") from None

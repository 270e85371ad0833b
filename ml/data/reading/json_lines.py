"""Files of JSON lines: each line, its place for messages, and what becomes of broken ones."""

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
    """A line is not what it must be: the message goes on behind its place."""


def read_records(
    file: Path, parse: Callable[[Any], Record], on_error: OnError, option: str
) -> Iterator[tuple[str, Record]]:
    """What `parse` makes of the JSON of each line, behind its place; blank lines are passed over.

    Args:
        file: What is read, a line at a time.
        parse: Raises `BrokenLine` for JSON that it cannot use.
        on_error: Whether a broken line ends the reading or is left out; those are counted and said once.
        option: The parameter that `on_error` comes from, for the message.

    Raises:
        DataError: The file cannot be read, or a line is broken; `file:line` stands first.
    """
    skipped: list[str] = []
    for place, line in numbered_lines(file):
        try:
            yield place, parse(parse_json(_decoded(line)))
        except BrokenLine as error:
            if on_error == "stop":
                raise DataError(f'{place}: {error}; {option} = "skip" would read on') from None
            skipped.append(f"{place}: {error}")
    if skipped:
        logger.warning("%d broken lines are left out, the first of them %s", len(skipped), skipped[0])


def numbered_lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the lines of a file, plain or compressed, that are not blank, each after its place `file:number`.

    Raises:
        DataError: The file cannot be read.
    """
    with opened(file) as (stream, _):
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"{file}:{number}", line


def parse_json(text: str) -> Any:
    """Parses the JSON of a line.

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

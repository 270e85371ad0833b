"""Files of JSON lines: each line, its place for messages, and what becomes of broken ones."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from ml.data.errors import DataError

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
    for place, line in _lines(file):
        try:
            yield place, parse(_parsed(line))
        except BrokenLine as error:
            if on_error == "stop":
                raise DataError(f'{place}: {error}; {option} = "skip" would read on') from None
            skipped.append(f"{place}: {error}")
    if skipped:
        logger.warning("%d broken lines are left out, the first of them %s", len(skipped), skipped[0])


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}:{number}", line
    except OSError as error:
        raise DataError(f"cannot read {file} (from {Path.cwd()}): {error.strerror}") from error


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BrokenLine(f"byte {error.start} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise BrokenLine(f"not JSON: {error}") from None

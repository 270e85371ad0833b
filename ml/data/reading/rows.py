"""Texts and records of blocks, with the options of reading applied."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from ml.data.errors import DataError
from ml.data.reading.decoding import SURROGATE, Decoded, decode
from ml.data.reading.formats.json_values import BYTE_ORDER_MARK
from ml.data.reading.options import Findings, Reading
from ml.data.reading.records import Block, BrokenRecord, Loaded

Parsed = TypeVar("Parsed")


class PlacedText(NamedTuple):
    """Document of a row.

    Attributes:
        place: File, and line or row.
        text: The text, which is not empty.
    """

    place: str
    text: str


def texts_in(block: Block[Decoded], reading: Reading, findings: Findings) -> Iterator[PlacedText]:
    """Yields the documents of a block.

    Args:
        block: The block.
        reading: Options of reading.
        findings: Collects what is skipped or replaced.

    Raises:
        DataError: A row is invalid, and the options do not skip or replace it.
    """
    for place, decoded in parsed_rows(block, _same, reading, findings):
        text = _checked(decoded, reading, findings)
        if not text:
            findings.add("empty_documents", f"{place} is empty")
            continue
        text = _without_zeros(text, place, findings)
        if not text.isascii() and SURROGATE.search(text):  # in JSON, which UTF-8 cannot encode
            text, count = SURROGATE.subn("\ufffd", text)
            if reading.invalid_utf8 == "error":
                advice = reading.names.setting("invalid_utf8", "replace")
                raise DataError(f"{place} has a lone surrogate; {advice} replaces it")
            findings.add("invalid_utf8", f"{place}: {count} lone surrogates replaced by U+FFFD", count)
        yield PlacedText(place, text)


def parsed_rows(
    block: Block[Loaded], parse: Callable[[Loaded], Parsed], reading: Reading, findings: Findings
) -> Iterator[tuple[str, Parsed]]:
    """Yields (place, parsed record) for each row of a block.

    Args:
        block: The block.
        parse: Converts a record; raises `BrokenRecord` for one that it cannot use.
        reading: Options of reading.
        findings: Collects what is skipped.

    Raises:
        DataError: A row is invalid, and the options do not skip it.
    """
    for place, load in block.rows():
        try:
            parsed = parse(load())
        except BrokenRecord as error:
            if reading.on_error == "stop":
                skip = reading.names.setting("on_error", "skip")
                raise DataError(f"{place}: {error}; {skip} skips such rows") from None
            findings.add("skipped_rows", f"{place}: {error}")
            continue
        yield place, parsed


def decoded_text(content: bytes, place: str, offset: int, reading: Reading, findings: Findings) -> str:
    """Returns text of a file, without invalid UTF-8 and zero characters.

    Args:
        content: UTF-8.
        place: File, for messages.
        offset: Position of the content in the file.
        reading: Options of reading.
        findings: Collects what is replaced.

    Raises:
        DataError: There is invalid UTF-8, and the options do not replace it.
    """
    content = content if offset else content.removeprefix(BYTE_ORDER_MARK)
    text = _checked(decode(content, place, offset), reading, findings)
    return _without_zeros(text, place, findings)


def _checked(decoded: Decoded, reading: Reading, findings: Findings) -> str:
    """Returns decoded text, after counting or refusing its invalid bytes."""
    text, problem, count = decoded
    if problem is not None and reading.invalid_utf8 == "error":
        raise DataError(f"{problem}; {reading.names.setting('invalid_utf8', 'replace')} replaces such bytes")
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


def _same(value: Any) -> Any:
    return value

"""JSON values of records: whole ones, and the text in one of their fields."""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ml.data.reading.decoding import Decoded, decode
from ml.data.reading.records import Block, BrokenRecord, Field, Loaded, Row

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def parse_json(text: str) -> Any:
    """Parses one JSON value.

    Raises:
        BrokenRecord: The text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenRecord(f"not JSON: {error}") from None


def record_of(place: str, content: bytes) -> Any:
    """Parses a record.

    Raises:
        BrokenRecord: The content is not UTF-8, or not JSON.
    """
    try:
        return parse_json(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BrokenRecord(f"byte {error.start} is not UTF-8") from None


def text_of(place: str, content: bytes, field: Field) -> Decoded:
    """Returns the text in a record; invalid UTF-8 of the record is replaced.

    Raises:
        BrokenRecord: The content is not JSON, or has no text in this field.
    """
    decoded = decode(content, place)
    value = value_of(parse_json(decoded.text), field)
    if not isinstance(value, str):
        raise BrokenRecord(f"{field.key!r} is {json.dumps(value)[:40]}, not a string")
    return decoded._replace(text=value)


def value_of(record: Any, field: Field) -> Any:
    """Returns the value of a field, which may be in a nested object.

    Raises:
        BrokenRecord: There is no such field.
    """
    if not isinstance(record, dict):
        raise BrokenRecord("not a JSON object")
    if field.key in record:
        return record[field.key]
    value: Any = record
    for key in field.key.split("."):
        if not isinstance(value, dict) or key not in value:
            raise BrokenRecord(f"no key {field.key!r} ({field.option}), only {', '.join(map(repr, record)) or 'none'}")
        value = value[key]
    return value


@dataclass(frozen=True)
class JsonBlock(Block[Loaded]):
    """JSON values, one a line or element.

    Attributes:
        prefix: Place of a record without its number.
        first: Number of the first.
        contents: The values; blank ones are skipped.
        parse: Parses a value, given its place.
    """

    prefix: str
    first: int
    contents: list[bytes] = field(repr=False)
    parse: Callable[[str, bytes], Loaded]

    def rows(self) -> Iterator[Row[Loaded]]:
        for number, content in enumerate(self.contents, start=self.first):
            if content and not content.isspace():
                place = f"{self.prefix}{number}"
                yield Row(place, functools.partial(self.parse, place, content))

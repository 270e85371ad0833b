"""JSON arrays: a single array of objects, read one element at a time."""

import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml.data.errors import DataError
from ml.data.reading import records as sizes
from ml.data.reading.compression import Content, opened
from ml.data.reading.decoding import Decoded
from ml.data.reading.formats.json_values import BYTE_ORDER_MARK, JsonBlock, record_of, text_of
from ml.data.reading.records import Cursor, Field, Loaded, Read, RecordFormat

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(strict=False)


class JsonArray(RecordFormat):
    """Single JSON array, plain or compressed. Records are numbered from 1."""

    name = "JSON array"

    def texts(self, path: Path, field: Field, start: Cursor) -> Iterator[Read[Decoded]]:
        return _read(path, start, functools.partial(text_of, field=field))

    def records(self, path: Path, start: Cursor) -> Iterator[Read[Any]]:
        return _read(path, start, record_of)


def _read(path: Path, start: Cursor, parse: Callable[[str, bytes], Loaded]) -> Iterator[Read[Loaded]]:
    with opened(path) as content:
        content.skip(start.offset)
        read, is_last = content.position(), False
        elements = _Elements(path, content, start)
        while not is_last:
            first = elements.number + 1
            block, is_last = elements.following()
            num_bytes, read = content.position() - read, content.position()
            end = None if is_last else Cursor(elements.offset, elements.number)
            yield Read(JsonBlock(f"{path}, element ", first, block, parse), end, num_bytes)


class _Elements:
    """Elements of an array, as bytes.

    The content is decoded as Latin-1, in which each byte is one character, so that positions are those of the file.
    Invalid UTF-8 is handled where the elements are parsed.

    Attributes:
        number: Number of elements that were returned.
        offset: Bytes of the file before the next one.
    """

    def __init__(self, path: Path, content: Content, start: Cursor):
        self.number = start.row
        self.offset = start.offset
        self._path = path
        self._stream = content.stream
        self._held = ""
        self._is_whole = False
        if start.offset == 0:
            self._read_more()
            self._drop(len(BYTE_ORDER_MARK) if self._held.startswith(BYTE_ORDER_MARK.decode("latin-1")) else 0)
            self._drop(self._after_space(0))
            if self._held[:1] != "[":
                raise self._damaged(0, "there is no '['")
            self._drop(1)

    def following(self) -> tuple[list[bytes], bool]:
        """Returns the next elements, and True if no others follow."""
        elements: list[bytes] = []
        at = self._after_space(0)
        is_last = self.number == 0 and self._held[at : at + 1] == "]"
        while not is_last and at < sizes.BLOCK_BYTES:
            end, after = self._element_at(at)
            elements.append(self._held[at:end].encode("latin-1"))
            self.number += 1
            is_last = self._held[after] == "]"
            at = after + 1
        if is_last:
            self._check_end(at)
        self._drop(at)
        return elements, is_last

    def _element_at(self, at: int) -> tuple[int, int]:
        """Returns the end of the element at `at`, and the position of the comma or bracket after it."""
        while True:
            problem, begin = "the array does not end", self._after_space(at)
            try:
                _, end = _DECODER.raw_decode(self._held, begin)
                after = self._after_space(end)
                if after < len(self._held):
                    if self._held[after] not in ",]":
                        raise self._damaged(after, "',' or ']' is missing")
                    return end, after
            except json.JSONDecodeError as error:
                problem, at_error = error.msg, error.pos
            except RecursionError:
                raise self._damaged(at, "it is nested too deeply") from None
            else:
                at_error = len(self._held)
            if len(self._held) - at > sizes.LARGEST_RECORD:
                raise self._damaged(at, f"it has more than {sizes.LARGEST_RECORD:,} bytes, or {problem}")
            if not self._read_more():
                raise self._damaged(at_error, problem)

    def _after_space(self, at: int) -> int:
        while True:
            match = _SPACE.match(self._held, at)
            assert match is not None
            if match.end() < len(self._held) or not self._read_more():
                return match.end()

    def _read_more(self) -> bool:
        """Reads as much again as is held, so that a long element is not parsed too often."""
        block = self._stream.read(max(sizes.BLOCK_BYTES, len(self._held)))
        self._held += block.decode("latin-1")
        return bool(block)

    def _drop(self, count: int) -> None:
        self._held = self._held[count:]
        self.offset += count

    def _check_end(self, at: int) -> None:
        at = self._after_space(at + (self._held[at : at + 1] == "]"))
        if at < len(self._held):
            raise self._damaged(at, "other content follows the array")

    def _damaged(self, at: int, problem: str) -> DataError:
        place = f"element {self.number + 1}, byte {self.offset + at}"
        return DataError(f"{self._path} is not a valid JSON array: {place}: {problem}")

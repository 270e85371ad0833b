"""JSON lines: one JSON object a line."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml.data.reading import records as sizes
from ml.data.reading.compression import Content, opened
from ml.data.reading.decoding import Decoded
from ml.data.reading.formats.json_values import BYTE_ORDER_MARK, JsonBlock, record_of, text_of
from ml.data.reading.records import Block, BrokenBlock, Cursor, Field, Loaded, Read, RecordFormat


class JsonLines(RecordFormat):
    """JSON lines, plain or compressed."""

    name = "JSON lines"

    def texts(self, path: Path, field: Field, start: Cursor) -> Iterator[Read[Decoded]]:
        return _read(path, start, functools.partial(text_of, field=field))

    def records(self, path: Path, start: Cursor) -> Iterator[Read[Any]]:
        return _read(path, start, record_of)


def _read(path: Path, start: Cursor, parse: Callable[[str, bytes], Loaded]) -> Iterator[Read[Loaded]]:
    with opened(path) as content:
        content.skip(start.offset)
        offset, line, read = start.offset, start.row, content.position()
        for lines in _whole_lines(content):
            offset += lines.num_bytes
            num_bytes, read = content.position() - read, content.position()
            end = None if lines.is_last else Cursor(offset, line + lines.num_lines)
            yield Read(_block(path, line + 1, lines, parse), end, num_bytes)
            line += lines.num_lines


class _Lines(NamedTuple):
    """Whole lines, or a single one that is too long, whose content is None."""

    content: bytes | None
    num_bytes: int
    num_lines: int
    is_last: bool


def _block(path: Path, first: int, lines: _Lines, parse: Callable[[str, bytes], Loaded]) -> Block[Loaded]:
    if lines.content is None:
        problem = f"the line has {lines.num_bytes:,} bytes, more than {sizes.LARGEST_RECORD:,}"
        return BrokenBlock(f"{path}:{first}", problem)
    content = lines.content.removeprefix(BYTE_ORDER_MARK) if first == 1 else lines.content
    return JsonBlock(f"{path}:", first, content.split(b"\n"), parse)


def _whole_lines(content: Content) -> Iterator[_Lines]:
    """Yields the rest of the content in blocks that end at line ends; there is always at least one."""
    stream, held = content.stream, bytearray()
    while block := stream.read(sizes.BLOCK_BYTES):
        cut = block.rfind(b"\n") + 1
        if cut:
            lines = bytes(held) + block[:cut]
            yield _Lines(lines, len(lines), lines.count(b"\n"), False)
            held = bytearray(block[cut:])
            continue
        held += block
        if len(held) > sizes.LARGEST_RECORD:
            num_bytes, held = len(held), bytearray()
            while (block := stream.read(sizes.BLOCK_BYTES)) and b"\n" not in block:
                num_bytes += len(block)
            cut = block.find(b"\n") + 1
            yield _Lines(None, num_bytes + cut, 1, False)
            held = bytearray(block[cut:])
    yield _Lines(bytes(held), len(held), 1, True)

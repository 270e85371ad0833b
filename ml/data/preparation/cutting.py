"""Splits sources into tasks, in a fixed order that does not depend on the number of workers."""

import collections
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ml.data.errors import DataError
from ml.data.preparation.holdout import HeldOut
from ml.data.preparation.pieces import VALIDATION, Piece, RowsPiece, TextPiece
from ml.data.reading.compression import Content
from ml.data.reading.records import Cursor, Field, RecordFormat
from ml.data.reading.sources import Source, opened_source

_BYTES_AT_ONCE = 2**17
_FIRST_SEARCHED = 2**6
_LONGEST_MATCH = 8  # bytes of a cut and what it looks ahead for
_LARGEST_WORD = 2**24
_LARGEST_WHOLE = 2**28

FindCut = Callable[[bytearray, int], int]


class Position(NamedTuple):
    """Position in the sources.

    Attributes:
        source: Index of the current source.
        offset: Bytes of it that are done, or what else `Cursor` counts.
        row: Lines or rows of it that are done.
    """

    source: int = 0
    offset: int = 0
    row: int = 0


@dataclass(frozen=True)
class Task:
    """Pieces that are encoded together.

    Attributes:
        pieces: The pieces.
        end: Position after them, from which to resume.
        num_bytes: Bytes of the source files that they take.
    """

    pieces: list[Piece] = field(repr=False)
    end: Position
    num_bytes: int


class _Cut(NamedTuple):
    piece: Piece
    end: Position
    num_bytes: int


def tasks(
    sources: Sequence[Source], held_out: HeldOut, field: Field, safe_cut: re.Pattern[bytes] | None, start: Position
) -> Iterator[Task]:
    """Yields the remaining work from `start` on, in tasks of about 64 KiB or more.

    Args:
        sources: All sources, including those that are done.
        held_out: Held-out split of the text files.
        field: Field of the records that holds the text.
        safe_cut: Pattern after whose matches long documents may be cut; None encodes them whole.
        start: Position to resume from, the `end` of a task.

    Raises:
        DataError: A source cannot be read.
    """
    pieces: list[Piece] = []
    num_bytes = 0
    for cut in _cuts(sources, held_out, field, safe_cut, start):
        pieces.append(cut.piece)
        num_bytes += cut.num_bytes
        if num_bytes >= _BYTES_AT_ONCE // 2:
            yield Task(pieces, cut.end, num_bytes)
            pieces, num_bytes = [], 0
    if pieces:
        yield Task(pieces, Position(len(sources)), num_bytes)


def _cuts(
    sources: Sequence[Source], held_out: HeldOut, field: Field, safe_cut: re.Pattern[bytes] | None, start: Position
) -> Iterator[_Cut]:
    for index in range(start.source, len(sources)):
        source = sources[index]
        begin = start if index == start.source else Position(index)
        if source.format is not None:
            yield from _records(source, source.format, field, begin)
            continue
        with opened_source(source) as content:
            content.skip(begin.offset)  # decompresses a compressed stream from its start
            stretches = _stretches(held_out.parts[index], held_out.cuts.get(index))
            yield from _text(source, content, begin, stretches, _finder_of_last(safe_cut))


class _Stretch(NamedTuple):
    """Document in a text file, up to byte `stop`; None is the end of the file."""

    stop: int | None
    part: int


def _stretches(part: int, cut: int | None) -> list[_Stretch]:
    return [_Stretch(None, part)] if cut is None else [_Stretch(cut, part), _Stretch(None, VALIDATION)]


def _text(
    source: Source, content: Content, begin: Position, stretches: list[_Stretch], find_cut: FindCut | None
) -> Iterator[_Cut]:
    offset, read = begin.offset, content.position()
    for stop, part in stretches:
        if stop is not None and stop <= offset:
            continue
        for block, is_last in _blocks(content.stream, None if stop is None else stop - offset, find_cut):
            _check_length(source.path, offset, block, find_cut)
            piece = TextPiece(source.path, offset, block, part, is_last)
            offset += len(block)
            end = Position(begin.source, offset) if stop is not None or not is_last else Position(begin.source + 1)
            num_bytes, read = content.position() - read, content.position()
            yield _Cut(piece, end, num_bytes)


def _check_length(path: Path, offset: int, block: bytes, find_cut: FindCut | None) -> None:
    """Checks that a block of text can be encoded in bounded memory.

    Raises:
        DataError: It is too long.
    """
    advice = "split the file, or store one document a row"
    if find_cut is None and len(block) > _LARGEST_WHOLE:
        raise DataError(f"{path} has more than {_LARGEST_WHOLE:,} bytes, and this tokenizer cannot cut text: {advice}")
    if find_cut is not None and len(block) > _LARGEST_WORD:
        raise DataError(f"{path}: no word ends in {_LARGEST_WORD:,} bytes from byte {offset} on: {advice}")


def _records(source: Source, records: RecordFormat, field: Field, begin: Position) -> Iterator[_Cut]:
    source.check_unchanged()
    for read in records.texts(source.path, field, Cursor(begin.offset, begin.row)):
        end = Position(begin.source + 1) if read.end is None else Position(begin.source, *read.end)
        yield _Cut(RowsPiece(read.block), end, read.num_bytes)


def _blocks(stream: BinaryIO, limit: int | None, find_cut: FindCut | None) -> Iterator[tuple[bytes, bool]]:
    """Yields the stream, or `limit` bytes of it, in blocks of about 128 KiB or more, with True for the last one.

    Blocks end where `find_cut(block, start)` finds a cut; it returns 0 if there is none after `start`. None yields a
    single block. There is always at least one. A block that is too long ends one byte after the limit.
    """
    if find_cut is None:
        yield stream.read(_LARGEST_WHOLE + 1 if limit is None else min(limit, _LARGEST_WHOLE + 1)), True
        return
    remaining = float("inf") if limit is None else limit

    def following() -> bytes:
        nonlocal remaining
        block = stream.read(int(min(remaining, _BYTES_AT_ONCE)))
        remaining -= len(block)
        return block

    held, searched = bytearray(following()), 0
    while ahead := following():
        if cut := find_cut(held, searched):
            yield bytes(held[:cut]), False
            del held[:cut]
        elif len(held) > _LARGEST_WORD:
            break
        searched = max(len(held) - _LONGEST_MATCH, 0)
        held += ahead
    yield bytes(held), True


def _finder_of_last(pattern: re.Pattern[bytes] | None) -> FindCut | None:
    """Returns a function that finds the last match of the pattern, searching the end of the block first."""
    if pattern is None:
        return None

    def after_last(block: bytearray, start: int) -> int:
        size = _FIRST_SEARCHED
        while True:
            first = max(start, len(block) - size)
            last = collections.deque(pattern.finditer(block, first), maxlen=1)
            if last or first == start:
                return last[0].end() if last else 0
            size *= 8

    return after_last

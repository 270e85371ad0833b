"""Text for terminals: durations, tables, and what a stream can show."""

import os
import shutil
from collections.abc import Sequence
from typing import TextIO

_FALLBACK_WIDTH = 80
_FULL_AND_EMPTY = "━─"


def duration(seconds: float) -> str:
    """Returns a duration such as "48s", "3m 05s", "2h 07m" or "4d 11h"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}h"
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def table(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Returns the rows as lines with aligned columns.

    Args:
        rows: Cells, the same number in every row.
        right: For each column, whether it is aligned to the right, as numbers are.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]


def width_of(stream: TextIO) -> int:
    """The columns of a terminal; some do not know theirs and say 0."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or _FALLBACK_WIDTH
    except OSError:
        return shutil.get_terminal_size().columns


def bar_characters(stream: TextIO) -> tuple[str, str]:
    """The full and the empty character of a progress bar: lines where the encoding of the stream has them."""
    try:
        _FULL_AND_EMPTY.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return "#", "-"
    return _FULL_AND_EMPTY[0], _FULL_AND_EMPTY[1]


def bar(length: int, part: float, characters: tuple[str, str]) -> str:
    """A progress bar.

    Args:
        length: In characters.
        part: The part that is full, 0 to 1.
        characters: From `bar_characters`.
    """
    full = int(length * part)
    return characters[0] * full + characters[1] * (length - full)


def redraw(stream: TextIO, line: str) -> None:
    """Replaces the line of the cursor, cut to the width of the terminal, whose last column stays free.

    Writing to the last column makes some terminals begin a new line.
    """
    stream.write(f"\r{line[: width_of(stream) - 1]}\x1b[K")
    stream.flush()


def write_above(stream: TextIO, message: str) -> None:
    """Replaces the line of the cursor by a message that stays, and begins a new line."""
    stream.write(f"\r\x1b[K{message}\n")
    stream.flush()

"""Progress display of `prepare`."""

import math
import time
from collections.abc import Callable
from typing import TextIO

from ml import terminal

_SECONDS_BETWEEN_DRAWINGS = 0.1
_SECONDS_BETWEEN_LINES = 10.0
_BAR = 24


def display_on(stream: TextIO) -> "TerminalDisplay | PlainDisplay":
    """Returns a display that redraws one line on a terminal, or prints a line every ten seconds elsewhere."""
    return TerminalDisplay(stream) if stream.isatty() else PlainDisplay(stream)


class PlainDisplay:
    """Prints a line every ten seconds, for log files and pipes."""

    _every = _SECONDS_BETWEEN_LINES

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        self._stream = stream
        self._clock = clock
        self._total = self._start_bytes = 0
        self._start_time = self._last_shown = -math.inf

    def start(self, num_bytes: int, total_bytes: int) -> None:
        self._start_bytes, self._total = num_bytes, total_bytes
        self._start_time = self._last_shown = self._clock()
        if num_bytes:
            self.say(f"resuming at {num_bytes / max(1, total_bytes):.0%} of {total_bytes:,} bytes")

    def advance(self, num_bytes: int, num_tokens: int) -> None:
        now = self._clock()
        if now - self._last_shown >= self._every:
            self._last_shown = now
            self._show(num_bytes, num_tokens, (num_bytes - self._start_bytes) / max(now - self._start_time, 1e-9))

    def say(self, message: str) -> None:
        print(message, file=self._stream, flush=True)

    def close(self) -> None:
        pass

    def _show(self, num_bytes: int, num_tokens: int, rate: float) -> None:
        self.say(self._fields(num_bytes, num_tokens, rate))

    def _fields(self, num_bytes: int, num_tokens: int, rate: float) -> str:
        part = min(num_bytes / max(1, self._total), 1.0)
        left = max(self._total - num_bytes, 0) / max(rate, 1e-9)
        return f"{part:4.0%}  {num_tokens:,} tokens  {rate / 1e6:.1f} MB/s  {terminal.duration(left)} left"


class TerminalDisplay(PlainDisplay):
    """Redraws one line with a bar; messages stay above it."""

    _every = _SECONDS_BETWEEN_DRAWINGS

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        super().__init__(stream, clock)
        self._line = ""
        self._bar_characters = terminal.bar_characters(stream)

    def say(self, message: str) -> None:
        terminal.write_above(self._stream, message)
        terminal.redraw(self._stream, self._line)

    def close(self) -> None:
        self._line = ""
        terminal.redraw(self._stream, "")

    def _show(self, num_bytes: int, num_tokens: int, rate: float) -> None:
        bar = terminal.bar(_BAR, min(num_bytes / max(1, self._total), 1.0), self._bar_characters)
        self._line = f"{bar}  {self._fields(num_bytes, num_tokens, rate)}"
        terminal.redraw(self._stream, self._line)

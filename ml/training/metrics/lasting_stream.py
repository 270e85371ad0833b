"""A stream that training outlives."""

import contextlib
import os
import sys
from typing import Any, TextIO, cast


def lasting(stream: TextIO) -> TextIO:
    """Returns a stream that is dropped, with one line on standard error, once it cannot be written.

    A terminal is gone after SIGHUP, a pipe when its reader ends, and a file takes no more when the disk is full.
    """
    return cast(TextIO, _LastingStream(stream))


class _LastingStream:
    def __init__(self, stream: TextIO):
        self._stream = stream
        self._is_lost = False

    def write(self, text: str) -> int:
        self._unless_lost(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._unless_lost(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _unless_lost(self, use) -> None:
        if self._is_lost:
            return
        try:
            use()
        except OSError as error:
            self._is_lost = True
            self._drop()
            with contextlib.suppress(OSError):
                message = f"progress is no longer displayed, and training continues: {error.strerror}"
                print(message, file=sys.stderr, flush=True)

    def _drop(self) -> None:
        """Points the file at nothing, because Python flushes what is left in its buffer at the end."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

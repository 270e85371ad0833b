"""Decompression of Zstandard on Python before 3.14."""

import io
from typing import Any, BinaryIO

from ml.data.errors import DataError
from ml.optional import optional_import

_COMPRESSED_AT_ONCE = 2**8  # at most 8 MiB of text: 4 bytes can be a block of 128 KiB
_BUFFERED = 2**17


class ZstandardStream(io.RawIOBase):
    """Decompressed content of a file, in bounded memory.

    Args:
        file: Compressed content: one or several frames.
    """

    def __init__(self, file: BinaryIO):
        name = getattr(file, "name", "a .zst file")
        library = optional_import("zstandard", "zstandard", f"{name}, compressed by Zstandard,", DataError)
        self._file = file
        self._new_frame = library.ZstdDecompressor(max_window_size=2**27).decompressobj
        self._error = library.ZstdError
        self._frame: Any = None
        self._unused = b""
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer`, or the part of it that is decompressed; returns 0 only at the end.

        Raises:
            EOFError: The last frame is truncated.
            DataError: The content is not Zstandard.
        """
        while not self._held:
            if not self._decompress():
                return 0
        count = min(len(buffer), len(self._held))
        buffer[:count] = self._held[:count]
        self._held = self._held[count:]
        return count

    def _decompress(self) -> bool:
        compressed = self._unused or self._file.read(_COMPRESSED_AT_ONCE)
        self._unused = b""
        if not compressed:
            if self._frame is not None:
                raise EOFError("it ends in the middle of a frame")
            return False
        if self._frame is None:
            self._frame = self._new_frame()
        try:
            self._held = memoryview(self._frame.decompress(compressed))
        except self._error as error:
            raise EOFError(str(error)) from None
        if self._frame.eof:
            self._unused, self._frame = self._frame.unused_data, None
        return True


def open_zstandard(file: BinaryIO) -> BinaryIO:
    """Returns the decompressed content of a file."""
    return io.BufferedReader(ZstandardStream(file), _BUFFERED)

"""Decompression of files, recognized by their first bytes."""

import bz2
import gzip
import importlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ml.data.errors import DataError
from ml.data.reading.zstandard_stream import open_zstandard

_SKIPPED_AT_ONCE = 2**20


class Content(NamedTuple):
    """Open file.

    Attributes:
        stream: Decompressed content.
        position: Returns the number of bytes read from the file itself, before decompression.
    """

    stream: BinaryIO
    position: Callable[[], int]

    def skip(self, num_bytes: int) -> None:
        """Moves forward in the decompressed content, which decompresses what is skipped."""
        if self.stream.seekable():
            self.stream.seek(num_bytes, 1)
            return
        while num_bytes > 0 and (skipped := len(self.stream.read(min(num_bytes, _SKIPPED_AT_ONCE)))):
            num_bytes -= skipped


class Compression(NamedTuple):
    """Compression format.

    Attributes:
        suffix: Suffix of file names.
        starts: Bytes that a compressed file begins with, one of them.
        open: Returns the decompressed content of an open file.
    """

    suffix: str
    starts: tuple[bytes, ...]
    open: Callable[[BinaryIO], Any]


def _open_zstandard(file: BinaryIO) -> Any:
    try:
        return importlib.import_module("compression.zstd").open(file)
    except ImportError:
        return open_zstandard(file)


# A frame, or one of 16 kinds of frames that are skipped.
_ZSTANDARD_STARTS = (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + kind]) + b"\x2a\x4d\x18" for kind in range(16)))
COMPRESSIONS = (
    Compression(".gz", (b"\x1f\x8b",), gzip.open),
    Compression(".bz2", (b"BZh",), bz2.open),
    Compression(".xz", (b"\xfd7zXZ\x00",), lzma.open),
    Compression(".zst", _ZSTANDARD_STARTS, _open_zstandard),
)
_LONGEST_START = 6


@contextmanager
def opened(path: Path) -> Iterator[Content]:
    """Opens a file for reading, decompressed if its first bytes are those of gzip, bzip2, xz or Zstandard.

    Args:
        path: The file.

    Raises:
        DataError: The file cannot be read, also inside the block, or its compressed content is truncated or damaged.
    """
    try:
        with path.open("rb") as file:
            compression = _compression_of(file)
            yield Content(file if compression is None else compression.open(file), file.tell)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or damaged: {error}") from error
    except OSError as error:
        if error.errno is None:  # of bz2
            raise DataError(f"{path} is truncated or damaged: {error}") from error
        raise DataError(f"cannot read {path} (from {Path.cwd()}): {error.strerror or error}") from error


def compression_of(path: Path) -> Compression | None:
    """Returns the compression of a file by its first bytes; None if it is not compressed."""
    with path.open("rb") as file:
        return _compression_of(file)


def compression_named(name: str) -> Compression | None:
    """Returns the compression that the last suffix of a file name promises; None if it is another suffix."""
    return next((one for one in COMPRESSIONS if name.lower().endswith(one.suffix)), None)


def _compression_of(file: BinaryIO) -> Compression | None:
    start = file.read(_LONGEST_START)
    file.seek(0)
    return next((one for one in COMPRESSIONS if start.startswith(one.starts)), None)

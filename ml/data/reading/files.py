"""Discovery and decompression of files."""

import bz2
import gzip
import importlib
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ml.data.errors import DataError, MissingData


class FoundFile(NamedTuple):
    """File that was found.

    Attributes:
        name: Path relative to the folder that was searched; equal on every machine.
        path: Path of the file.
    """

    name: str
    path: Path


def find_files(
    paths: Sequence[str | Path], pattern: str, *, paths_option: str, pattern_option: str
) -> Iterator[FoundFile]:
    """Yields the files at `paths`; folders are searched recursively and sorted by name.

    Args:
        paths: Files and folders. Hidden files and folders below a folder are skipped.
        pattern: Glob that file names in folders must match, such as "*.txt".
        paths_option: Option that `paths` comes from, named in errors.
        pattern_option: Option that `pattern` comes from, named in errors.

    Raises:
        DataError: A path does not exist, or no file in a folder matches.
    """
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob(pattern) if file.is_file())
            shown = [FoundFile(*one) for one in found if not any(part[0] == "." for part in one[0].split("/"))]
            if not shown:
                raise MissingData(f"no file in {path} matches {pattern!r} ({pattern_option})")
            yield from shown
        elif path.exists():
            yield FoundFile(path.name, path)
        else:
            raise MissingData(f"no such file or folder: {path} ({paths_option}, from {Path.cwd()})")


def is_compressed(path: Path) -> bool:
    """Returns True for a suffix of a compression format that `opened` reads."""
    return path.suffix in _DECOMPRESSORS


def suffix_of_content(path: Path) -> str:
    """Returns the suffix without that of the compression: ".jsonl" for "a.jsonl.gz"."""
    return next((suffix for suffix in reversed(path.suffixes) if suffix not in _DECOMPRESSORS), "")


class Content(NamedTuple):
    """Open file.

    Attributes:
        stream: Decompressed content.
        position: Returns the number of bytes read from the file itself, before decompression.
    """

    stream: BinaryIO
    position: Callable[[], int]


@contextmanager
def opened(path: Path) -> Iterator[Content]:
    """Opens a file for reading, decompressed if its suffix is .gz, .bz2, .xz or .zst.

    Args:
        path: The file.

    Raises:
        DataError: The file cannot be read, also inside the block, or its compressed content is truncated or damaged.
    """
    try:
        with path.open("rb") as file:
            decompressed = _DECOMPRESSORS.get(path.suffix, lambda file: file)(file)
            yield Content(decompressed, file.tell)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or damaged: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path} (from {Path.cwd()}): {error.strerror or error}") from error


def _open_zstandard(file: BinaryIO) -> Any:
    try:
        return importlib.import_module("compression.zstd").open(file)
    except ImportError:
        raise DataError(f"{file.name}: reading .zst needs Python 3.14 or newer; compress the file as .gz") from None


_DECOMPRESSORS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}

"""Files of text, plain or compressed."""

import bz2
import gzip
import importlib
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ml.data.errors import DataError


class FoundFile(NamedTuple):
    """A file and its name, relative to the folder that was given and the same on every machine."""

    name: str
    path: Path


def find_files(
    paths: Sequence[str | Path], pattern: str, *, paths_option: str, pattern_option: str
) -> Iterator[FoundFile]:
    """Yields the files at `paths`, and those that match in and below folders, sorted by name within each path.

    Args:
        paths: Files and folders; hidden files below a folder are skipped.
        pattern: Of the names of files in folders, such as "*.txt".
        paths_option: Where `paths` comes from, for messages.
        pattern_option: Where `pattern` comes from, for messages.

    Raises:
        DataError: A path does not exist, or no file in a folder matches.
    """
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob(pattern) if file.is_file())
            shown = [FoundFile(*one) for one in found if not any(part[0] == "." for part in one[0].split("/"))]
            if not shown:
                raise DataError(f"no file in {path} matches {pattern!r} ({pattern_option})")
            yield from shown
        elif path.exists():
            yield FoundFile(path.name, path)
        else:
            raise DataError(f"no such file or folder: {path} ({paths_option}, from {Path.cwd()})")


def is_compressed(path: Path) -> bool:
    """Whether the suffix is that of a compression which `opened` reads."""
    return path.suffix in _DECOMPRESSORS


def suffix_of_content(path: Path) -> str:
    """The suffix without that of a compression: ".jsonl" of "a.jsonl.gz"."""
    return next((suffix for suffix in reversed(path.suffixes) if suffix not in _DECOMPRESSORS), "")


class Content(NamedTuple):
    """The decompressed content of a file, and the number of bytes of the file itself that were read."""

    stream: BinaryIO
    position: Callable[[], int]


@contextmanager
def opened(path: Path) -> Iterator[Content]:
    """Opens a file, decompressed where its suffix is .gz, .bz2, .xz or .zst.

    Raises:
        DataError: The file cannot be read, in the block too, or its compressed content is damaged.
    """
    try:
        with path.open("rb") as file:
            decompressed = _DECOMPRESSORS.get(path.suffix, lambda file: file)(file)
            yield Content(decompressed, file.tell)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is cut or damaged: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {path} (from {Path.cwd()}): {error.strerror or error}") from error


def _open_zstandard(file: BinaryIO) -> Any:
    try:
        return importlib.import_module("compression.zstd").open(file)
    except ImportError:
        raise DataError(f"{file.name}: Python reads .zst from 3.14 on. Decompress it, or compress it as .gz") from None


_DECOMPRESSORS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}

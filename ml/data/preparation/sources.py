"""The files that a preparation reads."""

import bz2
import gzip
import importlib
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from ml.data.errors import DataError

Kind = Literal["text", "lines", "rows"]

_KINDS: dict[str, Kind] = {".jsonl": "lines", ".ndjson": "lines", ".parquet": "rows"}


class Source(NamedTuple):
    """A file, and what tells whether it is still the same.

    name: relative to the folder that was named, the same on every machine. kind: how documents lie in it: the whole
    file is one, or each of its JSON lines, or each of its Parquet rows.
    """

    path: Path
    name: str
    kind: Kind
    size: int
    modified: int  # nanoseconds

    @property
    def is_compressed(self) -> bool:
        return self.path.suffix in _DECOMPRESSORS

    def check_unchanged(self) -> None:
        """Compares size and time of modification with the file.

        Raises:
            DataError: It is another one, or gone.
        """
        size, modified = _facts(self.path)
        if (size, modified) != (self.size, self.modified):
            raise DataError(
                f"{self.path} has changed while it was prepared ({self.size:,} bytes then, {size:,} now): remove the "
                "output folder and begin anew"
            )


def find_sources(paths: Sequence[str | Path], pattern: str = "*") -> list[Source]:
    """The files at `paths`, and below those that are folders the ones that match, hidden ones left out; sorted by name.

    Raises:
        DataError: A path does not exist, or a folder has nothing that matches.
    """
    sources: list[Source] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob(pattern) if file.is_file())
            shown = [(name, file) for name, file in found if not any(part[0] == "." for part in name.split("/"))]
            if not shown:
                raise DataError(f"no file in {path} matches {pattern!r} (--pattern)")
            sources += [_source(file, name) for name, file in shown]
        elif path.exists():
            sources.append(_source(path, path.name))
        else:
            raise DataError(f"no such file or folder: {path} (from {Path.cwd()})")
    return sources


def _source(path: Path, name: str) -> Source:
    suffixes = [suffix for suffix in path.suffixes if suffix not in _DECOMPRESSORS]
    kind = _KINDS.get(suffixes[-1], "text") if suffixes else "text"
    return Source(path, name, kind, *_facts(path))


def _facts(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return facts.st_size, facts.st_mtime_ns


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


class Content(NamedTuple):
    """What a source holds, and how far into the file, compressed or not, it has been read."""

    stream: BinaryIO
    position: Callable[[], int]


@contextmanager
def opened(source: Source) -> Iterator[Content]:
    """The content of a source of text or lines, decompressed.

    Raises:
        DataError: It cannot be read, has changed since it was found, or is compressed and broken.
    """
    source.check_unchanged()
    try:
        with source.path.open("rb") as file:
            decompressed = _DECOMPRESSORS.get(source.path.suffix, lambda file: file)(file)
            yield Content(decompressed, file.tell)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{source.path} is cut or damaged: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {source.path}: {error.strerror or error}") from error

"""The files that a preparation reads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from ml.data.errors import DataError
from ml.data.reading.files import Content, find_files, is_compressed, opened, suffix_of_content

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
        return is_compressed(self.path)

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
    """The files at `paths`, and those that match in and below folders, sorted by name within each path.

    Raises:
        DataError: A path does not exist, or no file in a folder matches.
    """
    found = find_files(paths, pattern, paths_option="sources", pattern_option="--pattern")
    return [_source(file.path, file.name) for file in found]


def _source(path: Path, name: str) -> Source:
    return Source(path, name, _KINDS.get(suffix_of_content(path), "text"), *_facts(path))


def _facts(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return facts.st_size, facts.st_mtime_ns


@contextmanager
def opened_source(source: Source) -> Iterator[Content]:
    """The content of a source of text or lines, decompressed.

    Raises:
        DataError: It cannot be read, has changed since it was found, or is compressed and broken.
    """
    source.check_unchanged()
    with opened(source.path) as content:
        yield content

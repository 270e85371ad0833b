"""Source files of a preparation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from ml.data.errors import DataError
from ml.data.reading.files import Content, find_files, is_compressed, opened, suffix_of_content

Kind = Literal["text", "lines", "rows"]

_KINDS: dict[str, Kind] = {".jsonl": "lines", ".ndjson": "lines", ".parquet": "rows"}


class Source(NamedTuple):
    """Source file, with its size and modification time to detect changes.

    Attributes:
        path: Path of the file.
        name: Path relative to the folder that was searched; equal on every machine.
        kind: Documents in the file: "text" is a single one, "lines" one per JSON line, "rows" one per Parquet row.
        size: Size in bytes.
        modified: Modification time in nanoseconds.
    """

    path: Path
    name: str
    kind: Kind
    size: int
    modified: int

    @property
    def is_compressed(self) -> bool:
        return is_compressed(self.path)

    def check_unchanged(self) -> None:
        """Compares size and modification time with the file.

        Raises:
            DataError: The file has changed, or is missing.
        """
        size, modified = _facts(self.path)
        if (size, modified) != (self.size, self.modified):
            raise DataError(
                f"{self.path} has changed during the preparation ({self.size:,} bytes then, {size:,} now): remove the "
                "output folder and start over"
            )


def find_sources(paths: Sequence[str | Path], pattern: str = "*") -> list[Source]:
    """Returns the files at `paths`; folders are searched recursively and sorted by name.

    Args:
        paths: Files and folders.
        pattern: Glob that file names in folders must match.

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
    """Opens a source of text or JSON lines, decompressed.

    Raises:
        DataError: The source cannot be read, has changed since it was found, or its compressed content is damaged.
    """
    source.check_unchanged()
    with opened(source.path) as content:
        yield content

"""Source files, with their formats."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ml.data.errors import DataError
from ml.data.reading.compression import Content, compression_of, opened
from ml.data.reading.datasets_folders import without_descriptions
from ml.data.reading.files import find_files
from ml.data.reading.options import USUAL, AsFormat, Reading
from ml.data.reading.recognition import recognized
from ml.data.reading.records import RecordFormat


class Source(NamedTuple):
    """Source file, with its size and modification time to detect changes.

    Attributes:
        path: Path of the file.
        name: Path relative to the folder that was searched; equal on every machine.
        format: Format with one document per record; None for a text file, which is a single document.
        size: Size in bytes.
        modified: Modification time in nanoseconds.
    """

    path: Path
    name: str
    format: RecordFormat | None
    size: int
    modified: int

    @staticmethod
    def of(path: Path, name: str, format: RecordFormat | None) -> "Source":
        """Returns a source with the present size and time of the file.

        Raises:
            DataError: The file does not exist.
        """
        return Source(path, name, format, *_facts(path))

    @property
    def is_compressed(self) -> bool:
        return compression_of(self.path) is not None

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


def find_sources(
    paths: Sequence[str | Path],
    pattern: str = "*",
    reading: Reading = USUAL,
    *,
    as_format: AsFormat = "auto",
    paths_option: str = "sources",
    excluded: Path | None = None,
) -> list[Source]:
    """Returns the files at `paths`; folders are searched recursively and sorted by name.

    Args:
        paths: Files and folders.
        pattern: Glob that file names in folders must match.
        reading: Options of reading; tables are recognized by the column of the text.
        as_format: "auto" recognizes the format of each file by its content; "text" reads every file as one document.
        paths_option: Option that `paths` comes from, named in errors.
        excluded: File or folder that is not read, such as an output folder below a folder of `paths`.

    Raises:
        DataError: A path does not exist, no file in a folder matches, or a file is not of a known format.
    """
    option = reading.names.name("pattern")
    found = find_files(paths, pattern, paths_option=paths_option, pattern_option=option, excluded=excluded)
    chosen = without_descriptions(found, option)
    return [Source.of(path, name, recognized(path, reading) if as_format == "auto" else None) for name, path in chosen]


def _facts(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return facts.st_size, facts.st_mtime_ns


@contextmanager
def opened_source(source: Source) -> Iterator[Content]:
    """Opens a source, decompressed.

    Raises:
        DataError: The source cannot be read, has changed since it was found, or its compressed content is damaged.
    """
    source.check_unchanged()
    with opened(source.path) as content:
        yield content

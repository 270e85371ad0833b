"""Discovery of files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ml.data.errors import MissingData


class FoundFile(NamedTuple):
    """File that was found.

    Attributes:
        name: Path relative to the folder that was searched; equal on every machine.
        path: Path of the file.
    """

    name: str
    path: Path


def find_files(
    paths: Sequence[str | Path], pattern: str, *, paths_option: str, pattern_option: str, excluded: Path | None = None
) -> Iterator[FoundFile]:
    """Yields the files at `paths`; folders are searched recursively and sorted by name.

    Args:
        paths: Files and folders. Hidden files and folders below a folder are skipped.
        pattern: Glob that file names in folders must match, such as "*.txt".
        paths_option: Option that `paths` comes from, named in errors.
        pattern_option: Option that `pattern` comes from, named in errors.
        excluded: File or folder below a folder that is skipped.

    Raises:
        DataError: A path does not exist, or no file in a folder matches.
    """
    for path in map(Path, paths):
        if path.is_dir():
            files = (file for file in path.rglob(pattern) if file.is_file() and not _is_in(file, excluded))
            found = sorted((file.relative_to(path).as_posix(), file) for file in files)
            shown = [FoundFile(*one) for one in found if not any(part[0] == "." for part in one[0].split("/"))]
            if not shown:
                raise MissingData(f"no file in {path} matches {pattern!r} ({pattern_option})")
            yield from shown
        elif path.exists():
            yield FoundFile(path.name, path)
        else:
            raise MissingData(f"no such file or folder: {path} ({paths_option}, from {Path.cwd()})")


def _is_in(file: Path, folder: Path | None) -> bool:
    return folder is not None and file.resolve().is_relative_to(folder.resolve())

"""The documents of a corpus."""

import abc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from ml.config import configurable, require, unused
from ml.data.corpora.standard_library import standard_library_files
from ml.data.errors import DataError

logger = logging.getLogger(__name__)


class Document(NamedTuple):
    """A text and a name that is the same on every machine."""

    name: str
    text: str


class Corpus(abc.ABC):
    """Yields documents, in the same order each time."""

    @abc.abstractmethod
    def documents(self) -> Iterator[Document]:
        """All of them; reading may fail only here."""


@configurable
class TextFiles(Corpus):
    """Text files, one document each; by default the sources of Python's standard library.

    Args:
        paths: A file, a folder, or a list of them; a folder is read with all that is below it, hidden files left out.
            None is the standard library of the Python that runs.
        pattern: Which files of a folder are read, such as "*.txt".
        invalid_utf8: What becomes of bytes that are no UTF-8: "replace" puts U+FFFD in their place and says where,
            "error" stops.
    """

    def __init__(
        self,
        paths: str | list[str] | None = None,
        pattern: str = "*",
        invalid_utf8: Literal["replace", "error"] = "replace",
    ):
        require(paths is None or len(paths) > 0, "paths", "names nothing to read")
        unused(paths is None, "pattern", "paths")
        self.paths = [paths] if isinstance(paths, str) else paths
        self.pattern = pattern
        self.invalid_utf8 = invalid_utf8

    def documents(self) -> Iterator[Document]:
        """The files, sorted by name within each path.

        Raises:
            DataError: A path does not exist, cannot be read, or holds no text.
        """
        for name, file in self._files():
            text = self._decode(file, _read(file))
            if text:
                yield Document(name, text)

    def _files(self) -> Iterator[tuple[str, Path]]:
        if self.paths is None:
            root, files = standard_library_files()
            yield from sorted((file.relative_to(root).as_posix(), file) for file in files)
            return
        for path in map(Path, self.paths):
            if path.is_dir():
                yield from self._files_below(path)
            elif path.exists():
                yield path.name, path
            else:
                raise DataError(f"no such file or folder: {path} (TextFiles.paths, from {Path.cwd()})")

    def _files_below(self, folder: Path) -> list[tuple[str, Path]]:
        below = [(file.relative_to(folder), file) for file in folder.rglob(self.pattern) if file.is_file()]
        shown = [(name.as_posix(), file) for name, file in below if not any(part[0] == "." for part in name.parts)]
        if not shown:
            raise DataError(f"no file in {folder} matches {self.pattern!r} (TextFiles.pattern)")
        return sorted(shown)

    def _decode(self, file: Path, content: bytes) -> str:
        if (place := content.find(0)) >= 0:
            raise DataError(
                f"{file} is not text: byte {place} is zero. Name the text files, or narrow TextFiles.pattern"
            )
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"{file}: byte {error.start} ({content[error.start]:#04x}) is not UTF-8"
            if self.invalid_utf8 == "error":
                raise DataError(f'{where}; TextFiles.invalid_utf8 = "replace" would read on') from None
            text = content.decode("utf-8", errors="replace")
            num_replaced = text.count("\ufffd") - content.count("\ufffd".encode())
            logger.warning("%s; %d invalid places of this file are replaced by U+FFFD", where, num_replaced)
            return text


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error

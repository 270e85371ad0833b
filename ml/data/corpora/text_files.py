"""Text corpora."""

import abc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ml.config import configurable, require, unused
from ml.data.corpora.standard_library import standard_library_files
from ml.data.errors import DataError
from ml.data.reading.decoding import decode
from ml.data.reading.documents import Document
from ml.data.reading.files import FoundFile, find_files, opened

logger = logging.getLogger(__name__)


class Corpus(abc.ABC):
    """Source of text documents, in a fixed order."""

    @abc.abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yields all documents. The corpus is read here, not in the constructor."""


@configurable
class TextFiles(Corpus):
    """Text files, one document each; by default the sources of Python's standard library.

    Files may be compressed (.gz, .bz2, .xz, .zst).

    Args:
        paths: File, folder, or list of them; folders are searched recursively, hidden files are skipped. None reads the
            standard library of the running Python.
        pattern: Glob that file names in folders must match, such as "*.txt".
        invalid_utf8: Handling of bytes that are not UTF-8: "replace" substitutes U+FFFD and logs the position, "error"
            raises an error.
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
        """Yields the files, sorted by name within each path.

        Raises:
            DataError: A path does not exist, cannot be read, or is not text.
        """
        for name, file in self._files():
            with opened(file) as (stream, _):
                content = stream.read()
            if text := self._decoded(file, content):
                yield Document(name, text)

    def _files(self) -> Iterator[FoundFile]:
        if self.paths is not None:
            options = {"paths_option": "TextFiles.paths", "pattern_option": "TextFiles.pattern"}
            yield from find_files(self.paths, self.pattern, **options)
            return
        root, files = standard_library_files()
        yield from sorted(FoundFile(file.relative_to(root).as_posix(), file) for file in files)

    def _decoded(self, file: Path, content: bytes) -> str:
        if (place := content.find(0)) >= 0:
            raise DataError(
                f"{file} is not text: byte {place} is zero. List only text files, or narrow TextFiles.pattern"
            )
        text, problem, num_replaced = decode(content, str(file))
        if problem is not None and self.invalid_utf8 == "error":
            raise DataError(f'{problem}; TextFiles.invalid_utf8 = "replace" replaces such bytes by U+FFFD')
        if problem is not None:
            logger.warning("%s; replaced %d invalid byte sequences of this file by U+FFFD", problem, num_replaced)
        return text

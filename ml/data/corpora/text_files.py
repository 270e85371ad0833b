"""Text corpora."""

import abc
import logging
from collections.abc import Iterator

from ml.config import configurable, require, unused
from ml.data.corpora.standard_library import standard_library_files
from ml.data.reading.documents import Document
from ml.data.reading.options import AsFormat, Findings, InvalidUtf8, OnError, OptionNames, Reading
from ml.data.reading.source_documents import documents_in
from ml.data.reading.sources import Source, find_sources

logger = logging.getLogger(__name__)


class Corpus(abc.ABC):
    """Source of text documents, in a fixed order."""

    @abc.abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yields all documents. The corpus is read here, not in the constructor."""


@configurable
class TextFiles(Corpus):
    """Text files, one document each, and files with one document a row; by default the sources of Python's standard
    library.

    Formats are recognized by content: JSON lines, JSON arrays, CSV and TSV with a header, Parquet, Arrow, and folders
    of the library `datasets`. Files may be compressed (.gz, .bz2, .xz, .zst).

    Args:
        paths: File, folder, or list of them; folders are searched recursively, hidden files are skipped. None reads the
            standard library of the running Python.
        pattern: Glob that file names in folders must match, such as "*.txt".
        format: "auto" recognizes the format of each file by its content; "text" reads every file as one document.
        text_key: Key of the text in JSON, column in tables. If there is none of that name, "data.text" is the key
            "text" in the object under "data".
        on_error: Handling of an invalid row: "stop" raises an error, "skip" omits the row and logs how many there were.
        invalid_utf8: Handling of bytes that are not UTF-8: "replace" substitutes U+FFFD and logs the position, "error"
            raises an error.
    """

    def __init__(
        self,
        paths: str | list[str] | None = None,
        pattern: str = "*",
        format: AsFormat = "auto",
        text_key: str = "text",
        on_error: OnError = "stop",
        invalid_utf8: InvalidUtf8 = "replace",
    ):
        require(paths is None or len(paths) > 0, "paths", "names nothing to read")
        for option in ("pattern", "format", "text_key", "on_error"):
            unused(paths is None, option, "paths")
        self.paths = [paths] if isinstance(paths, str) else paths
        self.pattern = pattern
        self.format: AsFormat = format
        self.reading = Reading(text_key, on_error, invalid_utf8, names=OptionNames("TextFiles"))

    def documents(self) -> Iterator[Document]:
        """Yields the documents; files are sorted by name within each path.

        Raises:
            DataError: A path does not exist, cannot be read, or is not of a known format.
        """
        findings = Findings()
        for source in self._sources():
            yield from documents_in(source, self.reading, findings)
        findings.log(logger)

    def _sources(self) -> list[Source]:
        if self.paths is None:
            root, files = standard_library_files()
            found = sorted((file.relative_to(root).as_posix(), file) for file in files)
            return [Source.of(file, name, None) for name, file in found]
        option = self.reading.names.name("paths")
        return find_sources(self.paths, self.pattern, self.reading, as_format=self.format, paths_option=option)

"""Whole documents of source files."""

from collections.abc import Iterator

from ml.data.reading.compression import opened
from ml.data.reading.documents import Document
from ml.data.reading.options import Findings, Reading
from ml.data.reading.records import Cursor
from ml.data.reading.rows import decoded_text, texts_in
from ml.data.reading.sources import Source


def documents_in(source: Source, reading: Reading, findings: Findings) -> Iterator[Document]:
    """Yields the documents of a file: the whole text unless it is empty, or each of its rows.

    Args:
        source: The file.
        reading: Options of reading.
        findings: Collects what is skipped or replaced.

    Raises:
        DataError: The file cannot be read with these options.
    """
    if source.format is not None:
        for read in source.format.texts(source.path, reading.field, Cursor()):
            for place, text in texts_in(read.block, reading, findings):
                yield Document(place.replace(str(source.path), source.name, 1), text, is_row=True)
        return
    with opened(source.path) as (stream, _):
        content = stream.read()
    if text := decoded_text(content, str(source.path), 0, reading, findings):
        yield Document(source.name, text)

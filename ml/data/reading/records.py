"""Records of files, and the blocks in which they are read."""

import abc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from ml.data.reading.decoding import Decoded

Loaded = TypeVar("Loaded", covariant=True)

BLOCK_BYTES = 2**17
"""Bytes of a block; blocks are larger only if one record is."""
LARGEST_RECORD = 2**26
"""Bytes of the largest record that is read; a longer one is most likely a file without line ends."""


class BrokenRecord(ValueError):
    """Invalid record. The message completes `file:line: ...`."""


class Cursor(NamedTuple):
    """Position between two records of a file.

    Attributes:
        offset: What is done, in the unit of the format: decompressed bytes, row groups or batches.
        row: Lines or rows that are done.
    """

    offset: int = 0
    row: int = 0


class Field(NamedTuple):
    """Field of a record that holds its text.

    Attributes:
        key: Key or column. If there is none of that name, "data.text" is the key "text" in the object under "data".
        option: Option that `key` comes from, named in errors.
    """

    key: str
    option: str


class Row(NamedTuple, Generic[Loaded]):
    """Record that is not parsed yet.

    Attributes:
        place: File, and line or row, for messages.
        load: Parses the record; raises `BrokenRecord` if it is invalid.
    """

    place: str
    load: Callable[[], Loaded]


class Block(abc.ABC, Generic[Loaded]):
    """Consecutive records of a file, which can be sent to another process and parsed there."""

    @abc.abstractmethod
    def rows(self) -> Iterator[Row[Loaded]]:
        """Yields the records in order."""


class Read(NamedTuple, Generic[Loaded]):
    """Block that was read.

    Attributes:
        block: The block.
        end: Position after it, from which to resume; None at the end of the file.
        num_bytes: Bytes of the file that were read for it.
    """

    block: Block[Loaded]
    end: Cursor | None
    num_bytes: int


class RecordFormat(abc.ABC):
    """Format of files with one document or conversation per record.

    Attributes:
        name: Name in messages.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def texts(self, path: Path, field: Field, start: Cursor) -> Iterator[Read[Decoded]]:
        """Yields the texts in blocks.

        Args:
            path: The file.
            field: Field that holds the text.
            start: Position to start from, the `end` of a block.

        Raises:
            DataError: The file cannot be read, or has no such column.
        """

    @abc.abstractmethod
    def records(self, path: Path, start: Cursor) -> Iterator[Read[Any]]:
        """Yields whole records, a dictionary each, in blocks.

        Args:
            path: The file.
            start: Position to start from, the `end` of a block.

        Raises:
            DataError: The file cannot be read.
        """


class BrokenBlock(Block[Any]):
    """Single invalid record.

    Args:
        place: File, and line or row.
        problem: Completes `place: ...`.
    """

    def __init__(self, place: str, problem: str):
        self.place = place
        self.problem = problem

    def rows(self) -> Iterator[Row[Any]]:
        yield Row(self.place, self._fail)

    def _fail(self) -> Any:
        raise BrokenRecord(self.problem)

"""Files with messages in each row."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, TypeVar

from ml.config import require
from ml.data.reading.options import OnError, OptionNames, Reading
from ml.data.reading.record_files import read_records
from ml.data.reading.sources import find_sources

Row = TypeVar("Row")


class MessageFiles:
    """Base of corpora that are files with messages in each row.

    Attributes:
        NAME: Name of the corpus in messages.
        KEYS: Keys of messages that cannot be ignored, in addition to role and content.

    Args:
        paths: File, folder, or list of them.
        pattern: Glob that file names in folders must match.
        on_error: Handling of an invalid row.
        ignored_keys: Keys of messages that are not used; None for none.
    """

    NAME: ClassVar[str]
    KEYS: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, paths: str | list[str], pattern: str, on_error: OnError, ignored_keys: list[str] | None):
        require(len(paths) > 0, "paths", "names nothing to read")
        used = ({"role", "content"} | self.KEYS) & set(ignored_keys or ())
        require(not used, "ignored_keys", f"cannot contain {', '.join(map(repr, sorted(used)))}")
        self.paths = [paths] if isinstance(paths, str) else paths
        self.pattern = pattern
        self.on_error: OnError = on_error
        self.ignored_keys = frozenset(ignored_keys or ())

    def rows(self, parse: Callable[..., Row]) -> Iterator[tuple[str, Row]]:
        """Yields the place and the content of each row; files are sorted by name within each path.

        Args:
            parse: Parses a record, given `ignored_keys`.

        Raises:
            DataError: A file cannot be read, or a row is invalid.
        """
        reading = Reading(on_error=self.on_error, names=OptionNames(self.NAME))
        sources = find_sources(self.paths, self.pattern, reading, paths_option=f"{self.NAME}.paths")
        parse_row: Callable[[Any], Row] = partial(parse, ignored_keys=self.ignored_keys)
        yield from read_records(sources, parse_row, reading)

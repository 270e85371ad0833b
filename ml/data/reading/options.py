"""Options of reading, the same for every consumer of files."""

import collections
import logging
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ml.data.reading.records import Field

OnError = Literal["stop", "skip"]
InvalidUtf8 = Literal["replace", "error"]
HoldOutBy = Literal["name", "content"]
AsFormat = Literal["auto", "text"]

# Kinds of findings, with their description in messages.
COUNTS = {
    "empty_documents": "empty documents skipped",
    "skipped_rows": "invalid rows skipped",
    "invalid_utf8": "invalid UTF-8 sequences replaced by U+FFFD",
    "zero_characters": "zero characters replaced by U+FFFD",
    "unknown_characters": "characters unknown to the tokenizer",
    "shared_files": "held-out files equal to files that are trained on",
}

_MAX_NOTES = 3  # messages of a kind and block; all occurrences are counted


class OptionNames(NamedTuple):
    """Spelling of options in messages: those of the command line, or of a configurable.

    Attributes:
        component: Configurable with the options; None is the command line.
    """

    component: str | None = None

    def name(self, option: str) -> str:
        """Returns an option as the user knows it: "--text_key" or "TextFiles.text_key"."""
        return f"--{option}" if self.component is None else f"{self.component}.{option}"

    def setting(self, option: str, value: str) -> str:
        """Returns an option with a value, as the user types it."""
        return f"{self.name(option)}={value}" if self.component is None else f'{self.name(option)} = "{value}"'


COMMAND_LINE = OptionNames()


@dataclass(frozen=True)
class Reading:
    """Options of reading.

    Attributes:
        text_key: Key of the text in JSON, column in tables. If there is none of that name, "data.text" is the key
            "text" in the object under "data".
        on_error: Handling of an invalid row: "stop" raises an error, "skip" omits the row.
        invalid_utf8: Handling of bytes that are not UTF-8: "error" raises an error, "replace" substitutes U+FFFD.
        validation_fraction: Fraction of the rows that is held out, by the hash of their text.
        hold_out_by: "name" holds out text files by the hash of their names, "content" by that of their content, so that
            equal files are on the same side.
        names: Spelling of the options in messages.
    """

    text_key: str = "text"
    on_error: OnError = "stop"
    invalid_utf8: InvalidUtf8 = "replace"
    validation_fraction: float = 0.0
    hold_out_by: HoldOutBy = "name"
    names: OptionNames = COMMAND_LINE

    @property
    def field(self) -> Field:
        """Field of the records that holds the text."""
        return Field(self.text_key, self.names.name("text_key"))


USUAL = Reading()


@dataclass
class Findings:
    """Text that was skipped or replaced.

    Attributes:
        counts: Number of occurrences of each kind.
        notes: Messages of the first occurrences of each kind.
    """

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, note: str, count: int = 1) -> None:
        """Counts an occurrence.

        Args:
            kind: Key of `COUNTS`.
            note: Message with its place.
            count: Number of occurrences.
        """
        self.counts[kind] += count
        notes = self.notes.setdefault(kind, [])
        if len(notes) < _MAX_NOTES:
            notes.append(note)

    def log(self, logger: logging.Logger) -> None:
        """Logs the count of each kind, and its first place."""
        for kind, count in self.counts.items():
            logger.warning("%d %s, the first: %s", count, COUNTS[kind], self.notes[kind][0])

"""Configurables as `show` prints them, wherever they were found."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from ml.cli import docstrings

CONSTRUCTOR = "a reference (@Name)"
DECIDED = "decided by the parent"
REQUIRED = "must be set"
_WIDTH, _INDENT = 110, " " * 6  # of descriptions


class Parameter(NamedTuple):
    """One parameter: its name, its type, and its default as gin text, or why there is none."""

    name: str
    kind: str
    default: str


class Entry(NamedTuple):
    """One configurable: what files call it, its name with its module, its documentation, its parameters."""

    name: str
    selector: str
    doc: str
    parameters: tuple[Parameter, ...]

    def answers_to(self, name: str) -> bool:
        """True where `name`, with or without components of its module, means this one."""
        return f".{self.selector}".endswith(f".{name}")

    @property
    def descriptions(self) -> dict[str, str]:
        """The description of each parameter that has one, from `Args:` of the docstring."""
        return docstrings.descriptions(self.doc)

    def text(self) -> str:
        """The whole entry as text for a terminal: the documentation, then each parameter with its description."""
        descriptions = [self.descriptions.get(parameter.name, "") for parameter in self.parameters]
        title, body = f"{self.name} ({self.selector})", docstrings.without_arguments(self.doc)
        return "\n".join([title, "", body, "", *table(self.parameters, descriptions)]).rstrip()


def table(rows: Sequence[tuple[str, ...]], descriptions: Sequence[str]) -> list[str]:
    """Rows of three texts in columns, each followed by its description on separate lines."""
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    lines = []
    for (name, kind, default), description in zip(rows, descriptions, strict=True):
        lines.append(f"  {name:<{widths[0]}}  {kind:<{widths[1]}}  {default}")
        lines += textwrap.wrap(description, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return lines

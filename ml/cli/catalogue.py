"""Configurables as `show` prints them, wherever they were found."""

from typing import NamedTuple

CONSTRUCTOR = "a reference (@Name)"
DECIDED = "decided by the parent"
REQUIRED = "must be set"


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
        """Whether `name`, with or without components of its module, means this one."""
        return f".{self.selector}".endswith(f".{name}")

    def text(self) -> str:
        """The whole entry for a person."""
        return "\n".join([f"{self.name} ({self.selector})", "", self.doc, "", *table(self.parameters)])


def table(rows: tuple[tuple[str, ...], ...] | list[tuple[str, ...]]) -> list[str]:
    """Rows of three texts in columns."""
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    return [f"  {name:<{widths[0]}}  {kind:<{widths[1]}}  {default}" for name, kind, default in rows]

"""Places in configuration files, problems at these places, and one report of all problems."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from ml.errors import UserError

_MAX_QUOTED = 400  # characters


class SavedOrigin(NamedTuple):
    """The origin of a statement of a saved operative config.

    Attributes:
        source: `imported`, `file` or `flag`.
        location: The place of the statement in the files or flags of the saved run.
    """

    source: str
    location: str


@dataclass(frozen=True, slots=True)
class Location:
    """The place of a statement.

    Attributes:
        source: A file, or a flag such as `--gin_bindings[0]`.
        line: The line number, from 1; None for a flag of one line.
        via: The place of the later statement that determined the value: a macro definition or an operation. None if
            there is none.
        saved: The origin of a statement of a saved operative config; None for any other.
    """

    source: str
    line: int | None = None
    via: "Location | None" = None
    saved: SavedOrigin | None = None

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        return place if self.via is None else f"{place} via {self.via}"

    @property
    def origin(self) -> str:
        """The place in the files or flags of the run that first set the value."""
        if self.saved is None:
            return str(self)
        return self.saved.location if self.via is None else f"{self.saved.location} via {self.via}"

    @property
    def last(self) -> "Location":
        """The place of the last statement that determined the value."""
        return self.via.last if self.via else self

    def through(self, later: "Location") -> "Location":
        """Returns this place, followed by the place of a later statement."""
        return replace(self, via=self.via.through(later) if self.via else later)


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning.

    Attributes:
        location: Its place; None if it has none.
        message: What is wrong.
        statement: The statement as written; empty if there is none.
    """

    location: Location | None
    message: str
    statement: str = ""

    def __str__(self) -> str:
        place = f"{self.location}: " if self.location else ""
        quoted = f"\n      {shortened(self.statement.strip())}" if self.statement.strip() else ""
        return f"{place}{self.message}{quoted}"


class ConfigError(UserError):
    """All errors of a configuration in one report.

    Attributes:
        problems: Each error with its place.
    """

    def __init__(self, problems: Iterable[Problem | str]):
        self.problems = [p if isinstance(p, Problem) else Problem(None, p) for p in problems]
        super().__init__(report(self.problems))

    def __reduce__(self):
        return type(self), (self.problems,)


def report(problems: list[Problem], noun: str = "error") -> str:
    """Returns the report as text: a line with the number of problems, then one entry per problem.

    Args:
        problems: The problems.
        noun: The word for one problem.
    """
    count = f"{len(problems)} {noun}{'s' if len(problems) != 1 else ''} in the configuration:"
    return "\n".join([count, *(f"  {problem}" for problem in problems)])


def shortened(text: str) -> str:
    """Returns a text for a message; a long one is cut and ends with its length."""
    return text if len(text) <= _MAX_QUOTED else f"{text[: _MAX_QUOTED // 2]}... ({len(text):,} characters)"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the closest known word, or an empty string if none is close."""
    known = list(dict.fromkeys(known))
    lowered = {candidate.lower(): candidate for candidate in reversed(known)}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {lowered[near[0]]!r}?"
    longer = [candidate for candidate in known if word and word.lower() in candidate.lower()]
    return f"; did you mean {min(longer, key=len)!r}?" if longer else ""


class ParameterError(ValueError):
    """A parameter of a configurable has an invalid value."""

    def __init__(self, parameter: str, message: str):
        super().__init__(f"{parameter} {message}")
        self.parameter = parameter
        self.message = message

    def __reduce__(self):
        return type(self), (self.parameter, self.message)

"""Places in configuration files, problems found there, and the one report that carries them all."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ml.errors import UserError

_MAX_QUOTED = 400  # characters


@dataclass(frozen=True, slots=True)
class Location:
    """Where a statement stands.

    Attributes:
        source: a file, or a flag such as `--gin_bindings[0]`.
        line: counts from 1; None for a flag of one line.
        via: the place of the later statement that decided the value: a macro definition, or an operation on it.
    """

    source: str
    line: int | None = None
    via: "Location | None" = None

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        return place if self.via is None else f"{place} via {self.via}"

    @property
    def last(self) -> "Location":
        """The place of the last statement that decided the value."""
        return self.via.last if self.via else self

    def through(self, later: "Location") -> "Location":
        """This place with the one of a later statement at the end."""
        return replace(self, via=self.via.through(later) if self.via else later)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, where, and the statement as its author wrote it."""

    location: Location | None
    message: str
    statement: str = ""

    def __str__(self) -> str:
        place = f"{self.location}: " if self.location else ""
        quoted = f"\n      {shortened(self.statement.strip())}" if self.statement.strip() else ""
        return f"{place}{self.message}{quoted}"


class ConfigError(UserError):
    """Everything that is wrong with a configuration, in one report.

    Attributes:
        problems: each error with its place.
    """

    def __init__(self, problems: Iterable[Problem | str]):
        self.problems = [p if isinstance(p, Problem) else Problem(None, p) for p in problems]
        super().__init__(report(self.problems))

    def __reduce__(self):
        return type(self), (self.problems,)


def report(problems: list[Problem], noun: str = "error") -> str:
    """The report as text: a line that counts, then one entry a problem."""
    count = f"{len(problems)} {noun}{'s' if len(problems) != 1 else ''} in the configuration:"
    return "\n".join([count, *(f"  {problem}" for problem in problems)])


def shortened(text: str) -> str:
    """A text for a message: one that is too long ends with how long it is."""
    return text if len(text) <= _MAX_QUOTED else f"{text[: _MAX_QUOTED // 2]}... ({len(text):,} characters)"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, or nothing when none is near."""
    known = list(dict.fromkeys(known))
    lowered = {candidate.lower(): candidate for candidate in reversed(known)}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {lowered[near[0]]!r}?"
    longer = [candidate for candidate in known if word and word.lower() in candidate.lower()]
    return f"; did you mean {min(longer, key=len)!r}?" if longer else ""

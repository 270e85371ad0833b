"""Statements that were lost to an error, so that what merely follows from their absence is not reported as well."""

import difflib
import re
from collections.abc import Iterable

from ml.config.errors import Problem

_KEY = re.compile(r"\s*(?:[\w.]+/)*(?P<name>[\w.]+?)(?:\.(?P<parameter>\w+))?\s*(?:\[.*?\]\s*)*[+-]?=")
_WORD = re.compile(r"\w+")


class Lost:
    """What a configuration would have said but for its errors.

    Attributes:
        everything: a whole file or module is missing: it may have held anything.
        a_part: a statement that may select a part of the model.
        unreadable: the texts of statements that cannot be read.
    """

    def __init__(self):
        self.everything = False
        self.a_part = False
        self.unreadable: list[str] = []
        self._parameters: set[str] = set()

    def add_text(self, text: str) -> None:
        """A statement that cannot be read."""
        self.everything = self.everything or _KEY.match(text) is None
        self.unreadable.append(text)

    def add(self, parameter: str, may_select: bool) -> None:
        """A statement without effect; `may_select` where it may have been one that selects a part."""
        self._parameters.add(parameter)
        self.a_part = self.a_part or may_select

    def bindings(self) -> list[tuple[str, str, str]]:
        """The configurable, the parameter and the text of each unreadable binding; a macro has no parameter."""
        keys = [(_KEY.match(text), text) for text in self.unreadable]
        return [(key["name"], key["parameter"] or "", text) for key, text in keys if key]

    def defines(self, macro: str) -> bool:
        """Whether a lost statement may define a macro."""
        return self.everything or any(name == macro and not parameter for name, parameter, _ in self.bindings())

    def reads(self, macro: str) -> bool:
        """Whether a lost statement may read a macro."""
        return self.everything or any(re.search(rf"%{re.escape(macro)}\b", text) for text in self.unreadable)

    def without_consequences(self, problems: Iterable[Problem]) -> list[Problem]:
        """The problems of a build that what is lost does not explain."""
        return [problem for problem in problems if not self._explains(problem)]

    def _explains(self, problem: Problem) -> bool:
        if self.everything or (self.a_part and problem.location is None):
            return True
        words = _WORD.findall(problem.message)
        return any(lost in words or difflib.get_close_matches(lost, words[1:2], 1, 0.8) for lost in self._parameters)

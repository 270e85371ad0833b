"""Statements lost to an error, so that problems that only follow from their absence are not reported."""

import difflib
import re
from collections.abc import Iterable

from ml.config.errors import Problem

_KEY = re.compile(r"\s*(?:[\w.]+/)*(?P<name>[\w.]+?)(?:\.(?P<parameter>\w+))?\s*(?:\[.*?\]\s*)*[+-]?=")
_WORD = re.compile(r"\w+")


class Lost:
    """Statements that are missing from a configuration because of errors.

    Attributes:
        everything: Whether a whole file or module is missing, which could contain any statement.
        a_part: Whether a statement is missing that could select a component of the model.
        unreadable: The texts of statements that cannot be read.
    """

    def __init__(self):
        self.everything = False
        self.a_part = False
        self.unreadable: list[str] = []
        self._parameters: set[str] = set()

    def add_text(self, text: str) -> None:
        """Records a statement that cannot be read."""
        self.everything = self.everything or _KEY.match(text) is None
        self.unreadable.append(text)

    def add(self, parameter: str, may_select: bool) -> None:
        """Records a statement without effect.

        Args:
            parameter: The parameter that it sets.
            may_select: Whether it could select a component.
        """
        self._parameters.add(parameter)
        self.a_part = self.a_part or may_select

    def bindings(self) -> list[tuple[str, str, str]]:
        """Returns the configurable, the parameter and the text of each unreadable binding; a macro has no parameter."""
        keys = [(_KEY.match(text), text) for text in self.unreadable]
        return [(key["name"], key["parameter"] or "", text) for key, text in keys if key]

    def defines(self, macro: str) -> bool:
        """Returns whether a lost statement could define a macro."""
        return self.everything or any(name == macro and not parameter for name, parameter, _ in self.bindings())

    def reads(self, macro: str) -> bool:
        """Returns whether a lost statement could use a macro."""
        return self.everything or any(re.search(rf"%{re.escape(macro)}\b", text) for text in self.unreadable)

    def without_consequences(self, problems: Iterable[Problem]) -> list[Problem]:
        """Returns the problems of a build that the lost statements do not explain."""
        return [problem for problem in problems if not self._explains(problem)]

    def _explains(self, problem: Problem) -> bool:
        if self.everything or (self.a_part and problem.location is None):
            return True
        words = _WORD.findall(problem.message)
        return any(lost in words or difflib.get_close_matches(lost, words[1:2], 1, 0.8) for lost in self._parameters)

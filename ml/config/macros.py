"""Macro definitions by statement: the one in force at each statement, and the statements that change a value."""

from typing import Any

from ml.config.grammar import RawMacro, RawReference
from ml.config.parsing import RawImport, RawStatement
from ml.config.values import Expression, Macro, walk


class Macros:
    """The macro definitions of a list of statements.

    As in gin, a macro may be used before the statement that defines it.

    Attributes:
        definitions: The definitions of each macro with their orders, earliest first.
    """

    def __init__(self, statements: list[RawStatement | RawImport]):
        self.definitions: dict[str, list[tuple[int, RawStatement]]] = {}
        for order, statement in enumerate(statements):
            if isinstance(statement, RawStatement) and not statement.parameter:
                self.definitions.setdefault(macro_name(statement), []).append((order, statement))

    def __contains__(self, name: str) -> bool:
        return name in self.definitions

    def definition(self, name: str, end: int) -> RawStatement:
        """Returns the last definition before statement `end`, or the first one if all come later."""
        defined = self.definitions[name]
        return next((definition for order, definition in reversed(defined) if order < end), defined[0][1])

    def changes(self, written: Any, order: int) -> list[tuple[int, RawStatement | None]]:
        """Returns the statements that give a bound value: the binding itself, then redefinitions of its macros.

        Args:
            written: The value with its macros.
            order: The order of the binding.

        Returns:
            The order of each statement, and the definition, which is None for the binding itself.
        """
        found: list[tuple[int, RawStatement | None]] = []
        for at, definition in [(order, None), *self._redefinitions(written, order)]:
            needed = self._needed(written, at + 1)
            is_defined = all(self.definitions[name][0][0] <= at for name in needed)
            if is_defined and (definition is None or macro_name(definition) in needed):
                found.append((at, definition))
        return found

    def _needed(self, written: Any, end: int) -> set[str]:
        """The macros in a value and, recursively, in their definitions before statement `end`."""
        found: set[str] = set()
        waiting = [node.name for node in walk(written) if isinstance(node, Macro)]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += macro_names(self.definition(name, end).value) & self.definitions.keys()
        return found

    def _redefinitions(self, written: Any, order: int) -> list[tuple[int, RawStatement]]:
        """The definitions after `order` of every macro that the value needs at any statement."""
        needed, waiting = set(), {node.name for node in walk(written) if isinstance(node, Macro)}
        while waiting:
            name = waiting.pop()
            needed.add(name)
            for _, definition in self.definitions[name]:
                waiting |= (macro_names(definition.value) & self.definitions.keys()) - needed
        later = [defined for name in needed for defined in self.definitions[name] if defined[0] > order]
        return sorted(later, key=lambda defined: defined[0])


def macro_name(statement: RawStatement) -> str:
    """Returns the name of the macro that a statement defines, scopes included."""
    return "/".join((*statement.scope, statement.name))


def macro_names(raw: Any) -> set[str]:
    """Returns the names of the macros and constants in a raw value."""
    if isinstance(raw, RawMacro):
        return {raw.name}
    if isinstance(raw, dict):
        return {name for pair in raw.items() for item in pair for name in macro_names(item)}
    if isinstance(raw, list | tuple) and not isinstance(raw, RawReference):
        return {name for item in raw for name in macro_names(item)}
    if isinstance(raw, Expression):
        return macro_names(list(raw.operands))
    return set()

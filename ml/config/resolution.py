"""Values of statements: names looked up, macros expanded, expressions calculated. Collects what is wrong with them."""

from collections.abc import Callable, Collection
from typing import Any

from ml.config import gin_internals
from ml.config.arithmetic import ArithmeticProblem, calculate
from ml.config.configurable import reference_to
from ml.config.errors import Location, Problem, did_you_mean
from ml.config.grammar import RawMacro, RawReference
from ml.config.limits import MAX_DEPTH, MAX_EXPANSIONS, is_too_deep
from ml.config.lost import Lost
from ml.config.macros import Macros
from ml.config.names import Names
from ml.config.parsing import RawImport, RawStatement
from ml.config.signatures import Configurable
from ml.config.statements import State
from ml.config.values import (
    Constant,
    DictKeyError,
    Expression,
    Macro,
    Reference,
    substitute,
    to_text,
    unique_keys,
    walk,
)


class Unknown:
    """Placeholder in a value for what cannot be found or calculated. The problem is already reported."""


class _TooLargeError(ValueError):
    """A value exceeds the limits as its macros are expanded."""


class Resolver:
    """Resolves the values of statements, and collects problems with the place of the statement in progress.

    Args:
        statements: All statements, in order.
        lost: The statements lost to an error; what follows from their absence is not reported.
        names: The names of configurables.
        shipped: The sources of statements that come with Juniper.

    Attributes:
        macros: The macro definitions.
        read_macros: The names of the macros that some value uses.
        place: The place and text of the statement in progress.
        problems: Errors.
        idle: Problems of statements that have no effect.
        num_faults: The number of errors, including those that `lost` explains.
    """

    def __init__(self, statements: list[RawStatement | RawImport], lost: Lost, names: Names, shipped: Collection[str]):
        self.macros = Macros(statements)
        self.read_macros: set[str] = set()
        self.place = (Location(""), "")
        self.problems: list[Problem] = []
        self.idle: list[Problem] = []
        self.num_faults = 0
        self._lost = lost
        self._names = names
        self._shipped = shipped
        self._num_expansions = 0
        self._end = self._num_statements = len(statements)  # macros have the definitions before this statement

    def problem(self, message: str, idle: bool = False) -> None:
        """Reports a problem at the current place, unless it is reported already."""
        location, text = self.place
        problem = Problem(location, message, text)
        self.num_faults += not idle
        if problem not in self.problems:
            (self.idle if idle else self.problems).append(problem)

    def resolve(self, raw: Any) -> Any:
        """Returns a raw value with references, macros and constants looked up; `Unknown` where one is not found."""

        def leaf(value: Any) -> Any:
            if isinstance(value, RawReference):
                info = self.lookup(value.name, f"@{'/'.join((*value.scopes, value.name))}")
                return Reference(value.scopes, info, value.evaluate) if info else Unknown()
            if isinstance(value, RawMacro):
                return self._macro_or_constant(value.name)
            return value

        try:
            return _substitute_raw(raw, leaf)
        except DictKeyError as error:
            self.problem(str(error))
            return Unknown()

    def lookup(self, name: str, quoted: str = "") -> Configurable | None:
        """Returns the configurable of a name, or reports that there is none or more than one.

        Args:
            name: The name in the statement.
            quoted: The reference that contains the name, for the message; empty if the name stands alone.
        """
        found = self._names.find(name, built_in=self.place[0].source in self._shipped)
        if len(found) == 1:
            return found[0]
        if found:
            options = ", ".join(sorted(info.selector for info in found))
            write = " or ".join(sorted(self._names.spell(info) for info in found))
            self.problem(f"{name!r} is ambiguous: {options}; write {write}")
        else:
            named = f" in {quoted}" if quoted else ""
            hint = self._names.not_imported(name) or did_you_mean(name, self._names.known())
            self._not_found(f"there is no configurable {name!r}{named}{hint}", is_explained=self._lost.everything)
        return None

    def _macro_or_constant(self, name: str) -> Macro | Constant | Unknown:
        constants = gin_internals.constants()
        matching = constants.matching_selectors(name)
        if name in self.macros:
            self.read_macros.add(name)
            return Macro(name)
        if len(matching) == 1:
            return Constant(matching[0], constants[matching[0]])
        if matching:
            self.problem(f"constant %{name} is ambiguous: {', '.join(sorted(matching))}; write more of its name")
            return Unknown()
        known = [*self.macros.definitions, *gin_internals.constant_names()]
        hint = did_you_mean(name, known)
        self._not_found(f"there is no macro or constant %{name}{hint}", is_explained=self._lost.defines(name))
        return Unknown()

    def _not_found(self, message: str, is_explained: bool) -> None:
        """Reports an unknown name, unless a lost statement explains it."""
        if is_explained:
            self.num_faults += 1
        else:
            self.problem(message)

    def expand(self, written: Any) -> Any:
        """Returns a resolved value with its macros expanded and its expressions calculated.

        Reports a value that exceeds the limits; it is then `Unknown`.
        """
        here, self._num_expansions = self.place, 0
        try:
            value = self._expanded(written, ())
            if not is_too_deep(value):
                return value
        except _TooLargeError:
            self.place = here
        self.problem(
            f"macro expansion is too large: at most {MAX_DEPTH} levels deep and {MAX_EXPANSIONS:,} macros in total"
        )
        return Unknown()

    def _expanded(self, value: Any, expanding: tuple[str, ...]) -> Any:

        def leaf(node: Any) -> Any:
            if isinstance(node, Expression):
                return self._calculate(node)
            if not isinstance(node, Macro):
                return node
            if node.name in expanding:
                chain = " -> ".join(f"%{name}" for name in (*expanding, node.name))
                self.problem(f"macros are defined in a cycle: {chain}")
                return Unknown()
            self._num_expansions += 1
            if len(expanding) >= MAX_DEPTH or self._num_expansions > MAX_EXPANSIONS:
                raise _TooLargeError
            definition = self.macros.definition(node.name, self._end)
            here, self.place = self.place, (definition.location, definition.text)
            expanded = self._expanded(self.resolve(definition.value), (*expanding, node.name))
            self.place = here
            return expanded

        try:
            return substitute(value, leaf)
        except DictKeyError as error:
            self.problem(str(error))
            return Unknown()

    def _calculate(self, expression: Expression) -> Any:
        if is_unknown(expression):
            return Unknown()
        try:
            return calculate(expression)
        except ArithmeticProblem as problem:
            self.problem(f"{to_text(expression, reference_to)} {problem}")
            return Unknown()

    def states(self, written: Any, binding: RawStatement, order: int) -> tuple[State, ...]:
        """Returns the values of a binding over time: from its own statement, and from each redefined macro.

        Args:
            written: The resolved value, with its macros.
            binding: The statement.
            order: The order of the statement.
        """
        states: list[State] = []
        changes = self.macros.changes(written, order)
        for at, definition in changes:
            self._end = at + 1
            count, num_faults = len(self.problems), self.num_faults
            value = self.expand(written)
            if at != changes[-1][0]:
                self.num_faults = num_faults
                del self.problems[count:]  # an error in a value that a later statement replaced does not count
            if is_unknown(value) and at != changes[-1][0]:
                continue
            source, location = binding.layer, binding.location
            if definition is not None and (states or definition.layer is not binding.layer):
                location = location.through(definition.location)
                source = max(source, definition.layer) if source.explicit else source
            states.append(State(value, at, source, location))
        self._end = self._num_statements
        return tuple(states)


def is_unknown(value: Any) -> bool:
    """Returns whether a value contains something that was not found or not calculated."""
    return any(isinstance(node, Unknown) for node in walk(value))


def _substitute_raw(value: Any, leaf: Callable[[Any], Any]) -> Any:
    if isinstance(value, RawReference | RawMacro):  # named tuples, but leaves here
        return leaf(value)
    if type(value) is dict:
        return unique_keys((_substitute_raw(k, leaf), _substitute_raw(v, leaf)) for k, v in value.items())
    if type(value) in (list, tuple):
        return type(value)(_substitute_raw(item, leaf) for item in value)
    if isinstance(value, Expression):
        return Expression(value.operator, tuple(_substitute_raw(operand, leaf) for operand in value.operands))
    return leaf(value)

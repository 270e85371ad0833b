"""From raw statements to bindings: names looked up, macros filled in, values checked. Nothing is built here."""

import importlib.util  # noqa: F401  (gin needs it imported to look for files)
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import gin

from ml.config import gin_internals
from ml.config.arithmetic import ArithmeticProblem, calculate
from ml.config.canonical import canonical
from ml.config.configurable import reference_to
from ml.config.errors import Location, Problem, did_you_mean
from ml.config.grammar import RawMacro, RawReference
from ml.config.limits import MAX_DEPTH, MAX_EXPANSIONS, is_too_deep
from ml.config.lost import Lost
from ml.config.names import Names
from ml.config.operations import Key, OperationProblem, held_by, operate, unset_of
from ml.config.parsing import RawImport, RawStatement
from ml.config.signatures import Configurable, ParameterSpec
from ml.config.statements import Binding, Import, Layer, MacroDefinition, State, Unset
from ml.config.types import mismatch, takes_constructor
from ml.config.values import (
    LEFT_OUT,
    REMOVED,
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

_ALWAYS = {"gin.REQUIRED"}


@dataclass
class Analysis:
    """What a list of statements means.

    Attributes:
        bindings: those without an error, in order.
        macros: every definition, in order; the last of a name counts.
        imports: modules that were imported.
        problems: errors.
        warnings: what is in force and cannot be checked.
        idle: problems of statements that have no effect (warnings with `allow_unused_bindings`).
        unset: statements that removed bindings; these are not in `bindings`.
    """

    bindings: list[Binding] = field(default_factory=list)
    macros: list[MacroDefinition] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    idle: list[Problem] = field(default_factory=list)
    unset: list[Unset] = field(default_factory=list)


class _Unknown:
    """Stands in a value for what could not be found or worked out; a problem says so already."""


class _TooLargeError(ValueError):
    """A value grows beyond the limits as its macros are filled in."""


class Analyzer:
    """Turns raw statements into bindings, and collects everything that is wrong with them."""

    def __init__(
        self, statements: list[RawStatement | RawImport], lost: Lost, names: Names, shipped: Collection[str] = ()
    ):
        self._statements = statements
        self._lost = lost
        self._names = names
        self._shipped = shipped  # the sources of statements that come with Juniper
        self._num_faults = 0
        self._analysis = Analysis()
        self._place = (Location(""), "")  # of the statement that is being looked at, and its text
        self._broken: set[Key] = set()  # keys of lines with a problem
        self._broken_macros: set[str] = set()
        self._read_macros: set[str] = set()
        # Definitions are gathered first: as in gin, a macro may be read before the line that defines it.
        self._definitions: dict[str, list[tuple[int, RawStatement]]] = {}
        for order, statement in enumerate(statements):
            if isinstance(statement, RawStatement) and not statement.parameter:
                self._definitions.setdefault(_macro_name(statement), []).append((order, statement))
        self._num_expansions = 0
        self._as_of = len(statements)  # macros hold what they were defined as before this statement

    def run(self) -> Analysis:
        """Looks at each statement in order."""
        for order, statement in enumerate(self._statements):
            if isinstance(statement, RawImport):
                self._analysis.imports.append(Import(*statement))
                continue
            self._place = (statement.location, statement.text)
            if statement.parameter:
                self._binding(statement, order)
            else:
                self._macro(statement, order)
        for name, parameter, text in self._lost.bindings():
            self._lose(name, parameter, may_select="@" in text or "%" in text)
        self._unread_macros()
        return self._analysis

    def _problem(self, message: str, idle: bool = False) -> None:
        location, text = self._place
        problem = Problem(location, message, text)
        self._num_faults += not idle
        if problem not in self._analysis.problems:
            (self._analysis.idle if idle else self._analysis.problems).append(problem)

    def _macro(self, statement: RawStatement, order: int) -> None:
        name = _macro_name(statement)
        if gin_internals.constants().matching_selectors(name):
            self._problem(f"the macro {name!r} has the name of a constant, and gin would read the constant instead")
            return
        if statement.entries or statement.operator != "=":
            self._problem(f"an operation changes a parameter, and {name} is a macro: define it in full")
            return
        before = self._num_faults
        value = self._resolve_names(statement.value)
        if self._num_faults > before:
            self._broken_macros.add(name)
        self._analysis.macros.append(MacroDefinition(name, value, statement.layer, statement.location, order))

    def _binding(self, statement: RawStatement, order: int) -> None:
        before = self._num_faults
        self._add_binding(statement, order)
        if self._num_faults > before:
            self._lose(statement.name, statement.parameter, _holds_a_name(statement.value))

    def _lose(self, name: str, parameter: str, may_select: bool) -> None:
        """Notes a statement that has no effect because of an error in it."""
        found = self._names.find(name)
        spec = found[0].spec(parameter) if len(found) == 1 else None
        self._lost.add(parameter, takes_constructor(spec.annotation) if spec else may_select)

    def _add_binding(self, statement: RawStatement, order: int) -> None:
        info = self._lookup(statement.name, "configurable")
        parent = None
        if statement.layer is Layer.PARENT:
            statement, parent = self._parent(statement)
        written = self._resolve_names(statement.value)
        if info is None or (statement.layer is Layer.PARENT and parent is None):
            return
        spec = info.spec(statement.parameter)
        if spec is None:
            self._problem(_unknown_parameter(info, statement.parameter))
            return
        key = Key(statement.scope, info, statement.parameter)
        operates = statement.entries or statement.operator != "="
        if written == REMOVED and not operates:
            self._remove(key, statement, order)
        elif (binding := self._checked(statement, info, parent, written, order)) is not None:
            self._analysis.bindings.append(binding)
        elif not operates:
            self._broken.add(key)

    def _checked(
        self, statement: RawStatement, info: Configurable, parent: Configurable | None, written: Any, order: int
    ) -> Binding | None:
        """The binding of a statement, or None after a problem."""
        spec = info.spec(statement.parameter)
        assert spec is not None  # `_binding` has looked
        operation = ""
        if statement.entries or statement.operator != "=":
            operated = self._operated(statement, info, written)
            if operated is None:
                return None
            written, statement, operation = operated
        states = self._states(written, statement, order)
        value, location = states[-1].value, states[-1].location
        if _is_unknown(value):
            return None
        self._place = (location, statement.text)
        if any(node == REMOVED for node in walk(value)):
            self._problem(f"%{REMOVED.name} stands alone, as what a parameter or an entry of it is set to")
            return None
        if not _required(value) and (wrong := mismatch(value, spec.annotation)):
            self._problem(f"{info.name}.{statement.parameter} {wrong}{_whole_division(written, value)}")
            return None
        if spec.unresolved and statement.layer.explicit:
            self._analysis.warnings.append(Problem(location, _unchecked(info, spec), statement.text))
        if statement.layer >= Layer.IMPORTED:  # saved defaults stay what the code said
            states = tuple(state._replace(value=canonical(state.value, spec.annotation)) for state in states)
        return Binding(
            statement.scope,
            info,
            statement.parameter,
            written,
            states[-1].value,
            statement.layer,
            location,
            order,
            constructs=takes_constructor(spec.annotation),
            states=states,
            parent=parent,
            operation=operation,
        )

    def _parent(self, statement: RawStatement) -> tuple[RawStatement, Configurable | None]:
        """`Parent/place/Name.parameter` without the parent, and the configurable that this is."""
        if len(statement.scope) < 2:
            self._problem("the default of a parent is written Parent/child/Name.parameter")
            return statement, None
        parent = self._lookup(self._names.of_scope(statement.scope[0]), "configurable")
        return statement._replace(scope=statement.scope[1:]), parent

    def _operated(
        self, statement: RawStatement, info: Configurable, operand: Any
    ) -> tuple[Any, RawStatement, str] | None:
        """The whole value after an operation, the statement with the places of both, and the operation as text."""
        key = Key(statement.scope, info, statement.parameter)
        if key in self._broken:
            self._num_faults += 1
            return None
        written = [self._resolve_names(entry) for entry in statement.entries]
        entries = [self._expanded(entry) for entry in written]
        if statement.operator == "-=" or type(operand) not in (list, tuple):
            value = operand if operand == REMOVED else self._expanded(operand)
        else:
            value = operand
        if _is_unknown([*entries, value]):
            return None
        try:
            held = held_by(self._analysis.bindings, key)
            name = f"{info.name}.{statement.parameter}"
            value = operate(held.value, tuple(entries), statement.operator, value, name)
        except OperationProblem as problem:
            self._problem(str(problem))
            return None
        if held.location is not None:
            statement = statement._replace(location=held.location.through(statement.location))
        keys = "".join(f"[{to_text(entry, reference_to, self._names.spell)}]" for entry in written)
        return value, statement, f"{keys} {statement.operator} {to_text(operand, reference_to, self._names.spell)}"

    def _remove(self, key: Key, statement: RawStatement, order: int) -> None:
        """Takes away the earlier bindings of exactly this key."""
        try:
            unset = unset_of(self._analysis.bindings, key, statement.layer, statement.location, order)
        except OperationProblem as problem:
            if key not in self._broken:
                self._problem(str(problem))
            return
        self._analysis.bindings = [b for b in self._analysis.bindings if b not in unset.removed]
        self._analysis.unset.append(unset)

    def _resolve_names(self, raw: Any) -> Any:
        """References and macros with their names looked up; what cannot be found is reported, and unknown."""

        def leaf(value: Any) -> Any:
            if isinstance(value, RawReference):
                info = self._lookup(value.name, "configurable", f"@{'/'.join((*value.scopes, value.name))}")
                return Reference(value.scopes, info, value.evaluate) if info else _Unknown()
            if isinstance(value, RawMacro):
                return self._macro_or_constant(value.name)
            return value

        try:
            return _substitute_raw(raw, leaf)
        except DictKeyError as error:
            self._problem(str(error))
            return _Unknown()

    def _lookup(self, name: str, kind: str, quoted: str = "") -> Configurable | None:
        found = self._names.find(name, built_in=self._place[0].source in self._shipped)
        if len(found) == 1:
            return found[0]
        if found:
            options = ", ".join(sorted(info.selector for info in found))
            write = " or ".join(sorted(self._names.spell(info) for info in found))
            self._problem(f"{name!r} may mean any of {options}; write {write}")
        else:
            named = f" in {quoted}" if quoted else ""
            hint = self._names.not_imported(name) or did_you_mean(name, self._names.known())
            self._unknown(f"there is no {kind} {name!r}{named}{hint}", follows=self._lost.everything)
        return None

    def _macro_or_constant(self, name: str) -> "Macro | Constant | _Unknown":
        constants = gin_internals.constants()
        matching = constants.matching_selectors(name)
        if name in self._definitions:
            self._read_macros.add(name)
            return Macro(name)
        if len(matching) == 1:
            return Constant(matching[0], constants[matching[0]])
        if matching:
            self._problem(f"the constant %{name} may mean any of {', '.join(sorted(matching))}; write more of its name")
            return _Unknown()
        known = [*self._definitions, *gin_internals.constant_names()]
        hint = did_you_mean(name, known)
        self._unknown(f"there is no macro or constant %{name}{hint}", follows=self._lost.defines(name))
        return _Unknown()

    def _unknown(self, message: str, follows: bool) -> None:
        """A name that nothing has, which is no news where what was lost may have it."""
        if follows:
            self._num_faults += 1
        else:
            self._problem(message)

    def _expanded(self, written: Any) -> Any:
        """`_expand` for a whole value, within limits."""
        here, self._num_expansions = self._place, 0
        try:
            value = self._expand(written, ())
            if not is_too_deep(value):
                return value
        except _TooLargeError:
            self._place = here
        self._problem(
            f"its macros expand to too much: at most {MAX_DEPTH} inside one another and {MAX_EXPANSIONS:,} together"
        )
        return _Unknown()

    def _expand(self, value: Any, expanding: tuple[str, ...]) -> Any:
        """The value with macros replaced by what their last definitions hold."""

        def leaf(node: Any) -> Any:
            if isinstance(node, Expression):
                return self._calculate(node)
            if not isinstance(node, Macro):
                return node
            if node.name in expanding:
                chain = " -> ".join(f"%{name}" for name in (*expanding, node.name))
                self._problem(f"macros define each other in a circle: {chain}")
                return _Unknown()
            self._num_expansions += 1
            if len(expanding) >= MAX_DEPTH or self._num_expansions > MAX_EXPANSIONS:
                raise _TooLargeError
            definition = self._definition(node.name)
            here, self._place = self._place, (definition.location, definition.text)
            resolved = self._resolve_names(definition.value)
            expanded = self._expand(resolved, (*expanding, node.name))
            self._place = here
            return expanded

        try:
            return substitute(value, leaf)
        except DictKeyError as error:
            self._problem(str(error))
            return _Unknown()

    def _calculate(self, expression: Expression) -> Any:
        if _is_unknown(expression):
            return _Unknown()
        try:
            return calculate(expression)
        except ArithmeticProblem as problem:
            self._problem(f"{to_text(expression, reference_to)} {problem}")
            return _Unknown()

    def _definition(self, name: str) -> RawStatement:
        """The definition of a macro that is in force at the statement that is looked at, else the first one."""
        defined = self._definitions[name]
        return next((definition for order, definition in reversed(defined) if order < self._as_of), defined[0][1])

    def _macros_in(self, written: Any) -> set[str]:
        """The macros that a value needs, with those that these need."""
        found: set[str] = set()
        waiting = [node.name for node in walk(written) if isinstance(node, Macro)]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += _macro_names(self._definition(name).value) & self._definitions.keys()
        return found

    def _states(self, written: Any, binding: RawStatement, order: int) -> tuple[State, ...]:
        """The values that a binding had, from its own statement on and from each later one that redefined a macro."""
        states: list[State] = []
        moments = self._moments(written, order)
        for at, definition in moments:
            self._as_of = at + 1
            count, num_faults = len(self._analysis.problems), self._num_faults
            value = self._expanded(written)
            if at != moments[-1][0]:
                self._num_faults = num_faults
                del self._analysis.problems[count:]  # what was wrong with an earlier value is no problem any more
            if _is_unknown(value) and at != moments[-1][0]:
                continue
            source, location = binding.layer, binding.location
            if definition is not None and (states or definition.layer is not binding.layer):
                location = location.through(definition.location)
                source = max(source, definition.layer) if source.explicit else source
            states.append(State(value, at, source, location))
        self._as_of = len(self._statements)
        return tuple(states)

    def _moments(self, written: Any, order: int) -> list[tuple[int, RawStatement | None]]:
        """When the value of a binding changed, from its own statement on, and the definition that changed it."""
        moments: list[tuple[int, RawStatement | None]] = []
        for at, definition in [(order, None), *self._redefinitions(written, order)]:
            self._as_of = at + 1
            needed = self._macros_in(written)
            is_defined = all(self._definitions[name][0][0] <= at for name in needed)
            if is_defined and (definition is None or _macro_name(definition) in needed):
                moments.append((at, definition))
        return moments

    def _redefinitions(self, written: Any, order: int) -> list[tuple[int, RawStatement]]:
        """The definitions after `order` of every macro that the value needs or ever needed."""
        needed, waiting = set(), {node.name for node in walk(written) if isinstance(node, Macro)}
        while waiting:
            name = waiting.pop()
            needed.add(name)
            for _, definition in self._definitions[name]:
                waiting |= (_macro_names(definition.value) & self._definitions.keys()) - needed
        later = [defined for name in needed for defined in self._definitions[name] if defined[0] > order]
        return sorted(later, key=lambda defined: defined[0])

    def _unread_macros(self) -> None:
        for name, defined in self._definitions.items():
            statement = defined[-1][1]
            if name in self._read_macros or name in self._broken_macros or self._lost.reads(name):
                continue
            self._place = (statement.location, statement.text)
            self._problem(f"nobody reads the macro {name!r}{self._meant_instead(name)}", idle=True)

    def _meant_instead(self, name: str) -> str:
        dotted = [f"{n}.{p}" for n in self._names.known() for info in self._names.find(n)[:1] for p in info.parameters]
        return did_you_mean(name.replace("_", ".", 1), dotted) if "_" in name else did_you_mean(name, self._read_macros)


def _macro_names(raw: Any) -> set[str]:
    """The names of the macros and constants in a raw value."""
    if isinstance(raw, RawMacro):
        return {raw.name}
    if isinstance(raw, dict):
        return {name for pair in raw.items() for item in pair for name in _macro_names(item)}
    if isinstance(raw, list | tuple) and not isinstance(raw, RawReference):
        return {name for item in raw for name in _macro_names(item)}
    if isinstance(raw, Expression):
        return _macro_names(list(raw.operands))
    return set()


def _holds_a_name(raw: Any) -> bool:
    """Whether a raw value refers to anything."""
    return bool(_macro_names(raw)) or any(isinstance(node, RawReference) for node in walk(raw))


def _macro_name(statement: RawStatement) -> str:
    return "/".join((*statement.scope, statement.name))


def _substitute_raw(value: Any, leaf) -> Any:
    if isinstance(value, RawReference | RawMacro):  # tuples by construction: leaves all the same
        return leaf(value)
    if type(value) is dict:
        return unique_keys((_substitute_raw(k, leaf), _substitute_raw(v, leaf)) for k, v in value.items())
    if type(value) in (list, tuple):
        return type(value)(_substitute_raw(item, leaf) for item in value)
    if isinstance(value, Expression):
        return Expression(value.operator, tuple(_substitute_raw(operand, leaf) for operand in value.operands))
    return leaf(value)


def _required(value: Any) -> bool:
    return isinstance(value, Constant) and (value.value is gin.REQUIRED or value == LEFT_OUT)


def _unchecked(info: Configurable, spec: ParameterSpec) -> str:
    return (
        f"{info.name}.{spec.name} cannot be fully checked: its annotation {spec.unresolved!r} names something that "
        "does not exist at run time (imported under TYPE_CHECKING?)"
    )


def _is_unknown(value: Any) -> bool:
    return any(isinstance(node, _Unknown) for node in walk(value))


def _whole_division(written: Any, value: Any) -> str:
    """A hint for who divides where a whole number is wanted."""
    divides = isinstance(written, Expression) and any(
        isinstance(n, Expression) and n.operator == "/" for n in walk(written)
    )
    return "; // divides into a whole number" if divides and type(value) is float else ""


def _unknown_parameter(info: Configurable, parameter: str) -> str:
    known = list(info.parameters)
    takes = f"; it takes {', '.join(known)}" if known and len(known) <= 8 else ""
    hint = did_you_mean(parameter, known)
    return f"{info.name} has no parameter {parameter!r}{hint or takes}"

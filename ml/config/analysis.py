"""Statements to bindings: names looked up, macros expanded, values checked. Builds nothing."""

import importlib.util  # noqa: F401  (gin needs it imported to look for files)
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import gin

from ml.config import gin_internals
from ml.config.canonical import canonical
from ml.config.configurable import reference_to
from ml.config.errors import Problem, did_you_mean
from ml.config.grammar import RawReference
from ml.config.lost import Lost
from ml.config.macros import macro_name, macro_names
from ml.config.names import Names
from ml.config.operations import Key, OperationProblem, held_by, operate, unset_of
from ml.config.parsing import RawImport, RawStatement
from ml.config.resolution import Resolver, is_unknown
from ml.config.signatures import Configurable, ParameterSpec
from ml.config.statements import Binding, Import, Layer, MacroDefinition, Unset
from ml.config.types import mismatch, takes_constructor
from ml.config.values import LEFT_OUT, REMOVED, Constant, Expression, to_text, walk


@dataclass
class Analysis:
    """The meaning of a list of statements.

    Attributes:
        bindings: The bindings without an error, in order.
        macros: All macro definitions, in order; the last of each name is in force.
        imports: The imported modules.
        problems: Errors.
        warnings: Bindings in force that cannot be checked.
        idle: Problems of statements that have no effect (warnings with `allow_unused_bindings`).
        unset: The statements that removed bindings; the removed ones are not in `bindings`.
    """

    bindings: list[Binding] = field(default_factory=list)
    macros: list[MacroDefinition] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    idle: list[Problem] = field(default_factory=list)
    unset: list[Unset] = field(default_factory=list)


class Analyzer:
    """Turns statements into bindings, and collects all errors in them.

    Args:
        statements: The statements of all files and flags, in order.
        lost: The statements lost to an error; what follows from their absence is not reported.
        names: The names of configurables.
        shipped: The sources of statements that come with Juniper.
    """

    def __init__(
        self, statements: list[RawStatement | RawImport], lost: Lost, names: Names, shipped: Collection[str] = ()
    ):
        self._statements = statements
        self._lost = lost
        self._names = names
        self._resolver = Resolver(statements, lost, names, shipped)
        self._analysis = Analysis(problems=self._resolver.problems, idle=self._resolver.idle)
        self._problem = self._resolver.problem
        self._broken: set[Key] = set()  # keys of lines with a problem
        self._broken_macros: set[str] = set()

    def run(self) -> Analysis:
        """Returns the analysis of all statements."""
        for order, statement in enumerate(self._statements):
            if isinstance(statement, RawImport):
                self._analysis.imports.append(Import(*statement))
                continue
            self._resolver.place = (statement.location, statement.text)
            if statement.parameter:
                self._binding(statement, order)
            else:
                self._macro(statement, order)
        for name, parameter, text in self._lost.bindings():
            self._lose(name, parameter, may_select="@" in text or "%" in text)
        self._unused_macros()
        return self._analysis

    def _macro(self, statement: RawStatement, order: int) -> None:
        name = macro_name(statement)
        if gin_internals.constants().matching_selectors(name):
            self._problem(f"macro {name!r} has the name of a constant, which gin would use instead; rename the macro")
            return
        if statement.entries or statement.operator != "=":
            self._problem(f"{name} is a macro, and operations change parameters only: define it in full")
            return
        before = self._resolver.num_faults
        value = self._resolver.resolve(statement.value)
        if self._resolver.num_faults > before:
            self._broken_macros.add(name)
        self._analysis.macros.append(MacroDefinition(name, value, statement.layer, statement.location, order))

    def _binding(self, statement: RawStatement, order: int) -> None:
        before = self._resolver.num_faults
        self._add_binding(statement, order)
        if self._resolver.num_faults > before:
            self._lose(statement.name, statement.parameter, _holds_a_name(statement.value))

    def _lose(self, name: str, parameter: str, may_select: bool) -> None:
        """Records a statement that has no effect because of an error in it."""
        found = self._names.find(name)
        spec = found[0].spec(parameter) if len(found) == 1 else None
        self._lost.add(parameter, takes_constructor(spec.annotation) if spec else may_select)

    def _add_binding(self, statement: RawStatement, order: int) -> None:
        info = self._resolver.lookup(statement.name)
        parent = None
        if statement.layer is Layer.PARENT:
            statement, parent = self._parent(statement)
        written = self._resolver.resolve(statement.value)
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
        """The binding of a statement; None if there is a problem."""
        spec = info.spec(statement.parameter)
        assert spec is not None  # `_add_binding` has checked
        operation = ""
        if statement.entries or statement.operator != "=":
            operated = self._operated(statement, info, written)
            if operated is None:
                return None
            written, statement, operation = operated
        states = self._resolver.states(written, statement, order)
        value, location = states[-1].value, states[-1].location
        if is_unknown(value):
            return None
        self._resolver.place = (location, statement.text)
        if any(node == REMOVED for node in walk(value)):
            self._problem(f"%{REMOVED.name} must be the whole value of a parameter or of an entry")
            return None
        if not _required(value) and (wrong := mismatch(value, spec.annotation)):
            self._problem(f"{info.name}.{statement.parameter} {wrong}{_whole_division(written, value)}")
            return None
        if spec.unresolved and statement.layer.explicit:
            self._analysis.warnings.append(Problem(location, _unchecked(info, spec), statement.text))
        if statement.layer >= Layer.IMPORTED:  # saved defaults keep the spelling of the code
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
        """`Parent/place/Name.parameter` without the parent, and the configurable of the parent."""
        if len(statement.scope) < 2:
            self._problem("a default from a parent must be written as Parent/child/Name.parameter")
            return statement, None
        parent = self._resolver.lookup(self._names.of_scope(statement.scope[0]))
        return statement._replace(scope=statement.scope[1:]), parent

    def _operated(
        self, statement: RawStatement, info: Configurable, operand: Any
    ) -> tuple[Any, RawStatement, str] | None:
        """The value after an operation, the statement located at both statements, and the operation as text."""
        key = Key(statement.scope, info, statement.parameter)
        if key in self._broken:
            self._resolver.num_faults += 1
            return None
        written = [self._resolver.resolve(entry) for entry in statement.entries]
        entries = [self._resolver.expand(entry) for entry in written]
        if statement.operator == "-=" or type(operand) not in (list, tuple):
            value = operand if operand == REMOVED else self._resolver.expand(operand)
        else:
            value = operand
        if is_unknown([*entries, value]):
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
        """Removes the earlier bindings of exactly this key."""
        try:
            unset = unset_of(self._analysis.bindings, key, statement.layer, statement.location, order)
        except OperationProblem as problem:
            if key not in self._broken:
                self._problem(str(problem))
            return
        self._analysis.bindings = [b for b in self._analysis.bindings if b not in unset.removed]
        self._analysis.unset.append(unset)

    def _unused_macros(self) -> None:
        read = self._resolver.read_macros
        for name, defined in self._resolver.macros.definitions.items():
            statement = defined[-1][1]
            if name in read or name in self._broken_macros or self._lost.reads(name):
                continue
            self._resolver.place = (statement.location, statement.text)
            self._problem(f"macro {name!r} is never used{self._suggestion(name)}", idle=True)

    def _suggestion(self, name: str) -> str:
        """A parameter or a used macro with a similar name."""
        if "_" not in name:
            return did_you_mean(name, self._resolver.read_macros)
        dotted = [f"{n}.{p}" for n in self._names.known() for info in self._names.find(n)[:1] for p in info.parameters]
        return did_you_mean(name.replace("_", ".", 1), dotted)


def _holds_a_name(raw: Any) -> bool:
    """True if a raw value refers to anything."""
    return bool(macro_names(raw)) or any(isinstance(node, RawReference) for node in walk(raw))


def _required(value: Any) -> bool:
    return isinstance(value, Constant) and (value.value is gin.REQUIRED or value == LEFT_OUT)


def _unchecked(info: Configurable, spec: ParameterSpec) -> str:
    return (
        f"{info.name}.{spec.name} cannot be fully checked: its annotation {spec.unresolved!r} names something that "
        "does not exist at run time (imported under TYPE_CHECKING?)"
    )


def _whole_division(written: Any, value: Any) -> str:
    """A hint on `/` where an integer is expected."""
    divides = isinstance(written, Expression) and any(
        isinstance(n, Expression) and n.operator == "/" for n in walk(written)
    )
    return "; use // for integer division" if divides and type(value) is float else ""


def _unknown_parameter(info: Configurable, parameter: str) -> str:
    known = list(info.parameters)
    takes = f"; it takes {', '.join(known)}" if known and len(known) <= 8 else ""
    hint = did_you_mean(parameter, known)
    return f"{info.name} has no parameter {parameter!r}{hint or takes}"

"""Statements of configuration files, with the layer and the place of each."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import gin

from ml.config.configurable import Configurable, reference_to
from ml.config.errors import Location, SavedOrigin
from ml.config.values import LEFT_OUT, Constant, short_name, to_text

UNSET = object()
CODE_KEY = "juniper.code"  # the SHA-256 of each file of code that a run imported


def as_scope(name: str) -> str:
    """Returns a name with a module as a scope component, which contains no dots."""
    return name.replace(".", "__")


class Layer(enum.IntEnum):
    """The source of a value, in order of precedence, lowest first (rule 8).

    `DEFAULT` and `PARENT` are the defaults in a saved operative config, of the code and of parents for their children.
    `FILE` and `FLAG` have equal precedence; rule 3 decides between them.
    """

    DEFAULT = 0
    PARENT = 1
    IMPORTED = 2
    FILE = 3
    FLAG = 4

    @property
    def strength(self) -> int:
        """The precedence: a binding of greater strength wins regardless of scopes."""
        return min(self, Layer.FILE)

    @property
    def explicit(self) -> bool:
        """True if a user set it."""
        return self >= Layer.FILE


class State(NamedTuple):
    """The value of a binding from one statement on: its own, or a later one that redefines a macro in it.

    Attributes:
        value: The value with its macros expanded.
        order: The order of the statement.
        source: The layer that determined the value.
        location: The place of the binding, with that of the redefinition.
    """

    value: Any
    order: int
    source: Layer
    location: Location

    @property
    def origin(self) -> SavedOrigin:
        """The source and the place that first set the value, before a saved operative config was loaded."""
        saved = self.location.saved
        source = self.source.name.lower() if saved is None or self.location.via else saved.source
        return SavedOrigin(source, self.location.origin)


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """`scope/Name.parameter = value`.

    Attributes:
        scope: The patterns of a place (rule 2); with a parent, the place of the child below it.
        configurable: The configurable.
        parameter: The parameter.
        written: The value with its macros.
        value: The value with its macros expanded.
        layer: The layer of the statement.
        location: The place of the statement, with that of a later macro definition that determined the value.
        order: The number of the statement, from 0, over all files and flags.
        constructs: Whether the parameter takes a constructor.
        states: The values over time, earliest first; the last one is in force.
        parent: In the layer `PARENT`, the configurable that suggests the value to the child in `scope`; else None.
        operation: The text after the key, if the statement changes an earlier value: ` += [@TensorBoard]`. Else empty.
    """

    scope: tuple[str, ...]
    configurable: Configurable
    parameter: str
    written: Any
    value: Any
    layer: Layer
    location: Location
    order: int
    constructs: bool = False
    states: tuple[State, ...] = ()
    parent: Configurable | None = None
    operation: str = ""

    @property
    def key(self) -> str:
        """`scope/Name.parameter` with short names, after the parent if there is one."""
        return self.key_by(short_name)

    def key_by(self, spell: Callable[[Configurable], str]) -> str:
        """Returns the key with the names that `spell` gives to configurables; a scope contains no dots."""
        parent = (as_scope(spell(self.parent)),) if self.parent else ()
        return "/".join((*parent, *self.scope, f"{spell(self.configurable)}.{self.parameter}"))

    @property
    def source_name(self) -> str:
        """The file or flag of the statement itself, rather than of the value that it changes."""
        return self.states[0].location.last.source if self.operation else self.location.source

    @property
    def settled(self) -> int:
        """The order of the last statement that determined the value, since a macro can be redefined later."""
        return self.states[-1].order

    @property
    def source(self) -> Layer:
        """The layer that determined the value, such as that of a flag that redefined a macro in it."""
        return self.states[-1].source

    @property
    def identity(self) -> tuple:
        """A key that is equal for two bindings if the later one replaces the earlier one."""
        return (self.parent, self.scope, self.configurable.selector, self.parameter, self.layer.strength)

    @property
    def requires(self) -> bool:
        """True if the value is `%gin.REQUIRED`: the parameter must be set by another binding."""
        return isinstance(self.value, Constant) and self.value.value is gin.REQUIRED

    @property
    def is_left_out(self) -> bool:
        """True if the value is `%juniper.left_out`: the option was set in a saved run, without effect."""
        return self.value == LEFT_OUT

    def text(self, written: bool = False, spell: Callable[[Configurable], str] = short_name) -> str:
        """Returns the statement as gin text.

        Args:
            written: Whether macros and operations are kept as written instead of expanded.
            spell: Returns the name of a configurable.
        """
        if written and self.operation:
            return f"{self.key_by(spell)}{self.operation}"
        value = self.written if written else self.value
        return f"{self.key_by(spell)} = {to_text(value, reference_to, spell)}"


@dataclass(frozen=True, slots=True, eq=False)
class Unset:
    """`scope/Name.parameter = %juniper.unset`.

    Attributes:
        binding: The statement itself; its state before the last has the removed value.
        removed: The bindings that it removed, in order.
    """

    binding: Binding
    removed: tuple[Binding, ...]


@dataclass(frozen=True, slots=True, eq=False)
class MacroDefinition:
    """`NAME = value`.

    Attributes:
        name: The macro.
        written: The value with its macros.
        layer: The layer of the statement.
        location: The place of the statement.
        order: The number of the statement, from 0, over all files and flags.
    """

    name: str
    written: Any
    layer: Layer
    location: Location
    order: int

    @property
    def source_name(self) -> str:
        """The file or flag of the statement."""
        return self.location.source

    def text(self, written: bool = False, spell: Callable[[Configurable], str] = short_name) -> str:
        """Returns the statement as gin text, always with its macros as written."""
        return f"{self.name} = {to_text(self.written, reference_to, spell)}"


@dataclass(frozen=True, slots=True)
class Import:
    """`import module`, which registers configurables.

    Attributes:
        text: The statement as written.
        module: The full name of the module.
        location: The place of the statement.
    """

    text: str
    module: str
    location: Location

"""What configuration files say, statement by statement, with the layer and the place of each."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import gin

from ml.config.configurable import Configurable, reference_to
from ml.config.errors import Location
from ml.config.values import LEFT_OUT, Constant, short_name, to_text

UNSET = object()
CODE_KEY = "juniper.code"  # the SHA-256 of each file of code that a run imported


def as_scope(name: str) -> str:
    """A name with module components as a scope, which holds no dots."""
    return name.replace(".", "__")


class Layer(enum.IntEnum):
    """Who set a value, weakest first (rule 8).

    `DEFAULT` and `PARENT` are the defaults of its time that a saved operative config remembers: the first of the code,
    the second of parents for their children. `FILE` and `FLAG` are equally strong: between them rule 3 decides.
    """

    DEFAULT = 0
    PARENT = 1
    IMPORTED = 2
    FILE = 3
    FLAG = 4

    @property
    def strength(self) -> int:
        """Bindings of a greater strength win whatever their scopes."""
        return min(self, Layer.FILE)

    @property
    def explicit(self) -> bool:
        """Whether a user set it."""
        return self >= Layer.FILE


class State(NamedTuple):
    """The value of a binding from one statement on: its own, or a later one that redefined a macro in it.

    Attributes:
        value: the value with the macros replaced by what they held.
        order: of the statement.
        source: the layer that decided the value.
        location: of the binding, with that of the redefinition.
    """

    value: Any
    order: int
    source: Layer
    location: Location


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """`scope/Name.parameter = value`.

    Attributes:
        scope: the patterns of a place (rule 2); with a parent, the place of the child below it.
        written: the value with its macros, as its author wrote it.
        value: the value with the macros replaced by what they hold.
        order: counts statements from 0, over all files and flags.
        location: of the statement, with that of the macro definition that decided the value, if it came later.
        constructs: whether the parameter takes a constructor.
        states: the values that it had, oldest first; the last one is in force.
        parent: in the layer `PARENT` the configurable that suggests the value to the child in `scope`, else None.
        operation: what follows the key in the statement, where that builds on an earlier value: ` += [@TensorBoard]`.
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
        """`scope/Name.parameter`, with the short name of the configurable, and that of the parent in front."""
        return self.key_by(short_name)

    def key_by(self, spell: Callable[[Configurable], str]) -> str:
        """Likewise, with the name that `spell` gives to a configurable; a scope holds no dots."""
        parent = (as_scope(spell(self.parent)),) if self.parent else ()
        return "/".join((*parent, *self.scope, f"{spell(self.configurable)}.{self.parameter}"))

    @property
    def source_name(self) -> str:
        """The file or flag that holds the statement itself, not the one that it builds on."""
        return self.states[0].location.last.source if self.operation else self.location.source

    @property
    def settled(self) -> int:
        """The order of the last statement that made the value what it is: a macro may be redefined later."""
        return self.states[-1].order

    @property
    def source(self) -> Layer:
        """The layer that decided the value: that of the flag, where a flag redefined a macro in it."""
        return self.states[-1].source

    @property
    def identity(self) -> tuple:
        """Equal for two bindings of which the later replaces the earlier."""
        return (self.parent, self.scope, self.configurable.selector, self.parameter, self.layer.strength)

    @property
    def requires(self) -> bool:
        """Whether it only says that somebody must set the parameter: `%gin.REQUIRED`."""
        return isinstance(self.value, Constant) and self.value.value is gin.REQUIRED

    @property
    def is_left_out(self) -> bool:
        """Whether it only says that a saved run had an option here, without effect: `%juniper.left_out`."""
        return self.value == LEFT_OUT

    def text(self, written: bool = False, spell: Callable[[Configurable], str] = short_name) -> str:
        """The statement as gin text."""
        if written and self.operation:
            return f"{self.key_by(spell)}{self.operation}"
        value = self.written if written else self.value
        return f"{self.key_by(spell)} = {to_text(value, reference_to, spell)}"


@dataclass(frozen=True, slots=True, eq=False)
class Unset:
    """`scope/Name.parameter = %juniper.unset`.

    Attributes:
        binding: the statement itself, whose state before the last is what it removed.
        removed: the bindings that it removed, in order.
    """

    binding: Binding
    removed: tuple[Binding, ...]


@dataclass(frozen=True, slots=True, eq=False)
class MacroDefinition:
    """`NAME = value`."""

    name: str
    written: Any
    layer: Layer
    location: Location
    order: int

    @property
    def source_name(self) -> str:
        """The file or flag that holds the statement."""
        return self.location.source

    def text(self, written: bool = False, spell: Callable[[Configurable], str] = short_name) -> str:
        """The statement as gin text, with its macros either way."""
        return f"{self.name} = {to_text(self.written, reference_to, spell)}"


@dataclass(frozen=True, slots=True)
class Import:
    """`import module`, which registers configurables."""

    text: str
    module: str
    location: Location

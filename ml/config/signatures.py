"""Signatures of configurables: names, types and defaults of their parameters."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

EMPTY = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One parameter of a configurable, as declared in its signature.

    Attributes:
        name: The name.
        annotation: The resolved annotation.
        default: The default; `EMPTY` if the caller must pass it, `gin.REQUIRED` if a configuration must set it.
        unresolved: The annotation as written, if a name in it does not exist at run time; else empty.
    """

    name: str
    annotation: Any
    default: Any
    unresolved: str = ""


class Neutral(NamedTuple):
    """Declaration that a parameter changes no result of a run.

    Attributes:
        rounding: Whether results are equal within rounding only, and not bitwise.
        only_if: Returns whether the declaration holds, given what is built; None for always.
    """

    rounding: bool = False
    only_if: Callable[[Any], bool] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Configurable:
    """A class or function that configuration files can name.

    Attributes:
        name: The short name.
        selector: The unique full name, with the module.
        target: The class or function that Python code uses.
        constructor: The original `__init__` or function, not wrapped by gin.
        parameters: The parameters that can be bound, by name, in order of the signature.
        positional: The names of the parameters that can be passed by position (without `self`).
        extra: The `**kwargs` parameter, which accepts parameters of any other name; None if there is none.
        closed: The names that no configuration can bind.
        imported: Whether it was registered by a module that a configuration imported, not by the program.
    """

    name: str
    selector: str
    target: Callable[..., Any] = field(repr=False)
    constructor: Callable[..., Any] = field(repr=False)
    parameters: dict[str, ParameterSpec] = field(repr=False)
    positional: tuple[str, ...] = field(repr=False)
    extra: ParameterSpec | None = field(default=None, repr=False)
    closed: frozenset[str] = field(default=frozenset(), repr=False)
    imported: bool = field(default=False, repr=False)

    def spec(self, parameter: str) -> ParameterSpec | None:
        """Returns the declaration of a parameter that can be bound, by name or by `**kwargs`; None if there is none."""
        found = self.parameters.get(parameter)
        if found is None and self.extra is not None and parameter not in self.closed:
            return replace(self.extra, name=parameter)
        return found

    @property
    def package(self) -> str:
        """The package of the module that defines it."""
        return self.selector.rpartition(".")[0].rpartition(".")[0]

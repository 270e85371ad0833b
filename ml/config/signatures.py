"""Signatures of configurables: names, types and defaults of their parameters."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

EMPTY = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One parameter of a configurable, as its signature declares it."""

    name: str
    annotation: Any
    default: Any  # EMPTY where the caller must pass it, gin.REQUIRED where a configuration must set it
    unresolved: str = ""  # the annotation as written, where it names something that does not exist at run time


@dataclass(frozen=True, slots=True, eq=False)
class Configurable:
    """A class or function that configuration files can name.

    Attributes:
        name: what files call it.
        selector: the name with its module, which is unique.
        target: the class or function as Python code sees it.
        constructor: the plain `__init__` or function, which gin does not touch.
        parameters: what can be bound, by name, in order of the signature.
        positional: the names of the parameters that can be passed by position (without `self`).
        extra: the `**kwargs` parameter, which stands for parameters of any other name; None where there is none.
        closed: names that no configuration can bind.
        imported: whether a module that a configuration imported registered it, and not the program itself.
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
        """The declaration of a parameter that can be bound, by its name or by `**kwargs`; None where there is none."""
        found = self.parameters.get(parameter)
        if found is None and self.extra is not None and parameter not in self.closed:
            return replace(self.extra, name=parameter)
        return found

    @property
    def package(self) -> str:
        """The module that defines it, without the last component."""
        return self.selector.rpartition(".")[0].rpartition(".")[0]

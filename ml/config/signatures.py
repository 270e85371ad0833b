"""Signatures of configurables: names, types and defaults of their parameters."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

EMPTY = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One parameter of a configurable, as its signature declares it."""

    name: str
    annotation: Any
    default: Any  # EMPTY where the caller must pass it, gin.REQUIRED where a configuration must set it


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
        open_ended: whether it takes `**kwargs`, and so parameters of any name.
    """

    name: str
    selector: str
    target: Callable[..., Any] = field(repr=False)
    constructor: Callable[..., Any] = field(repr=False)
    parameters: dict[str, ParameterSpec] = field(repr=False)
    positional: tuple[str, ...] = field(repr=False)
    open_ended: bool = field(default=False, repr=False)

    @property
    def package(self) -> str:
        """The module that defines it, without the last component."""
        return self.selector.rpartition(".")[0].rpartition(".")[0]

"""Functions that constructors call: they build children and check parameters, with or without a configuration."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import gin

from ml.config.configurable import active, find
from ml.config.copies import Copier
from ml.config.errors import ParameterError
from ml.config.suggestions import unbound

_Product = TypeVar("_Product")
_NOTHING: Mapping[str, Any] = {}


def child(
    name: str,
    constructor: Callable[..., _Product],
    *args: Any,
    defaults: Mapping[str, Any] = _NOTHING,
    derived: Mapping[str, Any] = _NOTHING,
    **kwargs: Any,
) -> _Product:
    """Builds a child inside the scope `name`, the attribute to which it is assigned.

    Args:
        name: The scope.
        constructor: The constructor of the child.
        args: With `kwargs`, the values that the parent determines (shapes). Binding one of these is an error.
        defaults: Values that replace the child's own defaults. A binding overrides them.
        derived: Like `defaults`, for values that follow from the parent's own parameters, and so are not saved.
        kwargs: See `args`.

    Returns:
        The child.
    """
    build = active.build
    if build is not None:
        return build.child(name, constructor, args, kwargs, defaults, derived)
    info = find(constructor)
    bound = gin.get_bindings(info.selector, resolve_references=False) if info and (defaults or derived) else _NOTHING
    return constructor(*args, **{**unbound(constructor, defaults, derived, bound), **kwargs})


def children(
    names: Iterable[str], constructor: Callable[..., _Product], *args: Any, copier: Copier, **kwargs: Any
) -> dict[str, _Product]:
    """Builds several children from equal arguments, each with `child` in its scope.

    A child is a copy of an earlier one if nothing distinguishes the two: the same bindings reach both, everything in it
    was built by repeatable constructors from plain values, and without a problem.

    Args:
        names: The scopes.
        constructor: The constructor of the children.
        args: With `kwargs`, the values that the parent determines: numbers and strings.
        copier: Makes the copies.
        kwargs: See `args`.

    Returns:
        The children by name.
    """
    if active.build is None:
        return {name: child(name, constructor, *args, **kwargs) for name in names}
    return active.build.children(names, constructor, args, kwargs, copier)


def require(condition: bool, parameter: str, message: str) -> None:
    """Checks a parameter in its constructor. The error names the binding that set it.

    While a configuration is being checked, errors are collected and construction continues.

    Example: `require(num_heads > 0, "num_heads", f"must be positive, not {num_heads}")`.

    Args:
        condition: Whether the value is valid.
        parameter: The name of the parameter.
        message: The message, as text that follows the parameter's name.

    Raises:
        ParameterError: The condition is false, outside a build.
        ConfigError: The condition is false, inside a build.
    """
    if condition:
        return
    if active.build is None:
        raise ParameterError(parameter, message)
    active.build.parameter_problem(parameter, message)


def unused(condition: bool, parameter: str, *because: str) -> None:
    """Declares that a parameter of the running constructor has no effect if a condition holds.

    If it has no effect anywhere, binding it is an error, unless a later source set the parameter that disables it.

    Example: `unused(mlp is None, "mlp_norm", "mlp")`.

    Args:
        condition: Whether the parameter has no effect.
        parameter: The name of the parameter.
        because: The parameters, of this constructor or of an enclosing one, whose values disable it.
    """
    if condition and active.build is not None:
        active.build.unused(parameter, because)

"""Bindings whose values are Python objects: `{"Linear.bias": False, "block_3/DecoderBlock.mixer": Mamba2}`."""

import re
from collections.abc import Mapping
from typing import Any

from ml.config.configurable import reference_to
from ml.config.errors import Location, Problem
from ml.config.grammar import RawMacro, RawReference
from ml.config.parsing import RawStatement
from ml.config.statements import Layer
from ml.config.values import Constant, Reference, UnwritableError, substitute, to_text

_KEY = re.compile(r"([^\s/=]+/)*[A-Za-z_][\w.]*")


def python_statements(bindings: Mapping[str, Any], flag: str) -> tuple[list[RawStatement], list[Problem]]:
    """Converts bindings with Python values to statements.

    Args:
        bindings: Values by keys in gin's syntax, `scope/Name.parameter`, or `NAME` for a macro. A configurable class or
            function represents a reference to it.
        flag: The name of the bindings in locations.

    Returns:
        The statements, and a problem for each binding that has none.
    """
    statements, problems = [], []
    for key, value in bindings.items():
        location = Location(f"{flag}[{key!r}]")
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            problems.append(Problem(location, f"{key!r} is not a key such as 'scope/Name.parameter'"))
            continue
        try:
            text = f"{key} = {to_text(value, reference_to)}"
        except UnwritableError as error:
            problems.append(Problem(location, str(error)))
            continue
        *scope, name = key.split("/")
        name, _, parameter = name.rpartition(".") if "." in name else (name, "", "")
        statements.append(RawStatement(tuple(scope), name, parameter, raw_value(value), Layer.FLAG, location, text))
    return statements, problems


def raw_value(value: Any) -> Any:
    """Returns a value as the parser would read it from a file, with names in place of objects."""

    def leaf(node: Any) -> Any:
        reference = node if isinstance(node, Reference) else reference_to(node)
        if reference is not None:
            return RawReference(reference.scopes, reference.configurable.selector, reference.evaluate)
        return RawMacro(node.name) if isinstance(node, Constant) else node

    return substitute(value, leaf)

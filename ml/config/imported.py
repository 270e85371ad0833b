"""The imported layer: values of a pretrained checkpoint, weaker than any file (rule 8)."""

from dataclasses import dataclass
from typing import Any

from ml.config.errors import Location
from ml.config.parsing import RawStatement
from ml.config.python_values import raw_value
from ml.config.statements import Layer


@dataclass(frozen=True, slots=True)
class ImportedValue:
    """A binding of the imported layer: a Python value with its key in gin's syntax and where it came from.

    `layer` is weaker where the value was a default of the run that it comes from, and stays one.
    """

    key: str
    value: Any
    source: str
    layer: Layer = Layer.IMPORTED


def imported_statements(values: list[ImportedValue], first_order: int = 0) -> list[RawStatement]:
    """The imported layer as statements: it goes through the same checks as files do."""
    statements = []
    for item in values:
        *scope, key = item.key.split("/")
        name, _, parameter = key.rpartition(".")
        text = f"{item.key} = {item.value!r}"
        statements.append(
            RawStatement(tuple(scope), name, parameter, raw_value(item.value), item.layer, Location(item.source), text)
        )
    return statements

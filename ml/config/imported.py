"""The imported layer: values of a pretrained checkpoint, weaker than any file (rule 8)."""

from dataclasses import dataclass
from typing import Any

from ml.config.errors import Location
from ml.config.parsing import RawStatement
from ml.config.python_values import raw_value
from ml.config.statements import Layer


@dataclass(frozen=True, slots=True)
class ImportedValue:
    """A binding of the imported layer.

    Attributes:
        key: The key in gin's syntax, `scope/Name.parameter`.
        value: A Python value.
        source: The configuration that it comes from, for locations.
        layer: Its layer; weaker than `IMPORTED` if the value was a default in that configuration.
    """

    key: str
    value: Any
    source: str
    layer: Layer = Layer.IMPORTED


def imported_statements(values: list[ImportedValue]) -> list[RawStatement]:
    """Returns the imported layer as statements, which pass the same checks as those of files."""
    statements = []
    for item in values:
        *scope, key = item.key.split("/")
        name, _, parameter = key.rpartition(".")
        text = f"{item.key} = {item.value!r}"
        statements.append(
            RawStatement(tuple(scope), name, parameter, raw_value(item.value), item.layer, Location(item.source), text)
        )
    return statements

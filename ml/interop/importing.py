"""The configuration of a Hugging Face folder as the imported layer."""

from collections.abc import Mapping
from typing import Any

from ml.config import ImportedValue
from ml.data import ChatData, JinjaTemplate
from ml.interop.errors import InteropError
from ml.interop.families import family_of
from ml.interop.family import Family, require_plain
from ml.interop.fields import ConfigFields, key_of
from ml.interop.folder import Folder


def imported_values(folder: Folder) -> list[ImportedValue]:
    """Returns the model of a folder as bindings of the imported layer, each with its field as source.

    Raises:
        InteropError: A field is unknown, or has a value that cannot be expressed.
    """
    values = values_of(folder.config)
    if folder.has_chat_template:
        values.append(ImportedValue(key_of(ChatData, "template"), JinjaTemplate, "the chat template of the tokenizer"))
    return values


def values_of(config: Mapping[str, Any]) -> list[ImportedValue]:
    """Returns the model of a config.json as bindings of the imported layer.

    Raises:
        InteropError: A field is unknown, or has a value that cannot be expressed.
    """
    family = family_of(config)
    require_plain(config, family)
    fields = ConfigFields(config)
    values = [value for row in family.rows for value in row.imported(fields)]
    _require_known(family, fields)
    return values


def _require_known(family: Family, fields: ConfigFields) -> None:
    """Refuses fields that are neither part of the model nor known to be harmless."""
    unknown = sorted(
        name
        for name, value in fields.content.items()
        if name not in fields.read and name not in family.all_kept and value is not None
    )
    if unknown:
        listed = ", ".join(f"{name} = {fields.content[name]!r}" for name in unknown)
        raise InteropError(
            f"config.json has fields that {family.name} is not known to have, so the model may be another one: {listed}"
        )

"""The configuration of a Hugging Face folder as the imported layer."""

from collections.abc import Mapping
from typing import Any

from ml.config import ImportedValue
from ml.data import ChatData, JinjaTemplate
from ml.interop.families import family_of
from ml.interop.family import require_known, require_plain
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
    require_known(family, fields)
    return values

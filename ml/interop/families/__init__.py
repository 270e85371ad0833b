"""The families of models that are imported and exported, one file a family."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from ml.interop.errors import InteropError
from ml.interop.family import Family


@functools.cache
def families() -> tuple[Family, ...]:
    """Returns the families of all files of this folder."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        found += importlib.import_module(f"{__name__}.{module.name}").FAMILIES
    return tuple(found)


def family_of(config: Mapping[str, Any]) -> Family:
    """Returns the family of a config.json.

    Raises:
        InteropError: There is none.
    """
    kind = config.get("model_type")
    for family in families():
        if isinstance(kind, str) and kind in family.architectures:
            return family
    known = ", ".join(sorted(kind for family in families() for kind in family.architectures))
    raise InteropError(f"config.json#model_type is {kind!r}, and there is only {known}")

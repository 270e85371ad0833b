"""Libraries that only some data need."""

import importlib
from types import ModuleType

from ml.data.errors import DataError


def extra(module: str, name: str, purpose: str) -> ModuleType:
    """Imports a library that an extra of the distribution brings.

    Args:
        module: what is imported.
        name: of the extra.
        purpose: what takes the library, for the message.

    Raises:
        DataError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(f"{purpose} takes the library {module}: pip install 'juniper-trainer[{name}]'") from None

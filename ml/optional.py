"""Libraries that only some features need, each installed by an extra of the distribution."""

import importlib
from types import ModuleType

from ml.errors import UserError


def optional_import(module: str, extra: str, purpose: str, error: type[UserError] = UserError) -> ModuleType:
    """Imports a library that an extra installs.

    Args:
        module: Name of the module.
        extra: Name of the extra that installs it.
        purpose: What needs the library, the subject of the message.
        error: Type of the error.

    Raises:
        UserError: The library, or one that it needs, is not installed; of the type `error`.
    """
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        missing = cause.name or module
        raise error(f"{purpose} needs the library {missing}: pip install 'juniper-trainer[{extra}]'") from cause

"""The configurables that are registered, those of users among them. Imports everything, and so torch."""

import importlib
import inspect
from collections.abc import Sequence

import gin

from ml.cli.catalogue import DECIDED, REQUIRED, Entry, Parameter
from ml.config.configurable import candidates, known_names
from ml.config.provenance import text_of
from ml.config.signatures import EMPTY, Configurable
from ml.config.types import spell
from ml.config.values import UnwritableError
from ml.errors import UserError


def entries(modules: Sequence[str] = ()) -> list[Entry]:
    """Every configurable of Juniper and of more modules.

    Raises:
        UserError: A module cannot be imported.
    """
    for module in ("ml.training", "ml.interop.from_hugging_face", *modules):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"cannot import {module}: {error}") from error
    return [entry(info) for name in known_names() for info in candidates(name)]


def entry(info: Configurable) -> Entry:
    """One configurable."""
    parameters = [Parameter(s.name, spell(s.annotation), _default(s.default)) for s in info.parameters.values()]
    return Entry(info.name, info.selector, inspect.getdoc(info.target) or "", tuple(parameters))


def _default(value: object) -> str:
    if value is EMPTY:
        return DECIDED
    if value is gin.REQUIRED:
        return REQUIRED
    try:
        return text_of(value)
    except UnwritableError:
        return repr(value)

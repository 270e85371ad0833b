"""The origins of the statements of a saved operative config, kept in the `provenance.json` beside it."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ml.config.comparison import fingerprint
from ml.config.configurable import Configurable
from ml.config.errors import SavedOrigin
from ml.config.provenance import text_of
from ml.config.statements import Binding, Layer

PROVENANCE = "provenance.json"
_SOURCES = {layer.name.lower() for layer in Layer if layer >= Layer.IMPORTED}


def origins_of(bindings: Iterable[Binding], spell: Callable[[Configurable], str]) -> list[dict[str, str]]:
    """Returns the origin of each statement that sets or imports a value, for `provenance.json`.

    Args:
        bindings: The bindings with effect.
        spell: Returns the name of a configurable.
    """
    found = {
        f"{binding.key_by(spell)} = {text_of(binding.value, spell)}": binding.states[-1].origin
        for binding in bindings
        if binding.layer >= Layer.IMPORTED
    }
    return [{"statement": text, **origin._asdict()} for text, origin in sorted(found.items())]


def read_origins(file: Path, operative: str) -> dict[str, SavedOrigin]:
    """Reads the origins of the statements of an operative config.

    Args:
        file: The operative config.
        operative: Its text.

    Returns:
        The origins by statement; empty if nothing beside the file describes this text.
    """
    try:
        content = json.loads(file.with_name(PROVENANCE).read_text("utf-8"))
        if content["fingerprint"] != fingerprint(operative):
            return {}
        return dict(map(_origin, content.get("statements", [])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # without it, places are those in the file
        return {}


def _origin(record: Any) -> tuple[str, SavedOrigin]:
    origin = SavedOrigin(record["source"], record["location"])
    if origin.source not in _SOURCES or not isinstance(origin.location, str) or not origin.location.isprintable():
        raise ValueError("an origin is not that of a statement")
    return record["statement"], origin

"""The config.json of a model: found by the rows of its family, and verified by importing it again."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml.config import ConfigError
from ml.interop.building import model_of
from ml.interop.comparison import describe, differences
from ml.interop.errors import InteropError
from ml.interop.families import families
from ml.interop.family import Family
from ml.interop.fields import ConfigFields, Row, View
from ml.interop.importing import values_of
from ml.interop.placement import block_paths
from ml.interop.tensors import Placed, place
from ml.models import LanguageModel
from ml.models.adapters import adapted_layers, adapter_weights
from ml.training.state import named_weights

# A model that several families have is written as the first of these, else as the one with the fewest fields.
_WIDESPREAD = ("llama", "mistral", "qwen2", "qwen3")


class Expressed(NamedTuple):
    """A model in the format of Hugging Face.

    Attributes:
        family: Its family.
        config: The content of config.json.
        tensors: The places of its tensors.
    """

    family: Family
    config: dict[str, Any]
    tensors: list[Placed]


def express(model: LanguageModel, kept: Mapping[str, Any] | None = None) -> Expressed:
    """Returns the config.json that describes a model and the places of its tensors.

    Args:
        model: The model, on any device.
        kept: The config.json that it was imported with, whose spelling and further fields stay; None without one.

    Raises:
        InteropError: No family has such a model; the message names the first obstacle.
    """
    kept = kept or {}
    kind = kept.get("model_type")
    ordered = sorted(families(), key=lambda family: (kind not in family.architectures, *_plainness(family)))
    view, ours = View(model), describe(model, of_training=False)
    obstacles: dict[str, list[str]] = {}
    for family in ordered:
        config = _config(family, view, kept if kind in family.architectures else {}, ours)
        tensors, without_place = _tensors(family, model, kept if isinstance(config, str) else config)
        found = [config] if isinstance(config, str) else _obstacles(config, ours)
        found += [f"{name} has no place in the checkpoint" for name in without_place]
        if not found:
            assert not isinstance(config, str)
            return Expressed(family, family.written(config), tensors)
        obstacles[family.name] = found
        if kind in family.architectures:
            break
    name, found = min(obstacles.items(), key=lambda item: len(item[1]))
    more = f" (and {len(found) - 1} more differences)" if len(found) > 1 else ""
    raise InteropError(f"the model cannot be written in the format of {name}: {found[0]}{more}")


def _plainness(family: Family) -> tuple[int, int]:
    """Sorts the families that have another one as a special case after it."""
    known = [_WIDESPREAD.index(kind) for kind in family.architectures if kind in _WIDESPREAD]
    return min(known, default=len(_WIDESPREAD)), len(family.fields)


def _tensors(family: Family, model: LanguageModel, config: Mapping[str, Any]) -> tuple[list[Placed], list[str]]:
    """Returns the places of the tensors of a model, and the names of those without."""
    skipped = {*adapter_weights(model), *(f"{path}.base_weight" for path, _ in adapted_layers(model))}
    names = [name for name in named_weights(model) if name not in skipped]
    placed = place(family.tensors_of(config), block_paths(names), set(names), config)
    claimed = {name for one in placed for name in one.ours}
    return placed, [name for name in names if name not in claimed]


def _config(family: Family, view: View, kept: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any] | str:
    """Returns the config.json of a model in a family, or why there is none."""
    if kept and not _obstacles(kept, ours):
        return dict(kept)
    kind, architecture = next(iter(family.architectures.items()))
    config = dict(kept) or {"model_type": kind, "architectures": [architecture]}
    try:
        for row in family.rows:
            _write(row, row.exported(view), config, is_new=not kept)
    except InteropError as error:
        return str(error)
    return config


def _write(row: Row, exported: Mapping[str, Any], config: dict[str, Any], is_new: bool) -> None:
    """Writes the fields of a row, unless the fields that are there mean the same."""
    if not exported:
        return
    written = {**{name: value for name, value in config.items() if name not in row.names}, **exported}
    if is_new or _values(row, written) != _values(row, config):
        for name in row.names:
            config.pop(name, None)
        config |= exported


def _values(row: Row, config: Mapping[str, Any]) -> list[tuple[str, Any]] | None:
    try:
        return [(value.key, value.value) for value in row.imported(ConfigFields(config))]
    except InteropError:
        return None


def _obstacles(config: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Returns how the model of a config.json differs from a model."""
    try:
        theirs = model_of(values_of(config))
    except (InteropError, ConfigError) as error:
        return [str(error)]
    return differences(dict(ours), describe(theirs, of_training=False))

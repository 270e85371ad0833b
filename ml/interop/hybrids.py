"""Kinds of blocks of hybrids: of attention or a state space, with one MLP or experts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ml.interop.errors import InteropError
from ml.interop.fields import ConfigFields, Row
from ml.interop.kinds import FULL, layer_types
from ml.layers import Attention
from ml.layers.moe import MixtureOfExperts

LINEAR = "linear_attention"
# Both spellings of `layer_types`: that of released checkpoints, and that of transformers 5.
_MIXERS = {LINEAR: "mamba", "mamba": "mamba", FULL: "attention", "attention": "attention"}


def mixers(fields: ConfigFields, default: Callable[[int], str], types: dict[str, str] = _MIXERS) -> list[str]:
    """Returns the kind of each block by `layer_types`.

    Args:
        fields: The fields.
        default: The entry of a block in a config.json without them, by its index.
        types: The kinds by entry.

    Raises:
        InteropError: There is another kind of block.
    """
    found = layer_types(fields, default)
    if any(name not in types for name in found):
        raise InteropError(f"config.json#layer_types must have {' and '.join(types)}, not {', '.join(found)}")
    return [types[name] for name in found]


def indices_of_blocks(fields: ConfigFields, name: str) -> list[int] | None:
    """Returns the indices of blocks in a field; None where it is absent.

    Raises:
        InteropError: They are none of the blocks.
    """
    count, indices = fields.number("num_hidden_layers"), fields.get(name, None)
    is_list = isinstance(indices, list) and all(type(index) is int and 0 <= index < count for index in indices)
    if indices is not None and not is_list:
        raise InteropError(f"config.json#{name} must have indices of the {count} blocks, not {indices!r}")
    return indices


def mixer_of(block: Any) -> str:
    """Returns "attention" for a block with attention, else "mamba"."""
    return "attention" if isinstance(block.mixer, Attention) else "mamba"


def written_mixers(kinds: Sequence[str], types: dict[str, str] = _MIXERS) -> dict[str, Any]:
    """Returns `layer_types` and `num_hidden_layers` of blocks whose kinds start with that of their mixer."""
    names = {kind: name for name, kind in reversed(types.items())}
    return {"layer_types": [names[kind.partition("_")[0]] for kind in kinds], "num_hidden_layers": len(kinds)}


def kind_of(block: Any) -> str:
    """Returns the kind of a block: that of its mixer, and "sparse" for experts or "dense"."""
    return f"{mixer_of(block)}_{'sparse' if isinstance(block.mlp, MixtureOfExperts) else 'dense'}"


def combined(
    mixers: Mapping[str, Callable[[str], Sequence[Row]]], mlps: Mapping[str, Callable[[str], Sequence[Row]]]
) -> dict[str, Callable[[str], Sequence[Row]]]:
    """Returns the rows of each mixer with each MLP, by the kinds of `kind_of`.

    Args:
        mixers: By kind, a function from a scope to the rows.
        mlps: The same for "sparse" and "dense".
    """

    def rows(mixer: str, mlp: str, scope: str) -> tuple[Row, ...]:
        return (*mixers[mixer](scope), *mlps[mlp](scope))

    return {f"{mixer}_{mlp}": partial(rows, mixer, mlp) for mixer in mixers for mlp in mlps}


def periodic(fields: ConfigFields, name: str, period: int, offset: int) -> list[bool]:
    """Returns for each block whether it is the one of its period that has another kind.

    Args:
        fields: The fields.
        name: The start of the names of the fields with the period and the offset.
        period: The value of an absent period.
        offset: The value of an absent offset.

    Raises:
        InteropError: The offset is not within the period.
    """
    length, first = fields.number(f"{name}_layer_period", period), fields.get(f"{name}_layer_offset", offset)
    if type(first) is not int or not 0 <= first < length:
        raise InteropError(f"config.json#{name}_layer_offset must be an index in {length} blocks, not {first!r}")
    return [index % length == first for index in range(fields.number("num_hidden_layers"))]


def written_period(which: Sequence[bool], name: str) -> dict[str, int]:
    """Returns the fields that `periodic` reads.

    Args:
        which: For each block, whether it has another kind.
        name: The start of the names of the fields.

    Raises:
        InteropError: They are not at equal distances.
    """
    for period in range(1, len(which) + 2):
        for offset in range(period):
            if [index % period == offset for index in range(len(which))] == list(which):
                return {f"{name}_layer_period": period, f"{name}_layer_offset": offset}
    raise InteropError(f"the blocks of the kind {name} are not at equal distances, as the format has them")

"""The tensors of a checkpoint beside those of a model: which go where, and what does not fit."""

import collections
import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ml.interop.errors import InteropError
from ml.interop.family import Family
from ml.interop.stored_tensors import StoredTensor
from ml.interop.tensors import Placed, Same, Shape, TensorRow, place
from ml.training.checkpoints.mismatches import listed

_BLOCK = re.compile(r"(decoder\.(?:\w+\.)?block_(\d+))\.")
_TIED = ("embeddings.token.weight", "head.weight")


class Placement(NamedTuple):
    """The tensors that are read from a checkpoint.

    Attributes:
        read: The tensors of the checkpoint that are read, with their places in the model.
        fresh: The names of the model's tensors that keep their initialization.
        ignored: The names of the tensors of the checkpoint that are not read.
        equal: The names of the tensors of the checkpoint that must equal another one, which is read.
    """

    read: list[tuple[StoredTensor, Placed]]
    fresh: list[str]
    ignored: list[str]
    equal: list[tuple[StoredTensor, StoredTensor]]

    @property
    def given(self) -> frozenset[str]:
        """The names of the model's tensors that are read whole."""
        shares = collections.Counter(name for _, one in self.read for name in one.ours)
        return frozenset(name for _, one in self.read for name in one.ours if shares[name] == one.layout.share[1])


def block_paths(names: Iterable[str]) -> list[str]:
    """Returns the paths of the blocks of a decoder in order, from the names of its tensors."""
    found = {int(match[2]): match[1] for name in names if (match := _BLOCK.match(name))}
    return [found[index] for index in sorted(found)]


def placement(
    family: Family,
    config: Mapping[str, Any],
    stored: Mapping[str, StoredTensor],
    shapes: Mapping[str, Shape],
    may_lack: Collection[str] = (),
    may_differ: Sequence[str] = (),
) -> Placement:
    """Compares a checkpoint with a model.

    Args:
        family: The family of the checkpoint.
        config: The content of its config.json.
        stored: Its tensors.
        shapes: The shapes of the tensors of the model, by name.
        may_lack: Names of tensors of the model that the checkpoint need not have.
        may_differ: Patterns of names in the model that may be missing or have another shape.

    Raises:
        InteropError: They do not fit; the message lists the tensors and their shapes.
    """

    def differs(names: Iterable[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in may_differ)

    stored = _with_prefix(stored, family.prefix)
    blocks = block_paths(shapes)
    rows = family.tensors_of(config)
    placed = place(rows, blocks, shapes, config)
    placed = [
        one._replace(stored=one.other) if one.stored not in stored and one.other in stored else one for one in placed
    ]
    read, missing, misfits = [], [], []
    for one in placed:
        there = stored.get(one.stored)
        ours = [shapes[name] for name in one.ours]
        expected = one.layout.shape(ours, config) if there is not None else ()
        if there is not None and there.shape == expected:
            read.append((there, one))
        elif differs(one.ours):
            continue
        elif there is None:
            missing.append(f"{one.stored}, for {_short(one.ours)}")
        else:
            misfits.append(
                f"{one.stored} is {there.shape}; {_short(one.ours)} of the model would have {expected} there"
            )
    claimed = {name for one in placed for name in one.ours}
    missing += [
        f"{name}, which {family.name} does not have"
        for name in shapes
        if name not in claimed and name not in may_lack and not differs([name])
    ]
    used = {one.stored for one in placed}
    left = [name for name in stored if name not in used]
    equal, left = _tied(rows, stored, shapes, left)
    ignored = [name for name in left if family.is_unread(name, config)]
    unknown = [name for name in left if name not in ignored and not differs(names_in_model(name, rows, blocks))]
    problems = [
        listed("missing from the checkpoint", missing),
        listed("of another shape", misfits),
        listed("in the checkpoint and not in the model", unknown),
    ]
    if any(problems):
        raise InteropError("\n".join(["the checkpoint is of another model:", *filter(None, problems)]))
    found = Placement(read, [], [*ignored, *(name for name in left if name not in ignored)], equal)
    return found._replace(fresh=sorted(shapes.keys() - found.given))


def same_tensors(
    family: Family, config: Mapping[str, Any], stored: Mapping[str, StoredTensor], names: Collection[str]
) -> dict[str, StoredTensor]:
    """Returns the tensors of a checkpoint that are one tensor of a model as it is, by their names in the model.

    Args:
        family: The family of the checkpoint.
        config: The content of its config.json.
        stored: Its tensors.
        names: The names of the tensors of the model.
    """
    stored = _with_prefix(stored, family.prefix)
    placed = place(family.tensors, block_paths(names), names, config)
    return {one.ours[0]: stored[one.stored] for one in placed if isinstance(one.layout, Same) and one.stored in stored}


def names_in_model(name: str, rows: Sequence[TensorRow], blocks: Sequence[str]) -> list[str]:
    """Returns the names that the tensors in a tensor of a checkpoint have or would have in a model."""
    for one in rows:
        pattern = re.escape(one.stored).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{e\}", r"(?P<e>\d+)")
        if match := re.fullmatch(pattern, name):
            found = match.groupdict()
            index = int(found.get("i") or 0)
            block = blocks[index] if index < len(blocks) else f"decoder.block_{index}"
            return [ours.replace("{block}", block).replace("{e}", found.get("e") or "*") for ours in one.ours]
    return []


def _tied(
    rows: Sequence[TensorRow], stored: Mapping[str, StoredTensor], shapes: Mapping[str, Shape], left: list[str]
) -> tuple[list[tuple[StoredTensor, StoredTensor]], list[str]]:
    """Finds the head that a checkpoint of tied embeddings stores beside them: it must be equal."""
    names = {one.ours[0]: one.stored for one in rows if one.ours[0] in _TIED}
    embeddings, head = (names.get(name, "") for name in _TIED)
    if _TIED[1] in shapes or head not in left or embeddings not in stored:
        return [], left
    return [(stored[embeddings], stored[head])], [name for name in left if name != head]


def _with_prefix(stored: Mapping[str, StoredTensor], prefix: str) -> Mapping[str, StoredTensor]:
    """Adds the prefix that some checkpoints of a family lack."""
    if not prefix or any(name.startswith(prefix) for name in stored):
        return stored
    return {prefix + name: tensor for name, tensor in stored.items()}


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")

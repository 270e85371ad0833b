"""Rows that relate the tensors of a checkpoint to those of a model, with layouts that have an inverse."""

import abc
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Layout(abc.ABC):
    """Arrangement of one or more tensors of a model in one tensor of a checkpoint."""

    @property
    def share(self) -> tuple[int, int]:
        """The share of the rows of the tensor of the model, and the number of equal shares: 0 of 1 is all."""
        return 0, 1

    @abc.abstractmethod
    def join(self, parts: Sequence[Tensor], config: Mapping[str, Any]) -> Tensor:
        """Returns the tensor of the checkpoint."""

    @abc.abstractmethod
    def split(self, whole: Tensor, shapes: Sequence[Shape], config: Mapping[str, Any]) -> list[Tensor]:
        """Returns the tensors of the model, as views where possible.

        Args:
            whole: The tensor of the checkpoint, of the shape that `join` makes.
            shapes: The shapes of the tensors of the model.
            config: The fields of config.json.
        """

    def shape(self, shapes: Sequence[Shape], config: Mapping[str, Any]) -> Shape:
        """Returns the shape in the checkpoint of tensors of these shapes."""
        return tuple(self.join([torch.empty(shape, device="meta") for shape in shapes], config).shape)


class Same(Layout):
    """One tensor, as it is."""

    def join(self, parts, config):
        return parts[0]

    def split(self, whole, shapes, config):
        return [whole]


@dataclass(frozen=True)
class Share(Layout):
    """An equal share of the rows of one tensor of a model, which several tensors of the checkpoint hold.

    Args:
        index: Which share.
        count: Number of shares.
    """

    index: int
    count: int

    @property
    def share(self):
        return self.index, self.count

    def join(self, parts, config):
        return parts[0].unflatten(0, (self.count, -1))[self.index]

    def split(self, whole, shapes, config):
        return [whole]


@dataclass(frozen=True)
class Reshaped(Layout):
    """One tensor in another shape.

    Args:
        stored: The shape in the checkpoint; -1 is what remains.
    """

    stored: Shape

    def join(self, parts, config):
        return parts[0].reshape(self.stored)

    def split(self, whole, shapes, config):
        return [whole.reshape(shapes[0])]


class Transposed(Layout):
    """One matrix, transposed."""

    def join(self, parts, config):
        return parts[0].T

    def split(self, whole, shapes, config):
        return [whole.T]


@dataclass(frozen=True)
class Shifted(Layout):
    """One tensor with a number subtracted, such as a weight that is stored as w - 1."""

    by: float

    def join(self, parts, config):
        return parts[0] - self.by

    def split(self, whole, shapes, config):
        return [whole + self.by]


@dataclass(frozen=True)
class Concatenated(Layout):
    """Several tensors, concatenated along their first dimension.

    Args:
        transposed: Whether the result is transposed.
    """

    transposed: bool = False

    def join(self, parts, config):
        whole = torch.cat(list(parts))
        return whole.T if self.transposed else whole

    def split(self, whole, shapes, config):
        whole = whole.T if self.transposed else whole
        return list(whole.split([shape[0] for shape in shapes]))


@dataclass(frozen=True)
class ByHead(Layout):
    """Several tensors, concatenated head by head: the rows of head 0 of each, then those of head 1.

    Args:
        heads: The field of config.json with the number of heads, or a function that returns the number.
    """

    heads: str | Callable[[Mapping[str, Any]], int]

    def join(self, parts, config):
        heads = self._number(config)
        return torch.cat([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 1)

    def split(self, whole, shapes, config):
        heads = self._number(config)
        pieces = whole.unflatten(0, (heads, -1)).split([shape[0] // heads for shape in shapes], dim=1)
        return [piece.flatten(0, 1) for piece in pieces]

    def _number(self, config: Mapping[str, Any]) -> int:
        return config[self.heads] if isinstance(self.heads, str) else self.heads(config)


@dataclass(frozen=True)
class Stacked(Layout):
    """One or more tensors of each expert, stacked along a new first dimension.

    Args:
        transposed: Whether that of each expert is transposed.
        count: Number of tensors of an expert.
        alternating: Whether the rows of several ones alternate: row 0 of each, then row 1 (gpt-oss).
    """

    transposed: bool = False
    count: int = 1
    alternating: bool = False

    def join(self, parts, config):
        groups = [list(parts[first : first + self.count]) for first in range(0, len(parts), self.count)]
        experts = [
            torch.stack(group, dim=1).flatten(0, 1) if self.alternating else torch.cat(group) for group in groups
        ]
        return torch.stack([expert.T if self.transposed else expert for expert in experts])

    def split(self, whole, shapes, config):
        experts = [part.T if self.transposed else part for part in whole.unbind()]
        if self.alternating:
            return [piece for expert in experts for piece in expert.unflatten(0, (-1, self.count)).unbind(1)]
        rows = [shape[0] for shape in shapes[: self.count]]
        return [piece for expert in experts for piece in expert.split(rows)]


@dataclass(frozen=True)
class TensorRow:
    """Tensors of a checkpoint and of a model that are the same.

    `{i}` in a name is the index of a block, `{block}` its path in the model, `{e}` the index of an expert.

    Args:
        stored: The name in the checkpoint.
        ours: The names in the model; with `Stacked`, those of one expert, with `{e}`.
        layout: How those of the model are arranged in that of the checkpoint.
        needs: The name of another tensor of the model, without which the row is about another kind of block.
        other: Another name in the checkpoint, which some have.
        when: Whether the row is about models of a config.json; None is for all.
    """

    stored: str
    ours: tuple[str, ...]
    layout: Layout = field(default_factory=Same)
    needs: str = ""
    other: str = ""
    when: Callable[[Mapping[str, Any]], bool] | None = None


class Placed(NamedTuple):
    """One tensor of a checkpoint and the tensors of the model in it; the other name is empty where there is one."""

    stored: str
    ours: tuple[str, ...]
    layout: Layout
    other: str = ""


def row(stored: str, *ours: str, layout: Layout | None = None, **options: Any) -> TensorRow:
    """Returns a row; see `TensorRow`."""
    return TensorRow(stored, ours, Same() if layout is None else layout, **options)


def linear_rows(
    names: Mapping[str, str], kinds: Sequence[str] = ("weight", "bias"), **options: Any
) -> tuple[TensorRow, ...]:
    """Returns the rows of the weight and the bias of layers, by their names."""
    pairs = ((f"{stored}.{kind}", f"{ours}.{kind}") for stored, ours in names.items() for kind in kinds)
    return tuple(row(stored, ours, **options) for stored, ours in pairs)


def rows_within(stored: str, ours: str, names: Mapping[str, str], needs: str = "") -> tuple[TensorRow, ...]:
    """Returns the rows of single tensors below a path in the checkpoint and one in the model.

    Args:
        stored: The path in the checkpoint.
        ours: The path in the model.
        names: The names below them, of the checkpoint and of the model; one that ends in a dot has a weight and a bias.
        needs: The tensor without which the rows are about another kind of block.
    """
    spelled = [
        (name + kind, other + kind)
        for name, other in names.items()
        for kind in (("weight", "bias") if name.endswith(".") else ("",))
    ]
    return tuple(row(f"{stored}.{name}", f"{ours}.{other}", needs=needs) for name, other in spelled)


def place(
    rows: Sequence[TensorRow], blocks: Sequence[str], names: Collection[str], config: Mapping[str, Any]
) -> list[Placed]:
    """Returns the tensors of a checkpoint that hold the tensors of a model.

    Args:
        rows: The rows of the family.
        blocks: The paths of the blocks.
        names: The names of the tensors of the model; rows whose tensors it has not are skipped.
        config: The content of config.json.
    """
    found: list[Placed] = []
    for one in rows:
        if one.when is not None and not one.when(config):
            continue
        each_block = "{block}" in one.ours[0]
        for index, block in enumerate(blocks) if each_block else [(0, "")]:

            def spelled(name: str, expert: int | str = "", index: int = index, block: str = block) -> str:
                return name.replace("{block}", block).replace("{i}", str(index)).replace("{e}", str(expert))

            found += _placed(one, spelled, names)
    return found


def _placed(one: TensorRow, spelled: Callable[..., str], names: Collection[str]) -> Iterator[Placed]:
    if one.needs and spelled(one.needs) not in names:
        return
    if isinstance(one.layout, Stacked):
        spelled_names = (spelled(name, expert) for expert in itertools.count() for name in one.ours)
        ours = tuple(itertools.takewhile(names.__contains__, spelled_names))
        if ours and len(ours) % len(one.ours) == 0:
            yield Placed(spelled(one.stored), ours, one.layout, spelled(one.other))
        return
    for expert in itertools.count() if "{e}" in one.ours[0] else [""]:
        ours = tuple(spelled(name, expert) for name in one.ours)
        if not all(name in names for name in ours):
            return
        yield Placed(spelled(one.stored, expert), ours, one.layout, spelled(one.other, expert))

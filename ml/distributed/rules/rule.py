"""The registry of rules: how each kind of layer is divided over the mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from ml.distributed.local import Local, TensorAxis
from ml.distributed.mesh import MeshError


class Rule:
    """Division of one kind of layer over the mesh.

    Attributes:
        context: What a mixer needs of the earlier tokens where a sequence is divided over `Mesh.context`: the "keys" of
            all of them, the "state" after the last one, or what its "children" need alone; None where it cannot be
            divided.
    """

    context: Literal["keys", "state", "children"] | None = None

    def reach(self, layer: nn.Module) -> int | None:
        """The number of keys before its own position that a query of a mixer sees; None is all."""
        return None

    def misfit(self, layer: nn.Module, size: int) -> str | None:
        """Returns why the layer cannot be divided over `size` ranks of the tensor axis; None where it can.

        Args:
            layer: The whole layer, usually on the meta device.
            size: Number of ranks.
        """
        return None

    def parts(self, layer: nn.Module) -> Mapping[str, nn.Module]:
        """The children, by name, that are divided by their own rules, before this one."""
        return {}

    def tensor(self, layer: nn.Module, axis: TensorAxis) -> None:
        """Divides the layer over the tensor axis: places every parameter outside of `parts`.

        Args:
            layer: The layer, usually on the meta device, before FSDP.
            axis: The axis.
        """
        raise NotImplementedError

    def column(self, layer: nn.Module, local: Local) -> None:
        """Divides a linear layer within a divided layer by its outputs: each rank has all inputs."""
        raise self._refusal(layer, local, "its outputs")

    def row(self, layer: nn.Module, local: Local) -> None:
        """Divides a linear layer within a divided layer by its inputs: the outputs of the ranks are terms of a sum."""
        raise self._refusal(layer, local, "its inputs")

    def misfit_of_column(self, layer: nn.Module, size: int) -> str | None:
        """Returns why `column` cannot divide a linear layer over `size` ranks; None where it can."""
        return None

    def misfit_of_row(self, layer: nn.Module, size: int) -> str | None:
        """Returns why `row` cannot divide a linear layer over `size` ranks; None where it can."""
        return None

    def within(self, layer: nn.Module, local: Local) -> None:
        """Keeps a layer within a divided layer whole: each rank applies it to its heads or channels."""
        raise self._refusal(layer, local, "the heads of a layer")

    def channels(self, layer: nn.Module, local: Local, rows: Sequence[slice]) -> None:
        """Keeps a layer within a divided layer whole, of whose outputs, or channels, each rank computes some.

        Args:
            layer: The layer.
            local: Of the divided layer.
            rows: The outputs of this rank, in the order in which the divided layer uses them.
        """
        raise self._refusal(layer, local, "its channels")

    def _refusal(self, layer: nn.Module, local: Local, what: str) -> MeshError:
        place = f"{local.axis.paths.get(layer, '')} ({type(layer).__name__})"
        return MeshError(f"{place} has no rule that divides {what} over Mesh.tensor: register one")


_rules: dict[type[nn.Module], Rule] = {}


def register_rule(kind: type[nn.Module], rule: Rule) -> None:
    """Registers how a kind of layer, and the kinds derived from it, are divided.

    Args:
        kind: The class of the layer.
        rule: The rule; it replaces an earlier one of the same class.
    """
    _rules[kind] = rule


def find_rule(kind: type[nn.Module]) -> Rule | None:
    """The rule of a class, or of the nearest of its bases that has one; None where none has."""
    return next((_rules[base] for base in kind.__mro__ if base in _rules), None)

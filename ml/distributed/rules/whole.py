"""Rules of layers that every rank computes whole, and the walk over a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn
from torch.distributed.tensor import DTensor

from ml.distributed.local import Gradient, Local, TensorAxis
from ml.distributed.mesh import MeshError
from ml.distributed.rules.rule import Rule, find_rule
from ml.layers.protocol import Layer, Mixer


class Positionwise(Rule):
    """A layer that treats every position by itself, except for what its children do.

    Every rank computes it on its residual stream. The children are divided by their own rules.
    """

    def parts(self, layer: nn.Module) -> Mapping[str, nn.Module]:
        """All children."""
        return dict(layer.named_children())

    def tensor(self, layer: nn.Module, axis: TensorAxis) -> None:
        local = Local(axis)
        for name in list(layer._parameters):
            local.replicate(layer, name, Gradient.OF_STREAM)
        if local.has_views:
            local.around(layer)


class AllPositions(Rule):
    """A layer that may read all positions: every rank computes it, with all its children, on the whole sequence."""

    def tensor(self, layer: nn.Module, axis: TensorAxis) -> None:
        local = Local(axis)
        for part in layer.modules():
            for name in list(part._parameters):
                local.replicate(part, name, Gradient.OF_STREAM)
        local.around(layer, enter=axis.gather, leave=axis.own_positions)


_POSITIONWISE, _ALL_POSITIONS = Positionwise(), AllPositions()


def rule_of(layer: nn.Module) -> Rule:
    """The rule of a layer: the registered one, or that of layers that are not divided."""
    rule = find_rule(type(layer))
    if rule is not None:
        return rule
    is_container = isinstance(layer, nn.ModuleDict | nn.ModuleList | nn.Sequential)
    is_positionwise = isinstance(layer, Layer) and not isinstance(layer, Mixer)
    return _POSITIONWISE if is_container or is_positionwise else _ALL_POSITIONS


def divide(layer: nn.Module, axis: TensorAxis) -> None:
    """Divides a layer and its parts over the tensor axis.

    Raises:
        MeshError: A layer within a divided layer has no rule, or a parameter of it no place in the rule.
    """
    rule = rule_of(layer)
    for part in rule.parts(layer).values():
        divide(part, axis)
    rule.tensor(layer, axis)
    for name, parameter in layer.named_parameters():
        if not isinstance(parameter, DTensor):
            place = axis.paths.get(layer, type(layer).__name__)
            raise MeshError(f"{place}: the rule of {type(layer).__name__} for Mesh.tensor does not place {name}")


def misfits(layer: nn.Module, size: int, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the layers that cannot be divided over `size` ranks: their path in the model, and why."""
    rule = rule_of(layer)
    problem = rule.misfit(layer, size)
    if problem is not None:
        yield path, problem
    for name, part in rule.parts(layer).items():
        yield from misfits(part, size, f"{path}.{name}" if path else name)

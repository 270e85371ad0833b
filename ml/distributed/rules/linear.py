"""Rules of linear layers and their adapters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ml.distributed.local import Gradient, Local
from ml.distributed.rules.rule import register_rule
from ml.distributed.rules.whole import Positionwise, rule_of
from ml.layers.linear import Linear
from ml.layers.lora import DoRA, LoRA


class LinearRule(Positionwise):
    """`Linear`: W (out, in) divided by rows (`column`) or by columns (`row`), with its adapter."""

    def column(self, layer: nn.Module, local: Local) -> None:
        assert isinstance(layer, Linear)
        local.shard(layer, "weight", 0)
        local.shard(layer, "bias", 0)
        local.resize(layer, "out_features")
        if layer.adapter is not None:
            rule_of(layer.adapter).column(layer.adapter, local)

    def misfit_of_column(self, layer: nn.Module, size: int) -> str | None:
        assert isinstance(layer, Linear)
        return _misfit_of_kernel(layer, layer.in_features, layer.out_features // size)

    def misfit_of_row(self, layer: nn.Module, size: int) -> str | None:
        assert isinstance(layer, Linear)
        if problem := _misfit_of_kernel(layer, layer.in_features // size, layer.out_features):
            return problem
        if layer.adapter is not None and (problem := rule_of(layer.adapter).misfit_of_row(layer.adapter, size)):
            return problem
        dropout = 0.0 if layer.adapter is None else layer.adapter.dropout
        if not dropout or layer.in_features % size == 0:
            return None
        # Ranks that draw different numbers would disagree in every later dropout of the residual stream.
        kind = type(layer.adapter).__name__
        return (
            f"{kind}.dropout ({dropout}) needs inputs ({layer.in_features}) whose number is divisible by Mesh.tensor "
            f"({size})"
        )

    def row(self, layer: nn.Module, local: Local) -> None:
        assert isinstance(layer, Linear)
        local.shard(layer, "weight", 1)
        # Each rank adds its share, so that the sum over the ranks has the bias once.
        local.replicate(layer, "bias", Gradient.PARTIAL, scale=1 / local.axis.size)
        local.resize(layer, "in_features")
        if layer.adapter is not None:
            rule_of(layer.adapter).row(layer.adapter, local)

    def within(self, layer: nn.Module, local: Local) -> None:
        """Every rank computes all outputs, of which its heads read all: latent vectors, low-rank projections."""
        for part in layer.modules():
            for name in list(part._parameters):
                local.replicate(part, name, Gradient.PARTIAL)

    def channels(self, layer: nn.Module, local: Local, rows: Sequence[slice]) -> None:
        assert isinstance(layer, Linear)
        local.replicate(layer, "weight", Gradient.PARTIAL, rows=rows)
        local.replicate(layer, "bias", Gradient.PARTIAL, rows=rows)
        local.show_as(layer, "out_features", sum(part.stop - part.start for part in rows))
        if layer.adapter is not None:
            rule_of(layer.adapter).channels(layer.adapter, local, rows)


def _misfit_of_kernel(layer: Linear, in_features: int, out_features: int) -> str | None:
    """Returns why the kernel of a layer cannot multiply with its shard."""
    problem = None if layer.kernel is None else layer.kernel.misfit(in_features, out_features)
    return None if problem is None else f"{problem} of each rank of Mesh.tensor"


class LoRARule(Positionwise):
    """`LoRA`: B (out, rank) is divided with the outputs, A (rank, in) with the inputs; the other one is whole."""

    def column(self, layer: nn.Module, local: Local) -> None:
        local.replicate(layer, "A", Gradient.PARTIAL)
        local.shard(layer, "B", 0)

    def row(self, layer: nn.Module, local: Local) -> None:
        local.shard(layer, "A", 1)
        local.replicate(layer, "B", Gradient.PARTIAL)

    def within(self, layer: nn.Module, local: Local) -> None:
        for part in layer.modules():
            for name in list(part._parameters):
                local.replicate(part, name, Gradient.PARTIAL)

    def channels(self, layer: nn.Module, local: Local, rows: Sequence[slice]) -> None:
        local.replicate(layer, "A", Gradient.PARTIAL)
        local.replicate(layer, "B", Gradient.PARTIAL, rows=rows)


class DoRARule(LoRARule):
    """`DoRA`: as `LoRA`, with the magnitude of each output; the norms of rows that are divided are refused."""

    def column(self, layer: nn.Module, local: Local) -> None:
        super().column(layer, local)
        local.shard(layer, "magnitude", 0)

    def misfit_of_row(self, layer: nn.Module, size: int) -> str | None:
        return "DoRA needs the norms of whole rows, which Mesh.tensor divides here: take LoRA for this layer"

    def channels(self, layer: nn.Module, local: Local, rows: Sequence[slice]) -> None:
        super().channels(layer, local, rows)
        local.replicate(layer, "magnitude", Gradient.PARTIAL, rows=rows)


register_rule(Linear, LinearRule())
register_rule(DoRA, DoRARule())
register_rule(LoRA, LoRARule())

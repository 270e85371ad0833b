"""Rules of layers that hold other layers: blocks, sequences of them, and the model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ml.blocks.decoder_block import DecoderBlock
from ml.distributed.local import Gradient, Local, TensorAxis
from ml.distributed.rules.rule import find_rule, register_rule
from ml.distributed.rules.whole import Positionwise
from ml.layers.context import Context
from ml.layers.loss import LossSums
from ml.layers.mixers.stochastic_mixer import StochasticMixer
from ml.models.language_model import LanguageModel


class BlockRule(Positionwise):
    """`DecoderBlock`: own parameters of a class derived from it are shown while activations are recomputed too."""

    def tensor(self, layer: nn.Module, axis: TensorAxis) -> None:
        local = Local(axis)
        for name in list(layer._parameters):
            local.replicate(layer, name, Gradient.OF_STREAM)
        if local.has_views:
            local.around(layer, "compute")


class LanguageModelRule(Positionwise):
    """`LanguageModel`: its embeddings and its head must have rules; each pass decides how its stream is divided."""

    def misfit(self, layer: nn.Module, size: int) -> str | None:
        for name in ("embeddings", "head"):
            child = getattr(layer, name)
            if find_rule(type(child)) is None:
                return f"{type(layer).__name__}.{name} ({type(child).__name__}) has no rule for Mesh.tensor"
        return None

    def tensor(self, layer: LanguageModel, axis: TensorAxis) -> None:
        super().tensor(layer, axis)
        context, loss_in_context = layer.context, layer.loss_in_context

        def context_of_pass(tokens: Tensor, *args: Any, **kwargs: Any) -> Context:
            axis.stream.start(tokens.shape[1], axis.size, is_loss=False)
            return context(tokens, *args, **kwargs)

        def divided_loss(tokens: Tensor, *args: Any, **kwargs: Any) -> LossSums:
            axis.stream.start(tokens.shape[1], axis.size, is_loss=True)
            return loss_in_context(tokens, *args, **kwargs)

        layer.context, layer.loss_in_context = context_of_pass, divided_loss


class StochasticRule(Positionwise):
    """`StochasticMixer`: the ranks draw the same mixer."""

    context = "children"


register_rule(DecoderBlock, BlockRule())
register_rule(StochasticMixer, StochasticRule())
register_rule(LanguageModel, LanguageModelRule())

"""Rules of layers that hold other layers: blocks, sequences of them, and the model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ml.blocks.decoder_block import DecoderBlock
from ml.distributed.local import Gradient, Local, TensorAxis
from ml.distributed.rules.rule import find_rule, register_rule
from ml.distributed.rules.whole import Positionwise
from ml.layers.context import Context
from ml.layers.experts import Experts
from ml.layers.loss import LossSums
from ml.layers.mixers.parallel_mixer import ParallelMixer
from ml.layers.mixers.stochastic_mixer import StochasticMixer
from ml.models.language_model import LanguageModel


class BlockRule(Positionwise):
    """`DecoderBlock`: own parameters of a derived class are shown in `compute`, so while it is recomputed too.

    A compiled block gets local tensors: the parameters of all its layers are shown before. Those of experts, which FSDP
    may gather later, are not.
    """

    def tensor(self, layer: nn.Module, axis: TensorAxis) -> None:
        local = Local(axis)
        for name in list(layer._parameters):
            local.replicate(layer, name, Gradient.OF_STREAM)
        if local.has_views:
            local.around(layer, "compute")
        if not axis.is_compiled:
            return
        inside = [module for module in layer.modules() if module in axis.shown and not isinstance(module, Experts)]
        compiled, all_shown = layer.forward, [axis.shown[module] for module in inside]

        def forward(x: Tensor, context: Context) -> Tensor:
            for shown in all_shown:
                shown.show()
            try:
                return compiled(x, context)
            finally:
                for shown in all_shown:
                    shown.hide()

        vars(layer)["forward"] = forward


class LanguageModelRule(Positionwise):
    """`LanguageModel`: its embeddings and its head must have rules; each pass decides how its stream is divided.

    That is decided where the context is made, by each stage of a pipeline too, and again for the stretch of a sequence
    that is divided over the context axis.
    """

    def misfit(self, layer: nn.Module, size: int) -> str | None:
        for name in ("embeddings", "head"):
            child = getattr(layer, name)
            if find_rule(type(child)) is None:
                return f"{type(layer).__name__}.{name} ({type(child).__name__}) has no rule for Mesh.tensor"
        return None

    def tensor(self, layer: nn.Module, axis: TensorAxis) -> None:
        assert isinstance(layer, LanguageModel)
        super().tensor(layer, axis)
        context, loss_in_context = layer.context, layer.loss_in_context

        def context_of_pass(tokens: Tensor, *args: Any, **kwargs: Any) -> Context:
            made = context(tokens, *args, **kwargs)
            axis.stream.start(tokens.shape[1], axis.size, is_loss=made.auxiliary is not None)
            return made

        def loss_of_stretch(tokens: Tensor, *args: Any, **kwargs: Any) -> LossSums:
            axis.stream.start(tokens.shape[1], axis.size, is_loss=True)
            return loss_in_context(tokens, *args, **kwargs)

        vars(layer).update(context=context_of_pass, loss_in_context=loss_of_stretch)


class StochasticRule(Positionwise):
    """`StochasticMixer`: the ranks draw the same mixer."""

    context = "children"


class ParallelRule(Positionwise):
    """`ParallelMixer`: each mixer is divided by its own rule."""

    context = "children"


register_rule(DecoderBlock, BlockRule())
register_rule(StochasticMixer, StochasticRule())
register_rule(ParallelMixer, ParallelRule())
register_rule(LanguageModel, LanguageModelRule())

"""Rule of the language model head."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ml.distributed.collectives import Join
from ml.distributed.local import Local, TensorAxis
from ml.distributed.rules.embeddings import vocabulary_misfit
from ml.distributed.rules.rule import Rule, register_rule
from ml.distributed.rules.whole import divide, rule_of
from ml.distributed.vocabulary import divided_cross_entropy_sums, divided_distilled_sums
from ml.layers.head import LanguageModelHead
from ml.layers.loss import LossSums, Teacher


class HeadRule(Rule):
    """`LanguageModelHead`: the vocabulary is divided; no rank ever has the logits of all tokens for the loss."""

    def misfit(self, layer: nn.Module, size: int) -> str | None:
        assert isinstance(layer, LanguageModelHead)
        kind = type(layer)
        if kind.sums is not LanguageModelHead.sums:
            return f"{kind.__name__} sums its loss in its own way, which has no rule for Mesh.tensor"
        return vocabulary_misfit(f"{kind.__name__}.vocab_size", layer.vocab_size, size)

    def tensor(self, layer: nn.Module, axis: TensorAxis) -> None:
        assert isinstance(layer, LanguageModelHead)
        divide(layer.norm, axis)
        Local(axis).around(layer.norm, leave=axis.enter)
        shares, first = axis.shares(layer.vocab_size), axis.start(layer.vocab_size)
        local = Local(axis)
        local.shard(layer, "weight", 0)
        local.shard(layer, "bias", 0)
        if layer.adapter is not None:
            rule_of(layer.adapter).column(layer.adapter, local)
        for method in ("forward", "loss"):
            local.around(layer, method)
            setattr(layer, method, _with_local_weight(getattr(layer, method)))

        def sums(logits: Tensor, targets: Tensor, teacher: Teacher | None) -> LossSums:
            if teacher is None:
                return divided_cross_entropy_sums(logits, targets, layer.z_loss, first, axis.group)
            return divided_distilled_sums(logits, targets, teacher, layer.z_loss, first, axis.group)

        divided = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            return Join.apply(divided(*args, **kwargs), shares, axis.rank, axis.group)

        vars(layer).update(forward=forward, sums=sums)


def _with_local_weight(method: Any) -> Any:
    """Passes a tied weight, which is an argument, as a local tensor."""

    @functools.wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        args = tuple(value.to_local() if isinstance(value, DTensor) else value for value in args)
        kwargs = {name: value.to_local() if isinstance(value, DTensor) else value for name, value in kwargs.items()}
        return method(*args, **kwargs)

    return called


register_rule(LanguageModelHead, HeadRule())

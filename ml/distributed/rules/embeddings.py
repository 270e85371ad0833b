"""Rules of embeddings."""

from __future__ import annotations

from torch import Tensor, nn

from ml.distributed.local import Gradient, Local, TensorAxis
from ml.distributed.rules.rule import Rule, find_rule, register_rule
from ml.distributed.rules.whole import Positionwise, rule_of
from ml.layers.embedding import Embeddings, PositionEmbedding, TokenEmbedding


class EmbeddingsRule(Positionwise):
    """`Embeddings`: the sum of its parts, each of which yields the residual stream."""

    def misfit(self, layer: nn.Module, size: int) -> str | None:
        for name, child in layer.named_children():
            if find_rule(type(child)) is None:
                return f"Embeddings.{name} ({type(child).__name__}) has no rule for Mesh.tensor"
        return None


class TokenEmbeddingRule(Rule):
    """`TokenEmbedding`: the vocabulary is divided; each rank looks up its own tokens, and the results are summed."""

    def misfit(self, layer: nn.Module, size: int) -> str | None:
        assert isinstance(layer, TokenEmbedding)
        problem = vocabulary_misfit(f"{type(layer).__name__}.vocab_size", layer.weight.shape[0], size)
        if problem is None and layer.adapter is not None:
            problem = rule_of(layer.adapter).misfit_of_row(layer.adapter, size)
        return problem

    def tensor(self, layer: nn.Module, axis: TensorAxis) -> None:
        assert isinstance(layer, TokenEmbedding)
        vocab_size = layer.weight.shape[0]
        first, count = axis.start(vocab_size), axis.share(vocab_size)
        local = Local(axis)
        local.shard(layer, "weight", 0)
        if layer.adapter is not None:  # its input is a token, as one of the vocabulary
            rule_of(layer.adapter).row(layer.adapter, local)
        local.around(layer)
        inner = layer.forward

        def forward(tokens: Tensor) -> Tensor:
            indices = tokens - first
            is_own = (indices >= 0) & (indices < count)
            return axis.leave(inner(indices.where(is_own, 0)) * is_own[..., None])

        vars(layer)["forward"] = forward


class PositionEmbeddingRule(Rule):
    """`PositionEmbedding`: whole on every rank, which adds the positions of its residual stream."""

    def tensor(self, layer: nn.Module, axis: TensorAxis) -> None:
        local = Local(axis)
        local.replicate(layer, "weight", Gradient.OF_STREAM)
        local.around(layer, leave=lambda y: axis.own_positions(y if y.dim() == 3 else y[None]))


def vocabulary_misfit(name: str, vocab_size: int, size: int) -> str | None:
    """Returns why a vocabulary cannot be divided: a rank would have no token of it."""
    if -(-vocab_size // size) * (size - 1) < vocab_size:
        return None
    return f"{name} ({vocab_size}) leaves a rank of Mesh.tensor ({size}) without a token"


register_rule(Embeddings, EmbeddingsRule())
register_rule(TokenEmbedding, TokenEmbeddingRule())
register_rule(PositionEmbedding, PositionEmbeddingRule())

"""Prediction of tokens beyond the next one."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ml.blocks.decoder_block import DecoderBlock
from ml.config import child, configurable
from ml.layers.checks import MAX_COUNT, non_negative, positive
from ml.layers.context import Context
from ml.layers.linear import Linear
from ml.layers.normalization import RMSNorm
from ml.layers.protocol import Layer, NoProducts, Stack
from ml.targets import IGNORED


@configurable
class PredictionDepth(NoProducts):
    """One depth of multi-token prediction: block(projection([hidden_norm(h[t]); embedding_norm(e[t])])).

    Args:
        hidden_size: Width of the residual stream, H.
        block: Constructor of the block.
        normalization: Constructor of the two normalizations.
        linear: Constructor of the projection.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        block: Callable[..., nn.Module] = DecoderBlock,
        normalization: Callable[..., nn.Module] = RMSNorm,
        linear: Callable[..., nn.Module] = Linear,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.hidden_norm = child("hidden_norm", normalization, hidden_size)
        self.embedding_norm = child("embedding_norm", normalization, hidden_size)
        self.projection = child("projection", linear, 2 * hidden_size, hidden_size)
        self.block = child("block", block, hidden_size)

    def mixing_children(self) -> Mapping[str, nn.Module]:
        """The block."""
        return {"block": self.block}

    def forward(self, x: Tensor, embedded: Tensor, context: Context) -> Tensor:
        both = torch.cat((self.hidden_norm(x), self.embedding_norm(embedded)), dim=-1)  # (B, T, 2 H)
        return self.block(self.projection(both), context)  # (B, T, H)


@configurable
class MultiTokenPrediction(NoProducts, Stack):
    """Predicts `num_depths` further tokens, each from the hidden state of the previous depth (DeepSeek-V3, section
    2.2).

    h'_k[t] = block(projection([hidden_norm(h'_{k-1}[t]); embedding_norm(embedding(token[t + k]))])), from which the
    model's own head predicts token[t + k + 1]. The mean over the depths of Σ cross entropy / T, times `loss_weight`, is
    added to the loss of the model in training. Decoding does not use it.

    Args:
        hidden_size: Width of the residual stream, H.
        num_layers: Number of layers of the model before the depths.
        num_branches: Number of their branches that add to the residual stream.
        num_depths: Number of further tokens to predict.
        depth: Constructor of one depth.
        loss_weight: Factor of the loss that is added.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        num_branches: int,
        *,
        num_depths: int = 1,
        depth: Callable[..., nn.Module] = PredictionDepth,
        loss_weight: float = 0.3,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.num_depths = positive("num_depths", num_depths, at_most=MAX_COUNT)
        self._before = num_layers, num_branches
        self.loss_weight = non_negative("loss_weight", loss_weight)
        for index in range(self.num_depths):
            name = f"depth_{index}"
            setattr(self, name, child(name, depth, hidden_size))

    @property
    def num_layers(self) -> int:
        """Number of layers of the model and of the depths."""
        return self._before[0] + self.num_depths

    @property
    def num_branches(self) -> int:
        """Branches of the model and of the blocks of the depths."""
        return self._before[1] + sum(depth.num_branches if isinstance(depth, Layer) else 2 for depth in self.children())

    def mixing_children(self) -> Mapping[str, nn.Module]:
        """The depths."""
        return dict(self.named_children())

    def forward(self, x: Tensor, embedded: Tensor, targets: Tensor, context: Context) -> list[tuple[Tensor, Tensor]]:
        """Returns the residual stream (B, T, H) and the targets (B, T) of each depth.

        `x` is the residual stream after the last block of the model, `embedded` that before the first.
        """
        predictions: list[tuple[Tensor, Tensor]] = []
        documents = context.documents
        for depth in self.children():
            embedded, targets = context.later(embedded), context.later(targets, fill=IGNORED)
            x = depth(x, embedded, context)
            inside = targets
            if (
                documents is not None and context.documents is not None
            ):  # without targets whose input is in another document
                documents = context.later(documents, fill=-1)
                inside = targets.where(documents.eq(context.documents), IGNORED)
            predictions.append((x, inside))
        return predictions

"""Low-rank adapters."""

import math

import torch.nn.functional as F
from torch import Tensor

from ml.config import configurable
from ml.layers.checks import positive, positive_float, probability
from ml.layers.children import weight_child
from ml.layers.initialization import Initialization, normal, zeros
from ml.layers.protocol import Adapter


@configurable
class LoRA(Adapter):
    """Low-rank adapter: adds s · B A dropout(x) to the output of a linear layer, with A (rank, in) and B (out, rank)
    (Hu et al. 2021).

    To train only the adapters, freeze all parameters except theirs: `Parameter.lr_scale = 0.0` and
    `adapter/Parameter.lr_scale = 1.0`.

    Args:
        in_features: Input size of the linear layer.
        out_features: Output size of the linear layer.
        rank: Rank of the update.
        alpha: Numerator of the scale s = alpha / rank.
        rank_stabilized: Scales by alpha / √rank instead (Kalajdzievski 2023).
        dropout: Dropout probability of the adapter's input in training.
        A_initialization: Initialization of A.
        B_initialization: Initialization of B; zeros leave the layer unchanged at the start.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        rank_stabilized: bool = False,
        dropout: float = 0.0,
        A_initialization: Initialization = normal,
        B_initialization: Initialization = zeros,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        rank = positive("rank", rank)
        self.scale = positive_float("alpha", alpha) / (math.sqrt(rank) if rank_stabilized else rank)
        self.dropout = probability("dropout", dropout)
        self.draws_noise = self.dropout > 0.0
        self.A = weight_child((rank, in_features), A_initialization, name="A")
        self.B = weight_child((out_features, rank), B_initialization, name="B")

    def forward(self, x: Tensor) -> Tensor:
        """Addition to the output: (..., in) -> (..., out)."""
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        return F.linear(F.linear(x, self.A), self.B) * self.scale

    def weight(self) -> Tensor:
        """Equivalent weight (out, in) without dropout."""
        return self.B @ self.A * self.scale

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Two operations an entry of A and B forward, four backward."""
        return 6.0 * (self.A.numel() + self.B.numel())

    def extra_repr(self) -> str:
        return f"rank={self.A.shape[0]}, scale={self.scale:g}, dropout={self.dropout}"

"""Low-rank adapters."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ml.config import configurable
from ml.layers.checks import positive, positive_float, probability
from ml.layers.children import weight_child
from ml.layers.initialization import Initialization, normal, ones, zeros
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

    can_look_up = True

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

    def lookup(self, indices: Tensor) -> Tensor:
        """Addition to the rows of an embedding, without dropout: (...) -> (..., out)."""
        return F.linear(F.embedding(indices, self.A.T), self.B) * self.scale

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Two operations an entry of A and B forward, four backward."""
        return 6.0 * (self.A.numel() + self.B.numel())

    def extra_repr(self) -> str:
        return f"rank={self.A.shape[0]}, scale={self.scale:g}, dropout={self.dropout}"


@configurable
class DoRA(LoRA):
    """Weight-decomposed low-rank adapter: W' = m · ‖W‖ / ‖W + s B A‖ · (W + s B A), with norms of rows (Liu et al.
    2024).

    The magnitude m is trained relative to the norms of W, so it starts at 1, whatever W is. The norms have no gradient
    (section 4.3). Freeze the other parameters as for `LoRA`.

    Args:
        in_features: Input size of the linear layer.
        out_features: Output size of the linear layer.
        rank: Rank of the update.
        alpha: Numerator of the scale s = alpha / rank.
        rank_stabilized: Scales by alpha / √rank instead (Kalajdzievski 2023).
        dropout: Dropout probability of the adapter's input in training.
        A_initialization: Initialization of A.
        B_initialization: Initialization of B; zeros leave the layer unchanged at the start.
        magnitude_initialization: Initialization of m, (out_features).
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
        magnitude_initialization: Initialization = ones,
        lr_scale: float = 1.0,
    ):
        super().__init__(
            in_features,
            out_features,
            rank=rank,
            alpha=alpha,
            rank_stabilized=rank_stabilized,
            dropout=dropout,
            A_initialization=A_initialization,
            B_initialization=B_initialization,
            lr_scale=lr_scale,
        )
        self.magnitude = weight_child((out_features,), magnitude_initialization, name="magnitude", is_decayed=False)

    def factor(self, weight: Tensor) -> Tensor:
        """Factor of each output, (out), given the weight of the layer (out, in)."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        with torch.no_grad():
            before = weight.to(wide).norm(dim=1)
            after = (weight + self.weight()).to(wide).norm(dim=1)
            ratio = before / after.clamp(min=torch.finfo(wide).tiny)
        return self.magnitude * ratio.to(self.magnitude.dtype)

    def merged(self, weight: Tensor) -> Tensor:
        """The weight (out, in) of the adapted layer."""
        return self.factor(weight)[:, None] * super().merged(weight)

    def looked_up(self, indices: Tensor, rows: Tensor, table: Tensor) -> Tensor:
        return self.factor(table.T).to(rows.dtype) * super().looked_up(indices, rows, table)

    def adapted(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output of the adapted layer; with dropout, the change of the factor acts on the dropped input too."""
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
            product = F.linear(x, weight)
        else:
            product = y if bias is None else y - bias.to(y.dtype)
        factor = self.factor(weight).to(y.dtype)
        return y + (factor - 1) * product + factor * (F.linear(F.linear(x, self.A), self.B) * self.scale)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, magnitude={len(self.magnitude)}"

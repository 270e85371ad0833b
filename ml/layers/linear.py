"""The linear layer."""

import torch.nn.functional as F
from torch import Tensor, nn

from ml.config import child, configurable
from ml.layers.initialization import Initialization, normal, zeros
from ml.layers.parameter import Parameter, checked_lr_scale


@configurable
class Linear(nn.Module):
    """y = x Wᵀ + b, with W of shape (out_features, in_features)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        weight_initialization: Initialization = normal,
        bias_initialization: Initialization = zeros,
        lr_scale: float = 1.0,
    ):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.lr_scale = checked_lr_scale(lr_scale)
        self.weight = child(
            "weight", Parameter, (out_features, in_features), derived={"initialization": weight_initialization}
        )
        self.bias = None
        if bias:
            self.bias = child(
                "bias",
                Parameter,
                (out_features,),
                defaults={"weight_decay": 0.0},
                derived={"initialization": bias_initialization},
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Two operations an entry of W forward, four backward."""
        return 6.0 * self.in_features * self.out_features

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"

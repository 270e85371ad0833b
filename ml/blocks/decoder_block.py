"""The residual block of a decoder."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ml.config import child, configurable
from ml.layers.checks import finite, probability
from ml.layers.context import Context
from ml.layers.mixers.attention import Attention
from ml.layers.mlp import GatedMLP
from ml.layers.normalization import RMSNorm
from ml.layers.parameter import checked_lr_scale


@configurable
class DecoderBlock(nn.Module):
    """A mixer and then an MLP, each around a residual: with f one of them and s the `residual_scale`,

    "pre":  x + s · dropout(f(norm(x)))   (GPT-2, Llama)
    "post": norm(x + s · dropout(f(x)))   (Vaswani et al. 2017)

    `mixer_norm` and `mlp_norm` None are `normalization`. `mlp` None leaves the second half out.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        mixer: Callable[..., nn.Module] = Attention,
        mlp: Callable[..., nn.Module] | None = GatedMLP,
        normalization: Callable[..., nn.Module] = RMSNorm,
        mixer_norm: Callable[..., nn.Module] | None = None,
        mlp_norm: Callable[..., nn.Module] | None = None,
        norm_position: Literal["pre", "post"] = "pre",
        residual_scale: float = 1.0,
        dropout: float = 0.0,
        lr_scale: float = 1.0,
    ):
        super().__init__()
        self.norm_position = norm_position
        self.residual_scale = finite("residual_scale", residual_scale)
        self.dropout = probability("dropout", dropout)
        self.lr_scale = checked_lr_scale(lr_scale)
        self.mixer_norm = child("mixer_norm", mixer_norm or normalization, hidden_size)
        self.mixer = child("mixer", mixer, hidden_size)
        self.mlp_norm = self.mlp = None
        if mlp is not None:
            self.mlp_norm = child("mlp_norm", mlp_norm or normalization, hidden_size)
            self.mlp = child("mlp", mlp, hidden_size)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if self.norm_position == "pre":
            x = x + self.scaled(self.mixer(self.mixer_norm(x), context))  # (B, T, H) throughout
            return x if self.mlp is None else x + self.scaled(self.mlp(self.mlp_norm(x), context))
        x = self.mixer_norm(x + self.scaled(self.mixer(x, context)))
        return x if self.mlp is None else self.mlp_norm(x + self.scaled(self.mlp(x, context)))

    def scaled(self, branch: Tensor) -> Tensor:
        """The output of a mixer or MLP as it is added to the residual stream."""
        if self.dropout:
            branch = F.dropout(branch, self.dropout, self.training)
        return branch if self.residual_scale == 1.0 else branch * self.residual_scale

    def extra_repr(self) -> str:
        return f"norm_position={self.norm_position}, residual_scale={self.residual_scale}, dropout={self.dropout}"

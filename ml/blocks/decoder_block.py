"""The residual block of a decoder."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ml.config import Neutral, child, configurable, require, unused
from ml.layers.checks import finite, probability
from ml.layers.children import optional_child
from ml.layers.context import Context
from ml.layers.mixers.attention import Attention
from ml.layers.mlp import GatedMLP
from ml.layers.normalization import RMSNorm
from ml.layers.protocol import Mixer, NoProducts


@configurable(neutral={"activation_checkpointing": Neutral(rounding=True)})
class DecoderBlock(NoProducts):
    """Residual block: a mixer, then an MLP. With f one of them and s the `residual_scale`:

        "pre":  x + s · dropout(f(norm(x)))   (GPT-2, Llama)
        "post": norm(x + s · dropout(f(x)))   (Vaswani et al. 2017)

    With `parallel`: x + s · dropout(mixer(norm(x))) + s · dropout(mlp(norm(x))), each with its own norm (GPT-NeoX).

    Args:
        hidden_size: Width of the residual stream, H.
        mixer: Constructor of the mixer.
        mlp: Constructor of the MLP; None omits the second half.
        normalization: Constructor of the normalizations that `mixer_norm` and `mlp_norm` leave None.
        mixer_norm: Constructor of the normalization of the mixer; None is `normalization`.
        mlp_norm: Constructor of the normalization of the MLP; None is `normalization`.
        mixer_output_norm: Constructor of the normalization of the mixer's output (Gemma 2, OLMo 2); None applies none.
        mlp_output_norm: Constructor of the normalization of the MLP's output (Gemma 2, OLMo 2); None applies none.
        norm_position: Position of the normalization: "pre" or "post".
        parallel: Adds the mixer and the MLP of the same input, instead of one after the other.
        shared_norm: Whether a parallel MLP reads the output of `mixer_norm` (GPT-J, Falcon, Phi, Cohere) instead of its
            own norm (GPT-NeoX).
        residual_scale: Factor of each branch, s.
        dropout: Dropout probability of each branch in training.
        activation_checkpointing: Constructor of the policy that selects the activations to recompute in the backward
            pass; None saves all.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
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
        mixer_output_norm: Callable[..., nn.Module] | None = None,
        mlp_output_norm: Callable[..., nn.Module] | None = None,
        norm_position: Literal["pre", "post"] = "pre",
        parallel: bool = False,
        shared_norm: bool = False,
        residual_scale: float = 1.0,
        dropout: float = 0.0,
        activation_checkpointing: Callable[..., Callable[..., Tensor]] | None = None,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.norm_position = norm_position
        self.parallel = parallel
        require(not parallel or norm_position == "pre", "parallel", 'needs norm_position = "pre"')
        require(not parallel or mlp is not None, "parallel", "needs an mlp")
        require(parallel or not shared_norm, "shared_norm", "needs parallel = True")
        self.residual_scale = finite("residual_scale", residual_scale)
        self.dropout = probability("dropout", dropout)
        self.draws_noise = self.dropout > 0.0
        self.activation_checkpointing = optional_child("activation_checkpointing", activation_checkpointing)
        unused(mlp is None, "mlp_norm", "mlp")
        unused(shared_norm, "mlp_norm", "shared_norm")
        unused(mlp is None, "mlp_output_norm", "mlp")
        if mixer_norm is not None:
            unused(mlp is None, "normalization", "mixer_norm", "mlp")
            unused(shared_norm, "normalization", "mixer_norm", "shared_norm")
            unused(mlp is not None and mlp_norm is not None, "normalization", "mixer_norm", "mlp_norm")
        self.mixer_norm = child("mixer_norm", mixer_norm or normalization, hidden_size)
        self.mixer = child("mixer", mixer, hidden_size)
        self.mixer_output_norm = optional_child("mixer_output_norm", mixer_output_norm, hidden_size)
        self.mlp_norm = self.mlp = self.mlp_output_norm = None
        if mlp is not None:
            if not shared_norm:
                self.mlp_norm = child("mlp_norm", mlp_norm or normalization, hidden_size)
            self.mlp = child("mlp", mlp, hidden_size)
            self.mlp_output_norm = optional_child("mlp_output_norm", mlp_output_norm, hidden_size)

    @property
    def num_branches(self) -> int:
        """The branches of the mixer and, if there is one, the MLP."""
        of_mixer = self.mixer.num_branches if isinstance(self.mixer, Mixer) else 1
        return of_mixer if self.mlp is None else of_mixer + 1

    def mixing_children(self) -> Mapping[str, nn.Module]:
        """The mixer; an MLP and a normalization treat every position by itself."""
        return {"mixer": self.mixer}

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if self.activation_checkpointing is None or not torch.is_grad_enabled():
            return self.compute(x, context)
        return self.activation_checkpointing(self.compute, x, context)

    def compute(self, x: Tensor, context: Context) -> Tensor:
        """(B, T, H) -> (B, T, H)."""
        if self.parallel and self.mlp is not None:
            normed = self.mixer_norm(x)
            mixed = self.branch(normed, context, self.mixer, self.mixer_output_norm)
            normed = normed if self.mlp_norm is None else self.mlp_norm(x)
            return x + mixed + self.branch(normed, context, self.mlp, self.mlp_output_norm)
        x = self.around(x, context, self.mixer_norm, self.mixer, self.mixer_output_norm)
        if self.mlp is None or self.mlp_norm is None:
            return x
        return self.around(x, context, self.mlp_norm, self.mlp, self.mlp_output_norm)

    def around(
        self, x: Tensor, context: Context, norm: nn.Module, layer: nn.Module, output_norm: nn.Module | None
    ) -> Tensor:
        """The residual around a mixer or an MLP."""
        is_pre = self.norm_position == "pre"
        x = x + self.branch(norm(x) if is_pre else x, context, layer, output_norm)
        return x if is_pre else norm(x)

    def branch(self, x: Tensor, context: Context, layer: nn.Module, output_norm: nn.Module | None) -> Tensor:
        """The addition of a mixer or an MLP to the residual stream."""
        branch = layer(x, context)
        if output_norm is not None:
            branch = output_norm(branch)
        if self.dropout:
            branch = F.dropout(branch, self.dropout, self.training)
        return branch if self.residual_scale == 1.0 else branch * self.residual_scale

    def extra_repr(self) -> str:
        parts = f"norm_position={self.norm_position}, residual_scale={self.residual_scale}, dropout={self.dropout}"
        return f"{parts}, parallel=True" if self.parallel else parts

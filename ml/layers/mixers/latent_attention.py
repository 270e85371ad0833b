"""Multi-head latent attention."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ml.config import Neutral, child, configurable
from ml.layers.attention_kernels import (
    AttentionKernel,
    AttentionTask,
    AutomaticAttention,
    Weighting,
    mean_visible_keys,
)
from ml.layers.checks import heads_or_default, positive, positive_float, probability
from ml.layers.children import optional_child
from ml.layers.context import Context
from ml.layers.linear import Linear, Projections
from ml.layers.mixers.growing import Growing
from ml.layers.mixers.softmax_mixer import SoftmaxMixer
from ml.layers.normalization import RMSNorm
from ml.layers.rotary import Rotary, RotaryEmbedding


@configurable(neutral={"kernel": Neutral(rounding=True, only_if=lambda attention: not attention.draws_noise)})
class LatentAttention(SoftmaxMixer):
    """Multi-head latent attention: keys and values are computed from one small latent vector per token (DeepSeek-V2,
    section 2.1).

    c = key_value_norm(key_value_down(x)), k = [key_up(c), rotary(key_rotary(x))], v = value_up(c), and a query q =
    query_up(query_norm(query_down(x))), part of which is rotated. All heads share the rotary part of the key. Decoding
    caches only c and that part, and attention is computed in the latent space: q keyᵀ as (q key_up) cᵀ, the same
    product.

    Args:
        hidden_size: Width of the residual stream, H.
        num_heads: Number of heads, N; None is H / 128.
        key_value_rank: Size of the latent vector of keys and values, R.
        query_rank: Size of the latent vector of the query; None computes q as `query(x)`.
        head_size: Size of the part of query and key without rotation, D.
        rotary_size: Size of the rotated part of query and key, Dr.
        value_head_size: Size of a value head, Dv.
        normalization: Constructor of the normalizations of the latent vectors.
        rotary: Constructor of the rotary embedding; None applies none (Kimi Linear).
        window_size: Number of keys visible to a query, including its own position; None is all.
        softmax_scale: Factor of the scores; None is 1/√(D + Dr), times that of `YarnRotary.mscale_all_dim`.
        dropout: Dropout probability of the attention weights in training.
        kernel: Constructor of the attention kernel.
        linear: Constructor of the projections.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    causal = True
    separates_documents = True

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int | None = None,
        key_value_rank: int = 512,
        query_rank: int | None = None,
        head_size: int = 128,
        rotary_size: int = 64,
        value_head_size: int = 128,
        normalization: Callable[..., nn.Module] = RMSNorm,
        rotary: Callable[..., RotaryEmbedding] | None = Rotary,
        window_size: int | None = None,
        softmax_scale: float | None = None,
        dropout: float = 0.0,
        kernel: Callable[..., AttentionKernel] = AutomaticAttention,
        linear: Callable[..., nn.Module] = Linear,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.num_heads = heads = heads_or_default(hidden_size, num_heads)
        self.head_size = positive("head_size", head_size)
        self.rotary_size = positive("rotary_size", rotary_size)
        self.value_head_size = positive("value_head_size", value_head_size)
        self.window_size = None if window_size is None else positive("window_size", window_size)
        self.dropout = probability("dropout", dropout)
        self.draws_noise = self.dropout > 0.0
        rank = positive("key_value_rank", key_value_rank)

        query_size = heads * (self.head_size + self.rotary_size)
        self.query = self.query_down = self.query_norm = self.query_up = None
        if query_rank is None:
            self.query = from_x = child("query", linear, hidden_size, query_size)
        else:
            query_rank = positive("query_rank", query_rank)
            self.query_down = from_x = child("query_down", linear, hidden_size, query_rank)
            self.query_norm = child("query_norm", normalization, query_rank)
            self.query_up = child("query_up", linear, query_rank, query_size)
        self.key_value_down = child("key_value_down", linear, hidden_size, rank)
        self.key_rotary = child("key_rotary", linear, hidden_size, self.rotary_size)
        self.key_value_norm = child("key_value_norm", normalization, rank)
        self.key_up = child("key_up", linear, rank, heads * self.head_size)
        self.value_up = child("value_up", linear, rank, heads * self.value_head_size)
        self.output = child("output", linear, heads * self.value_head_size, hidden_size)
        self.rotary = optional_child("rotary", rotary, self.rotary_size)
        of_rotary = 1.0 if self.rotary is None else self.rotary.softmax_factor
        self.softmax_scale = of_rotary * (self.head_size + self.rotary_size) ** -0.5
        if softmax_scale is not None:
            self.softmax_scale = positive_float("softmax_scale", softmax_scale)
        self.projections = child("projections", Projections, (self.key_value_down, self.key_rotary, from_x))
        # A token that is decoded meets the latent vectors through the matrices of these two.
        is_absorbed = isinstance(self.key_up, Linear) and isinstance(self.value_up, Linear)
        self.decodes = is_absorbed and (self.rotary is None or self.rotary.decodes)
        self.expansions = child("expansions", Projections, (self.key_up, self.value_up))
        self.build_kernel(kernel)

    @property
    def task(self) -> AttentionTask:
        return AttentionTask(
            head_size=self.head_size + self.rotary_size,
            value_head_size=self.value_head_size,
            is_grouped=False,
            window_size=self.window_size,
            dropout=self.dropout,
        )

    def forward(self, x: Tensor, context: Context) -> Tensor:
        latent, key_rotary, query = self.projections(x)
        if self.query_norm is not None and self.query_up is not None:
            query = self.query_up(self.query_norm(query))
        latent = self.key_value_norm(latent)  # (B, T, R)
        query = query.unflatten(-1, (self.num_heads, -1))  # (B, T, N, D + Dr)
        plain, turned = query.split((self.head_size, self.rotary_size), dim=-1)
        key_rotary = key_rotary[:, :, None]  # (B, T, 1, Dr)
        if self.rotary is not None:
            turned, key_rotary = self.rotary.in_context(turned, key_rotary, context)
        mix = self._mix if context.cache is None else self._mix_with_kept
        mixed = mix(plain, turned, latent, key_rotary, context)  # (B, N, T, Dv)
        return self.output(mixed.transpose(1, 2).flatten(2))  # (B, T, H)

    def _mix(self, plain: Tensor, turned: Tensor, latent: Tensor, key_rotary: Tensor, context: Context) -> Tensor:
        """Attention over the keys and values that the latent vectors are expanded to."""
        key, value = (part.unflatten(-1, (self.num_heads, -1)) for part in self.expansions(latent))
        key = torch.cat((key, key_rotary.expand(-1, -1, self.num_heads, -1).to(key.dtype)), dim=-1)
        query = torch.cat((plain, turned), dim=-1)
        return self._attend(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), context.documents, context
        )

    def _mix_with_kept(
        self, plain: Tensor, turned: Tensor, latent: Tensor, key_rotary: Tensor, context: Context
    ) -> Tensor:
        """Attention in the latent space, whose vectors are all that is kept."""
        assert isinstance(self.key_up, Linear)  # see `decodes`
        assert isinstance(self.value_up, Linear)
        kept = context.state(self)
        if kept is None:
            kept = Growing(dim=2, kept=None if self.window_size is None else self.window_size - 1)
            context.keep(self, kept)
        (key,) = kept.append(torch.cat((latent, key_rotary.squeeze(2)), dim=-1)[:, None])  # (B, 1, S, R + Dr)
        value = key[..., : latent.shape[-1]]
        key_up = self.key_up.whole_weight().unflatten(0, (self.num_heads, -1)).to(plain.dtype)  # (N, D, R)
        value_up = self.value_up.whole_weight().unflatten(0, (self.num_heads, -1)).to(plain.dtype)  # (N, Dv, R)
        query = torch.cat((torch.einsum("btnd,ndr->bntr", plain, key_up), turned.transpose(1, 2)), dim=-1)
        documents = context.all_documents()
        documents = None if documents is None else documents[:, -key.shape[2] :]
        mixed = torch.einsum("bntr,ndr->bntd", self._attend(query, key, value, documents, context), value_up)
        # A bias of key_up adds the same to all scores of a query, which the softmax takes away.
        bias = self.value_up.bias
        return mixed if bias is None else mixed + bias.unflatten(0, (self.num_heads, 1, -1)).to(mixed.dtype)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, documents: Tensor | None, context: Context) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        weighting = Weighting(
            window_size=self.window_size, scale=self.softmax_scale, documents=documents, dropout=dropout
        )
        return self.kernel(query, key, value, weighting, context)

    def training_flops_per_token(self, sequence_length: int) -> float:
        """6 N (D + Dr + Dv) for each visible key: scores and mixing."""
        sizes = self.head_size + self.rotary_size + self.value_head_size
        return 6.0 * self.num_heads * sizes * mean_visible_keys(sequence_length, True, self.window_size)

    def extra_repr(self) -> str:
        sizes = f"head_size={self.head_size}+{self.rotary_size}, value_head_size={self.value_head_size}"
        return f"num_heads={self.num_heads}, {sizes}"

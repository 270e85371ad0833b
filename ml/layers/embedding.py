"""Embeddings of tokens and of learned positions."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ml.config import child, configurable, require
from ml.layers.adapted import Adapted
from ml.layers.checks import finite, positive, probability
from ml.layers.children import optional_child, weight_child
from ml.layers.context import Context
from ml.layers.initialization import Initialization, normal
from ml.layers.protocol import Adapter, Layer, NoProducts
from ml.layers.tracing import has_values


@configurable
class TokenEmbedding(Adapted):
    """Token embedding table, (vocab_size, hidden_size).

    Args:
        vocab_size: Number of tokens in the vocabulary, V.
        hidden_size: Width of the residual stream, H.
        weight_initialization: Initialization of the table.
        apply_peft: Adapter (`@LoRA`, `@DoRA`) of the rows of the table; None applies none.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    weight: nn.Parameter

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        weight_initialization: Initialization = normal,
        apply_peft: Callable[..., Adapter] | None = None,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.weight = weight_child((vocab_size, hidden_size), weight_initialization)
        self.adapter = optional_child("adapter", apply_peft, vocab_size, hidden_size)
        if self.adapter is not None:
            kind = type(self.adapter).__name__
            require(self.adapter.can_look_up, "apply_peft", f"must adapt an embedding, which {kind} does not")
            message = f"must have no dropout here, where the input is a token: set token/{kind}.dropout = 0.0"
            require(not self.adapter.dropout, "apply_peft", message)

    def forward(self, tokens: Tensor) -> Tensor:
        x, adapter = F.embedding(tokens, self.weight), self.active_adapter  # (B, T) -> (B, T, H)
        return x if adapter is None else adapter.looked_up(tokens, x, self.weight)

    @property
    def base_table(self) -> Tensor:
        """The table without the adapter, which a tied head borrows."""
        return self.weight if self.base_weight is None else self.base_weight

    def merged_weight(self, adapter: Adapter, weight: Tensor) -> Tensor:
        """The table (V, H) with an adapter."""
        return adapter.merged(weight.T).T

    def fraction_of(self, child: str) -> float:
        """Of an adapter only B is multiplied; A is looked up."""
        vocab_size, hidden_size = self.weight.shape
        return hidden_size / (vocab_size + hidden_size)

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Zero: a lookup."""
        return 0.0


@configurable
class PositionEmbedding(NoProducts):
    """Learned position embeddings, (num_positions, hidden_size) (GPT, GPT-2).

    Args:
        hidden_size: Width of the residual stream, H.
        num_positions: Number of positions, which limits the sequence length.
        weight_initialization: Initialization of the table.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_positions: int = 1024,
        weight_initialization: Initialization = normal,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.num_positions = positive("num_positions", num_positions)
        self.weight = weight_child((self.num_positions, hidden_size), weight_initialization)

    @property
    def max_sequence_length(self) -> int:
        """`num_positions`."""
        return self.num_positions

    def forward(self, sequence_length: int, positions: Tensor | None) -> Tensor:
        """Returns (T, H), or (B, T, H) for positions of shape (B, T).

        Raises:
            ValueError: A position is beyond the table. Where the positions are on a GPU this stops the program at some
                later call, for the host does not wait to read them.
        """
        if positions is not None:
            self._require_within(positions)
            return F.embedding(positions, self.weight)
        if sequence_length > self.num_positions:
            raise ValueError(
                f"PositionEmbedding.num_positions ({self.num_positions}) is below the sequence length {sequence_length}"
            )
        return self.weight[:sequence_length]

    def _require_within(self, positions: Tensor) -> None:
        if not has_values(positions) or torch.compiler.is_compiling() or not positions.numel():
            return
        last = positions.amax()
        if last.device.type != "cpu":
            torch._assert_async(last < self.num_positions, "a position is beyond PositionEmbedding.num_positions")
        elif last >= self.num_positions:
            raise ValueError(f"PositionEmbedding.num_positions ({self.num_positions}) has no position {int(last)}")


@configurable
class Embeddings(NoProducts):
    """Input of the first block: x = dropout(norm(scale · token[t] + position[i])).

    Args:
        vocab_size: Number of tokens in the vocabulary, V.
        hidden_size: Width of the residual stream, H.
        token: Constructor of the token embedding.
        position: Constructor of the learned position embedding; None adds none.
        normalization: Constructor of the normalization of the sum (Bloom, nanochat); None applies none.
        scale: Factor of the token embedding; √H in Gemma (section 2).
        dropout: Dropout probability in training.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        token: Callable[..., nn.Module] = TokenEmbedding,
        position: Callable[..., Layer] | None = None,
        normalization: Callable[..., nn.Module] | None = None,
        scale: float = 1.0,
        dropout: float = 0.0,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.scale = finite("scale", scale)
        self.dropout = probability("dropout", dropout)
        self.draws_noise = self.dropout > 0.0
        self.token = child("token", token, vocab_size, hidden_size)
        self.position = optional_child("position", position, hidden_size)
        self.norm = optional_child("norm", normalization, hidden_size)

    @property
    def max_sequence_length(self) -> int | None:
        """Number of positions; None is unlimited."""
        return None if self.position is None else self.position.max_sequence_length

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        x = self.token(tokens)  # (B, T, H)
        if self.scale != 1.0:
            x = x * self.scale
        if self.position is not None:
            self._require_room(tokens.shape[-1], context)
            x = x + self.position(tokens.shape[-1], context.positions)
        if self.norm is not None:
            x = self.norm(x)
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def _require_room(self, num_tokens: int, context: Context) -> None:
        """Without documents the positions after cached tokens are known on the host, on any device."""
        limit, cache = self.max_sequence_length, context.cache
        if cache is None or limit is None or context.documents is not None or cache.num_tokens + num_tokens <= limit:
            return
        raise ValueError(
            f"{num_tokens} tokens after {cache.num_tokens} in the cache are beyond the {limit} learned positions"
        )

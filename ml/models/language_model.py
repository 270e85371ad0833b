"""The causal language model."""

import copy
from collections.abc import Callable

from torch import Tensor, nn

from ml.blocks.repeat import Repeat
from ml.config import REQUIRED, child, configurable
from ml.layers.checks import positive
from ml.layers.context import Context
from ml.layers.embedding import Embeddings
from ml.layers.head import LanguageModelHead
from ml.layers.loss import LossSums
from ml.layers.parameter import checked_lr_scale, copy_settings
from ml.models.parameters import freeze_unscaled


@configurable
class LanguageModel(nn.Module):
    """logits = head(decoder(embeddings(tokens))).

    `tie_word_embeddings` gives the head the weight of the token embedding; the model then holds it once, as
    `embeddings.token.weight`.
    """

    def __init__(
        self,
        *,
        vocab_size: int = REQUIRED,
        hidden_size: int = REQUIRED,
        embeddings: Callable[..., nn.Module] = Embeddings,
        decoder: Callable[..., nn.Module] = Repeat,
        head: Callable[..., nn.Module] = LanguageModelHead,
        tie_word_embeddings: bool = False,
        lr_scale: float = 1.0,
    ):
        super().__init__()
        self.vocab_size = positive("vocab_size", vocab_size)
        self.hidden_size = positive("hidden_size", hidden_size)
        self.tie_word_embeddings = tie_word_embeddings
        self.lr_scale = checked_lr_scale(lr_scale)
        self.embeddings = child("embeddings", embeddings, self.vocab_size, self.hidden_size)
        self.decoder = child("decoder", decoder, self.hidden_size)
        self.head = child("head", head, self.hidden_size, self.vocab_size, tie_word_embeddings)
        freeze_unscaled(self)

    @property
    def tied_weight(self) -> Tensor | None:
        """The weight (V, H) that the head borrows, or None where it has its own."""
        return self.embeddings.token.weight if self.tie_word_embeddings else None

    @property
    def max_sequence_length(self) -> int | None:
        """The longest sequence that the model takes, None for any."""
        return getattr(self.embeddings, "max_sequence_length", None)

    def hidden_states(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """The residual stream after the last block: (B, T) -> (B, T, H)."""
        context = Context(positions)
        return self.decoder(self.embeddings(tokens, context), context)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Returns logits (B, T, V) for `tokens` (B, T); `positions` (T) or (B, T), None for 0, 1, ..., T-1."""
        return self.head(self.hidden_states(tokens, positions), self.tied_weight)

    def loss(self, tokens: Tensor, targets: Tensor, positions: Tensor | None = None) -> LossSums:
        """Sums over the valid targets (B, T): `targets[b, t]` comes after `tokens[b, t]`, or is -100 for no loss."""
        return self.head.loss(self.hidden_states(tokens, positions), targets, self.tied_weight)

    def __deepcopy__(self, memo: dict) -> "LanguageModel":
        duplicate = type(self).__new__(type(self))
        memo[id(self)] = duplicate
        duplicate.__dict__.update(copy.deepcopy(self.__dict__, memo))
        for original, copied in zip(self.parameters(), duplicate.parameters(), strict=True):
            copy_settings(original, copied)
        return duplicate

"""Causal language model."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ml.blocks.repeat import Repeat
from ml.config import REQUIRED, child, configurable, require
from ml.layers.checks import positive
from ml.layers.context import Auxiliary, Cache, Context, padding_of, places_in_documents
from ml.layers.embedding import Embeddings, TokenEmbedding
from ml.layers.head import LanguageModelHead
from ml.layers.loss import LossSums, Teacher
from ml.layers.preference import Preference, preference_sums
from ml.layers.protocol import Mixer, NoProducts
from ml.layers.rotary import RotaryEmbedding
from ml.layers.walk import named_modules
from ml.models.declarations import (
    branches_of,
    depth_of,
    max_sequence_length,
    obstacle_to_decoding,
    obstacle_to_depth,
    obstacle_to_documents,
)
from ml.models.parameters import settle_parameters


@configurable
class LanguageModel(NoProducts):
    """Causal language model: logits = head(decoder(embeddings(tokens))).

    Args:
        vocab_size: Number of tokens in the vocabulary, V.
        hidden_size: Width of the residual stream, H.
        embeddings: Constructor of the embeddings.
        decoder: Constructor of the block sequence.
        head: Constructor of the head.
        multi_token: Constructor of the prediction of further tokens, which adds to the loss; None predicts only the
            next token.
        tie_word_embeddings: Uses the weight of the token embedding in the head; the model stores it once, as
            `embeddings.token.weight`.
        lr_scale: Learning rate multiplier of all parameters in the model; 0 freezes them.

    Attributes:
        image_token_id: The token in the positions of an image; None for a model that takes no images.
    """

    image_token_id: int | None = None
    embeddings: Any  # `Embeddings`, a `LanguageModelHead` and a `MultiTokenPrediction`, or layers with their methods
    head: Any
    multi_token: Any

    def __init__(
        self,
        *,
        vocab_size: int = REQUIRED,
        hidden_size: int = REQUIRED,
        embeddings: Callable[..., nn.Module] = Embeddings,
        decoder: Callable[..., nn.Module] = Repeat,
        head: Callable[..., nn.Module] = LanguageModelHead,
        multi_token: Callable[..., nn.Module] | None = None,
        tie_word_embeddings: bool = False,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.vocab_size = positive("vocab_size", vocab_size)
        self.hidden_size = positive("hidden_size", hidden_size)
        self.tie_word_embeddings = tie_word_embeddings
        self.embeddings = child("embeddings", embeddings, self.vocab_size, self.hidden_size)
        self.decoder = child("decoder", decoder, self.hidden_size)
        self.head = child("head", head, self.hidden_size, self.vocab_size, tie_word_embeddings)
        self.multi_token = None
        if multi_token is not None:
            problem = obstacle_to_depth("decoder", self.decoder)
            require(problem is None, "multi_token", f"needs the depth of the decoder: {problem}")
            before = (depth_of(self.decoder), branches_of(self.decoder))
            self.multi_token = child("multi_token", multi_token, self.hidden_size, *before)
        for problem in _misfits([self.decoder, self.multi_token]):
            require(False, "decoder", problem)
        settle_parameters(self)

    @property
    def tokens_per_image(self) -> int:
        """The number of positions of an image, 0 for a model that takes no images."""
        return 0

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Channels, height and width of an image; None for a model that takes no images."""
        return None

    @property
    def tied_weight(self) -> Tensor | None:
        """Weight (V, H) that the head borrows; None where it has its own."""
        if not self.tie_word_embeddings:
            return None
        token = self.embeddings.token
        return token.base_table if isinstance(token, TokenEmbedding) else token.weight

    @property
    def max_sequence_length(self) -> int | None:
        """The longest sequence that the model takes, None for any."""
        return max_sequence_length(self.embeddings, self.decoder)

    @property
    def obstacle_to_decoding(self) -> str | None:
        """The layer that does not decode from a cache, and what to declare; None where all do."""
        return obstacle_to_decoding({"decoder": self.decoder})

    @property
    def obstacle_to_documents(self) -> str | None:
        """The layer that does not separate documents, and what to declare; None where all do."""
        return obstacle_to_documents(self.mixing_children())

    def mixing_children(self) -> Mapping[str, nn.Module]:
        """The decoder, and the prediction of further tokens."""
        parts = {"decoder": self.decoder, "multi_token": self.multi_token}
        return {name: part for name, part in parts.items() if part is not None}

    def context(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        auxiliary: Auxiliary | None = None,
        targets: Tensor | None = None,
    ) -> Context:
        """Context of a pass over `tokens` (B, T); positions count from the start of each document.

        Args:
            tokens: (B, T).
            positions: (T) or (B, T); None is 0, 1, ..., T-1 in each document.
            documents: (B, T), document index of each token, negative for padding; None where each row is one document.
            cache: State of the previous tokens; None for a single pass.
            auxiliary: Collects losses and loads; None where they are not needed.
            targets: (B, T), after the last of which a row is padding; None where they are not known.

        Raises:
            ValueError: A layer does not declare that it decodes from a cache, or that it separates documents.
        """
        if cache is not None and (obstacle := self.obstacle_to_decoding):
            raise ValueError(obstacle)
        if documents is not None and (obstacle := self.obstacle_to_documents):
            raise ValueError(obstacle)
        if positions is None and documents is not None:
            all_documents = documents if cache is None else cache.with_cached(documents)
            positions = places_in_documents(all_documents)[:, -tokens.shape[1] :]
        elif positions is None and cache is not None:
            positions = torch.arange(tokens.shape[1], device=tokens.device) + cache.num_tokens
        places = None if cache is None else self._places_of_mixers
        return Context(positions, documents, cache, auxiliary, tokens.shape[1], padding_of(documents, targets), places)

    @cached_property
    def _places_of_mixers(self) -> dict[nn.Module, str]:
        return {module: path for path, module in named_modules(self) if isinstance(module, Mixer)}

    def embed(self, tokens: Tensor, context: Context) -> Tensor:
        """Input of the first block: (B, T) -> (B, T, H)."""
        return self.embeddings(tokens, context)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        num_logits: int | None = None,
        **inputs: Tensor,
    ) -> Tensor:
        """Returns logits (B, T, V) for `tokens` (B, T).

        Args:
            tokens: (B, T).
            positions: (T) or (B, T); None is 0, 1, ..., T-1 in each document.
            documents: (B, T), document index of each token, negative for padding; None where each row is one document.
            cache: State of the previous tokens, extended by these; None for a single pass.
            num_logits: Number of last tokens of each row with logits, (B, num_logits, V); None is all.
            inputs: Further arguments of `embed`.
        """
        context = self.context(tokens, positions, documents, cache)
        if cache is not None:
            cache.start(len(tokens))
        x = self.decoder(self.embed(tokens, context, **inputs), context)
        if cache is not None:
            cache.advance(tokens.shape[1], documents)
        return self.head(x if num_logits is None else x[:, -num_logits:], self.tied_weight)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        teacher: Teacher | None = None,
        preference: Preference | None = None,
        **inputs: Tensor,
    ) -> LossSums:
        """Sums over the valid targets (B, T): `targets[b, t]` comes after `tokens[b, t]`, or is -100 for no loss.

        With `preference`, sums over the pairs of documents, as `preference_sums`.
        """
        context = self.context(tokens, positions, documents, auxiliary=Auxiliary(), targets=targets)
        if preference is not None:
            assert documents is not None, "the sides of a pair are documents"
            assert context.auxiliary is not None
            x = self.decoder(self.embed(tokens, context, **inputs), context)
            log_probabilities = self.head.log_probabilities(x, targets, self.tied_weight)
            scores = preference.scores(log_probabilities, targets, documents)
            return with_auxiliary(preference_sums(scores, preference), context.auxiliary)
        return self.loss_in_context(tokens, targets, context, teacher, **inputs)

    def log_probabilities(
        self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None, **inputs: Tensor
    ) -> Tensor:
        """Returns the log-probability of each target (B, T), in float32 and 0 where it is -100."""
        context = self.context(tokens, documents=documents, targets=targets)
        x = self.decoder(self.embed(tokens, context, **inputs), context)
        return self.head.log_probabilities(x, targets, self.tied_weight)

    def loss_in_context(
        self, tokens: Tensor, targets: Tensor, context: Context, teacher: Teacher | None = None, **inputs: Tensor
    ) -> LossSums:
        """As `loss`, in a context that collects the losses and loads of layers."""
        embedded = self.embed(tokens, context, **inputs)
        return self.loss_of_stream(self.decoder(embedded, context), embedded, targets, context, teacher)

    def loss_of_stream(
        self, x: Tensor, embedded: Tensor, targets: Tensor, context: Context, teacher: Teacher | None = None
    ) -> LossSums:
        """The loss from the residual stream `x` after the last block and `embedded` before the first, (B, T, H)."""
        sums = self.head.loss(x, targets, self.tied_weight, teacher)
        if self.multi_token is not None and self.training:
            sums = sums.with_part("multi_token_loss", self._multi_token_loss(x, embedded, targets, context))
        assert context.auxiliary is not None
        return with_auxiliary(sums, context.auxiliary)

    def _multi_token_loss(self, x: Tensor, embedded: Tensor, targets: Tensor, context: Context) -> Tensor:
        """The weighted mean over the depths of their sums over tokens (DeepSeek-V3, equations 24 and 25)."""
        predictions = self.multi_token(x, embedded, targets, context)
        totals = [self.head.loss(hidden, later, self.tied_weight).total for hidden, later in predictions]
        return self.multi_token.loss_weight * sum(totals) / len(totals)


def with_auxiliary(sums: LossSums, auxiliary: Auxiliary) -> LossSums:
    """Adds the losses and the loads of the layers of a pass."""
    if auxiliary.losses:
        sums = sums.with_part("router_loss", sum(auxiliary.losses) * sums.num_tokens)
    return sums._replace(loads=list(auxiliary.loads))  # the list grows when a layer is computed again


def _misfits(sequences: list[nn.Module | None]) -> Iterator[str]:
    """Problems with mixers that are made for images."""
    modules = [module for sequence in sequences if sequence is not None for _, module in named_modules(sequence)]
    if any(isinstance(module, Mixer) and module.causal is False for module in modules):
        yield "lets a token see those that it is to predict: leave `causal` True, or set it in the scope of an encoder"
    if any(isinstance(module, RotaryEmbedding) and module.num_axes != 1 for module in modules):
        yield "turns by rows and columns, which tokens of a text do not have: choose another `rotary`"

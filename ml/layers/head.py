"""The language model head: from the residual stream to logits, and to the loss."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ml.config import child, configurable, require, unused
from ml.layers.adapted import Adapted
from ml.layers.checks import non_negative, positive, positive_float
from ml.layers.children import bias_child, optional_child, weight_child
from ml.layers.chunked_loss import chunked_sums
from ml.layers.initialization import Initialization, normal, zeros
from ml.layers.loss import LossSums, Teacher, cross_entropy_sums, distilled_sums
from ml.layers.normalization import RMSNorm
from ml.layers.protocol import Adapter
from ml.layers.weight_gradient import linear
from ml.targets import IGNORED


@configurable
class LanguageModelHead(Adapted):
    """Language model head: logits = cap(scale · (norm(x) Wᵀ + b)), with cap(z) = c · tanh(z / c) (Gemma 2, section 2).

    Args:
        hidden_size: Width of the residual stream, H.
        vocab_size: Number of tokens in the vocabulary, V.
        tied: Borrows the weight of the token embedding in each call instead of owning W.
        normalization: Constructor of the final normalization.
        bias: Adds b, (vocab_size), to the logits (GPT-J, Phi).
        weight_initialization: Initialization of W, (vocab_size, hidden_size).
        bias_initialization: Initialization of b.
        logit_scale: Factor of the logits (Cohere; 1 / logits_scaling in Granite).
        apply_peft: Adapter (`@LoRA`, `@DoRA`) of W, also of a borrowed one; None applies none.
        z_loss: Coefficient of the z-loss, the mean of (log Z)²; 0 disables it.
        logit_soft_cap: Soft cap of the logits, c; None applies none.
        loss_chunk_size: Number of tokens whose logits are in memory at once while the loss is computed; None is all.
        lr_scale: Learning rate multiplier of all parameters in the layer; 0 freezes them.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        tied: bool,
        *,
        normalization: Callable[..., nn.Module] = RMSNorm,
        bias: bool = False,
        weight_initialization: Initialization = normal,
        bias_initialization: Initialization = zeros,
        apply_peft: Callable[..., Adapter] | None = None,
        logit_scale: float = 1.0,
        z_loss: float = 0.0,
        logit_soft_cap: float | None = None,
        loss_chunk_size: int | None = None,
        lr_scale: float = 1.0,
    ):
        super().__init__(lr_scale)
        self.hidden_size = hidden_size
        self.vocab_size = vocab_size
        self.z_loss = non_negative("z_loss", z_loss)
        self.logit_scale = positive_float("logit_scale", logit_scale)
        self.logit_soft_cap = None if logit_soft_cap is None else positive_float("logit_soft_cap", logit_soft_cap)
        self.loss_chunk_size = None if loss_chunk_size is None else positive("loss_chunk_size", loss_chunk_size)
        self.norm = child("norm", normalization, hidden_size)
        self.weight = None
        unused(tied, "weight_initialization", "tie_word_embeddings")
        if not tied:
            self.weight = weight_child((vocab_size, hidden_size), weight_initialization)
        self.bias = bias_child(bias, vocab_size, bias_initialization)
        self.adapter = optional_child("adapter", apply_peft, hidden_size, vocab_size)
        if self.adapter is not None:
            message = f"must have no dropout here: set head/{type(self.adapter).__name__}.dropout = 0.0"
            require(not self.adapter.dropout, "apply_peft", message)

    def forward(self, x: Tensor, tied_weight: Tensor | None = None) -> Tensor:
        x, weight, adapter = self.norm(x), self._weight(tied_weight), self.active_adapter
        logits = F.linear(x, weight, self.bias)
        return self.scaled(logits if adapter is None else adapter.adapted(x, logits, weight, self.bias))

    def _weight(self, tied_weight: Tensor | None) -> Tensor:
        weight = self.weight if tied_weight is None else tied_weight
        assert weight is not None, "a tied head is called with the weight of the embeddings"
        return weight

    def _weights(self, tied_weight: Tensor | None) -> list[Tensor]:
        """The weight with its adapter, whose sum takes less than further products of many tokens, and the bias."""
        weight = self.adapted_weight(self._weight(tied_weight))
        return [weight] if self.bias is None else [weight, self.bias]

    def logits(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., H) -> (..., V), from normalized hidden states and the weight with its adapter."""
        product = linear if self.loss_chunk_size is None else F.linear
        return self.scaled(product(x, weight, bias))

    def scaled(self, logits: Tensor) -> Tensor:
        """Products (..., V) to logits: times the scale, and capped."""
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.logit_soft_cap is not None:
            logits = self.logit_soft_cap * torch.tanh(logits / self.logit_soft_cap)
        return logits

    def loss(
        self, x: Tensor, targets: Tensor, tied_weight: Tensor | None = None, teacher: Teacher | None = None
    ) -> LossSums:
        """The loss of predicting `targets` (B, T) from the residual stream `x` (B, T, H)."""
        x, weights = self.norm(x).flatten(0, 1), self._weights(tied_weight)
        loss = partial(self._loss, None if teacher is None else (teacher.weight, teacher.temperature))
        others = [targets.flatten(), *([] if teacher is None else [teacher.logits.flatten(0, 1)])]
        if self.loss_chunk_size is None:
            return loss(x, weights, others)
        return chunked_sums(loss, x, weights, others, self.loss_chunk_size)

    def log_probabilities(self, x: Tensor, targets: Tensor, tied_weight: Tensor | None = None) -> Tensor:
        """The log-probability of each target (B, T), in float32 and 0 where it is ignored, from `x` (B, T, H)."""
        x, weights = self.norm(x).flatten(0, 1), self._weights(tied_weight)
        flat = targets.flatten()
        if self.loss_chunk_size is None:
            return self._log_probabilities(x, flat, *weights).view(targets.shape)
        pieces = zip(x.split(self.loss_chunk_size), flat.split(self.loss_chunk_size), strict=True)
        found = [checkpoint(self._log_probabilities, *piece, *weights, use_reentrant=False) for piece in pieces]
        return torch.cat(found).view(targets.shape)

    def _log_probabilities(self, x: Tensor, targets: Tensor, *weights: Tensor) -> Tensor:
        """Log-probabilities of targets (n) from x (n, H)."""
        logits = self.logits(x, *weights).float()
        return -F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)

    def _loss(
        self, distillation: tuple[float, float] | None, x: Tensor, weights: Sequence[Tensor], others: Sequence[Tensor]
    ) -> LossSums:
        """Loss of tokens x (n, H); `others` are their targets and the logits of the teacher, if there is one."""
        targets, *teacher_logits = others
        teacher = None if distillation is None else Teacher(teacher_logits[0], *distillation)
        return self.sums(self.logits(x, *weights), targets, teacher)

    def sums(self, logits: Tensor, targets: Tensor, teacher: Teacher | None) -> LossSums:
        """The loss of logits (n, V) and targets (n), with the logits (n, V) of a teacher."""
        if teacher is None:
            return cross_entropy_sums(logits, targets, self.z_loss)
        return distilled_sums(logits, targets, teacher, self.z_loss)

    def training_flops_per_token(self, sequence_length: int) -> float:
        """Two operations an entry of W forward, four backward."""
        return 6.0 * self.hidden_size * self.vocab_size

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, {self.vocab_size}, tied={self.weight is None}"

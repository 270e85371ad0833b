"""Cross entropy over a vocabulary, as sums that can be added up over micro-batches."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ml.layers.tracing import has_values
from ml.targets import IGNORED


class LossSums(NamedTuple):
    """Sums over the valid tokens of a batch, all of them scalar tensors.

    Micro-batches are summed first and divided last.

    Attributes:
        total: Objective, differentiable.
        cross_entropy: In nats, without the other terms, detached.
        num_tokens: Number of targets that are not ignored.
        parts: Other terms of the total by name, or measurements, detached.
        loads: Tokens routed to each expert, for each router.
    """

    total: Tensor
    cross_entropy: Tensor
    num_tokens: Tensor
    parts: dict[str, Tensor] = {}  # noqa: RUF012  (never changed)
    loads: list[tuple[nn.Module, Tensor]] = []  # noqa: RUF012

    @property
    def mean(self) -> Tensor:
        """The total for each valid token; 0 where there is none."""
        return self.total / self.num_tokens.clamp(min=1)

    def with_total(self, total: Tensor) -> "LossSums":
        """The same with another total; torch 2.11 does not compile `_replace`."""
        return LossSums(total, self.cross_entropy, self.num_tokens, self.parts, self.loads)

    def with_part(self, name: str, value: Tensor) -> "LossSums":
        """Adds a term to the total."""
        parts = {**self.parts, name: value.detach()}
        return LossSums(self.total + value, self.cross_entropy, self.num_tokens, parts, self.loads)


class Teacher(NamedTuple):
    """Logits of a teacher model for the same tokens, and the weight of distillation in the loss."""

    logits: Tensor  # (B, T, V)
    weight: float
    temperature: float


def cross_entropy_sums(logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> LossSums:
    """Σ (log Z - logit of the target) + z_loss · Σ (log Z)², in float32, where Z = Σ exp(logits) for each token.

    `logits` is (..., V), `targets` integers of shape (...), `IGNORED` where a token has no loss (a prompt, padding).
    The z-loss keeps the logits from drifting (PaLM, section 5).
    """
    logits, targets = logits.flatten(0, -2), targets.flatten()  # (B T, V), (B T)
    of_device = cpu_sums if logits.device.type == "cpu" else plain_sums
    total, cross_entropy = of_device(logits, targets, z_loss)
    return LossSums(total, cross_entropy.detach(), (targets != IGNORED).sum())


def distilled_sums(logits: Tensor, targets: Tensor, teacher: Teacher, z_loss: float = 0.0) -> LossSums:
    """(1 - w) · (cross entropy and z-loss) + w · τ² · Σ KL(softmax(teacher / τ) ‖ softmax(logits / τ)).

    Hinton et al. 2015, section 2: τ² keeps the size of the gradient. Shapes as in `cross_entropy_sums`.
    """
    hard = cross_entropy_sums(logits, targets, z_loss)
    soft = teacher.weight * divergence_sum(logits, targets, teacher)
    return hard.with_total((1 - teacher.weight) * hard.total).with_part("distillation_loss", soft)


def divergence_sum(logits: Tensor, targets: Tensor, teacher: Teacher) -> Tensor:
    """τ² Σ KL(softmax(teacher / τ) ‖ softmax(logits / τ)) over the tokens that have a target, in float32."""
    student = F.log_softmax(logits.float() / teacher.temperature, dim=-1)
    expected = F.log_softmax(teacher.logits.float() / teacher.temperature, dim=-1)
    divergence = F.kl_div(student, expected, reduction="none", log_target=True).sum(-1)
    return teacher.temperature**2 * divergence.where(targets != IGNORED, 0.0).sum()


def plain_sums(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """The total and the cross entropy of (tokens, V), by torch's functions."""
    logits = logits.float()
    cross_entropy = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED)
    if not z_loss:
        return cross_entropy, cross_entropy
    log_z = torch.logsumexp(logits, dim=-1).masked_fill(targets == IGNORED, 0.0)
    return cross_entropy + z_loss * log_z.square().sum(), cross_entropy


def cpu_sums(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """As `plain_sums`, with fewer passes over the logits.

    Eager, a few rows at a time, so that intermediate results stay in the cache: with 32,000 words and 2,048 tokens
    forward and backward, the head's products included, take 0.6 of the time. Compiled, in one pass backward: torch's
    functions compare the index of every logit with the target, twice, which takes as long as the exponentials.
    """
    return _CrossEntropyOnCPU.apply(logits, targets, z_loss)


class _CrossEntropyOnCPU(torch.autograd.Function):
    NUM_ELEMENTS = 2**20

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
        valid = targets != IGNORED
        indices = targets.where(valid, 0)[:, None]
        target_logits = logits.gather(1, indices)[:, 0].float()
        log_z = torch.empty_like(target_logits)
        for rows in _CrossEntropyOnCPU.row_blocks(logits):
            log_z[rows] = torch.logsumexp(logits[rows].float(), dim=-1)
        ctx.save_for_backward(logits, indices, valid, log_z, target_logits)
        ctx.z_loss = z_loss
        cross_entropy = (log_z - target_logits).where(valid, 0.0).sum()
        ctx.mark_non_differentiable(cross_entropy)
        return cross_entropy + z_loss * log_z.where(valid, 0.0).square().sum(), cross_entropy

    @staticmethod
    def backward(ctx, total_gradient: Tensor, _) -> tuple[Tensor, None, None]:
        logits, indices, valid, log_z, target_logits = ctx.saved_tensors
        target_factor = total_gradient * valid
        softmax_factor = target_factor * (1 + 2 * ctx.z_loss * log_z)  # d log Z / d logits is the softmax
        gradient = torch.empty_like(logits)
        for rows in _CrossEntropyOnCPU.row_blocks(logits):
            softmax = logits[rows].float().sub(log_z[rows, None]).exp_()
            gradient[rows] = softmax.mul_(softmax_factor[rows, None])
        of_targets = (target_logits - log_z).exp() * softmax_factor - target_factor  # rounded once, like the others
        return gradient.scatter_(1, indices, of_targets[:, None].to(gradient.dtype)), None, None

    @staticmethod
    def row_blocks(logits: Tensor) -> list[slice]:
        if torch.compiler.is_compiling():
            return [slice(None)]
        num_rows = max(_CrossEntropyOnCPU.NUM_ELEMENTS // logits.shape[1], 1)
        blocks = [slice(start, start + num_rows) for start in range(0, len(logits), num_rows)]
        # Where nothing is computed, two blocks need the memory of all: a block frees that of the one before.
        return blocks if has_values(logits) else blocks[:2]

"""Cross entropy over a vocabulary that is divided over the tensor axis."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import GroupName

from ml.distributed.collectives import Sum, all_reduce
from ml.layers.loss import LossSums, Teacher
from ml.targets import IGNORED


def divided_cross_entropy_sums(
    logits: Tensor, targets: Tensor, z_loss: float, first: int, group: GroupName
) -> LossSums:
    """As `ml.layers.loss.cross_entropy_sums`, from the logits of this rank's tokens.

    Args:
        logits: (n, V'), those of V' tokens from `first`.
        targets: (n), tokens of the whole vocabulary.
        z_loss: Coefficient of the z-loss.
        first: The first token of this rank.
        group: Name of the process group of the axis.
    """
    total, cross_entropy = _DividedCrossEntropy.apply(logits, targets, z_loss, first, group)
    return LossSums(total, cross_entropy, (targets != IGNORED).sum())


def divided_distilled_sums(
    logits: Tensor, targets: Tensor, teacher: Teacher, z_loss: float, first: int, group: GroupName
) -> LossSums:
    """As `ml.layers.loss.distilled_sums`; the logits of the teacher are those of the whole vocabulary, (n, V)."""
    hard = divided_cross_entropy_sums(logits, targets, z_loss, first, group)
    scaled = logits.float() / teacher.temperature
    expected = torch.log_softmax(teacher.logits.float() / teacher.temperature, dim=-1)
    own = expected[..., first : first + logits.shape[-1]].exp()
    # Σ p log(p / q) = Σ p log p + log Z - Σ p z, for the probabilities of a token sum to 1
    mean_logit = Sum.apply((own * scaled).sum(-1), group)
    divergence = (expected.exp() * expected).sum(-1) + _log_sum_exp(scaled, group) - mean_logit
    soft = teacher.weight * teacher.temperature**2 * divergence.where(targets != IGNORED, 0.0).sum()
    return hard._replace(total=(1 - teacher.weight) * hard.total).with_part("distillation_loss", soft)


def _log_sum_exp(logits: Tensor, group: GroupName) -> Tensor:
    largest = all_reduce(logits.detach().amax(-1), group, "max")
    return largest + Sum.apply((logits - largest[..., None]).exp().sum(-1), group).log()


class _DividedCrossEntropy(torch.autograd.Function):
    """Two collectives forward, of one and of two numbers a token, and none backward."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, z_loss: float, first: int, group: GroupName
    ) -> tuple[Tensor, Tensor]:
        indices = targets - first
        is_own = (indices >= 0) & (indices < logits.shape[-1])
        indices = indices.where(is_own, 0)[:, None]
        wide = logits.float()
        largest = all_reduce(wide.amax(-1), group, "max")
        target_logits = wide.gather(1, indices)[:, 0].where(is_own, 0.0)
        terms = torch.stack(((wide - largest[:, None]).exp_().sum(-1), target_logits))
        sums, target_logits = all_reduce(terms, group).unbind()
        log_z, valid = largest + sums.log(), targets != IGNORED
        ctx.save_for_backward(logits, indices, is_own, valid, log_z)
        ctx.z_loss = z_loss
        cross_entropy = (log_z - target_logits).where(valid, 0.0).sum()
        ctx.mark_non_differentiable(cross_entropy)
        return cross_entropy + z_loss * log_z.where(valid, 0.0).square().sum(), cross_entropy

    @staticmethod
    def backward(ctx: Any, total_gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, indices, is_own, valid, log_z = ctx.saved_tensors
        factor = (total_gradient * valid)[:, None]
        softmax_factor = factor * (1 + 2 * ctx.z_loss * log_z[:, None])  # d log Z / d logits is the softmax
        gradient = logits.float().sub(log_z[:, None]).exp_().mul_(softmax_factor)
        gradient.scatter_add_(1, indices, -factor * is_own[:, None])
        return gradient.to(logits.dtype), None, None, None, None

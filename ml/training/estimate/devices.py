"""Paths that layers take on a GPU and not on a CPU, where a plan is traced."""

import torch
from torch import Tensor, nn

from ml.layers.attention_kernels import (
    AttentionKernel,
    BlockwiseAttention,
    DotProductAttention,
    Weighting,
    task_of,
)
from ml.layers.context import Context
from ml.layers.experts import Experts
from ml.layers.head import LanguageModelHead
from ml.layers.loss import LossSums, Teacher, plain_sums
from ml.layers.mixers.softmax_mixer import SoftmaxMixer
from ml.targets import IGNORED


def as_on_gpu(model: nn.Module, compute_dtype: torch.dtype) -> None:
    """Lets the layers of a model that is about to be traced take their way of a GPU, in place.

    Args:
        model: The model, before it is put on a mesh.
        compute_dtype: The dtype of matrix products.
    """
    for module in model.modules():
        if isinstance(module, LanguageModelHead) and type(module).sums is LanguageModelHead.sums:
            vars(module)["sums"] = _Sums(module)
        if isinstance(module, SoftmaxMixer):
            module.kernel = _KernelOfGPU(module.kernel)
        if isinstance(module, Experts) and module.grouped is None and module.obstacle_to_grouping is None:
            module.grouped = compute_dtype == torch.bfloat16


class _Sums:
    """The loss by torch's own functions; on a CPU it is computed a few rows at a time."""

    def __init__(self, head: LanguageModelHead):
        self.of_head = head.sums
        self.z_loss = head.z_loss

    def __call__(self, logits: Tensor, targets: Tensor, teacher: Teacher | None) -> LossSums:
        if teacher is not None:
            return self.of_head(logits, targets, teacher)
        total, cross_entropy = plain_sums(logits, targets, self.z_loss)
        return LossSums(total, cross_entropy.detach(), (targets != IGNORED).sum())


class _KernelOfGPU(AttentionKernel):
    """The kernel of a GPU, traced on a CPU: blocks of queries save and compute as much as FlexAttention."""

    def __init__(self, kernel: AttentionKernel):
        self.kernel = kernel

    def attend(self, query: Tensor, key: Tensor, value: Tensor, weighting: Weighting, context: Context) -> Tensor:
        chosen = self.kernel.chosen(task_of(query, key, value, weighting)._replace(device="cuda"))
        stand_in = chosen if isinstance(chosen, DotProductAttention) else BlockwiseAttention()
        return stand_in.attend(query, key, value, weighting, context)

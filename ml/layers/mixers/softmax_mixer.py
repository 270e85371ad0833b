"""Base class of the mixers whose heads are computed by an attention kernel."""

import abc
from collections.abc import Callable

import torch

from ml.config import child, require
from ml.layers.attention_kernels import AttentionKernel, AttentionTask
from ml.layers.context import Context
from ml.layers.protocol import Mixer
from ml.layers.rotary import RotaryEmbedding


class SoftmaxMixer(Mixer):
    """A mixer that computes softmax attention by a kernel.

    Attributes:
        kernel: The attention kernel.
        rotary: The rotary embedding; None without.
    """

    kernel: AttentionKernel
    rotary: RotaryEmbedding | None

    @property
    @abc.abstractmethod
    def task(self) -> AttentionTask:
        """The attention that the layer computes in training, as far as it is known before the first batch."""

    def build_kernel(self, kernel: Callable[..., AttentionKernel]) -> None:
        """Builds the kernel, and checks that it supports the settings of the layer, which are set before."""
        self.kernel = child("kernel", kernel)
        problem = self.kernel.problem(self.task)
        require(problem is None, "kernel", problem or "")

    def prepare(self, context: Context, device: torch.device, dtype: torch.dtype) -> None:
        """Computes the masks of the kernel and the rotations once for all layers, where the length is known."""
        if context.num_tokens is None or context.cache is not None:
            return
        if self.rotary is not None:
            self.rotary.table(context, context.num_tokens, device)
        task = self.task._replace(
            dropout=self.task.dropout if self.training else 0.0,
            has_documents=context.documents is not None,
            num_queries=context.num_tokens,
            num_keys=context.num_tokens,
            device=device.type,
            dtype=dtype,
            needs_gradient=torch.is_grad_enabled(),
        )
        self.kernel.prepare(task, context)

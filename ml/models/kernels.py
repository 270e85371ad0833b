"""The attention kernels that a model takes on a device."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from ml.layers.attention_kernels import AttentionTask
from ml.layers.mixers.softmax_mixer import SoftmaxMixer
from ml.layers.protocol import Layer, Workload


class Pass(NamedTuple):
    """A pass over sequences in training.

    Attributes:
        sequence_length: Tokens of a sequence.
        has_documents: Whether its documents are separated.
        device: Type of the device, such as "cuda".
        dtype: Of matrix products.
    """

    sequence_length: int
    has_documents: bool
    device: str
    dtype: torch.dtype


def kernels_taken(model: nn.Module, work: Pass) -> dict[str, list[str]]:
    """Returns the paths of the mixers by the kernel that they take, described with what decides it."""
    taken: dict[str, list[str]] = {}
    for path, mixer, task in _tasks(model, work):
        taken.setdefault(_described(mixer, task), []).append(path)
    return taken


def obstacle_to_kernels(model: nn.Module, work: Pass) -> str | None:
    """The first mixer whose kernel does not support its task, and what to do; None where all do."""
    for path, mixer, task in _tasks(model, work):
        if problem := mixer.kernel.problem(task):
            return f"{path}: {type(mixer).__name__}.kernel {problem}"
    return None


def kernels_that_synchronize(model: nn.Module, work: Pass) -> dict[str, list[str]]:
    """Returns the paths of the mixers whose kernels synchronize with the device, by the reason."""
    found: dict[str, list[str]] = {}
    for path, mixer, task in _tasks(model, work):
        if reason := mixer.kernel.reason_to_synchronize(task):
            found.setdefault(f"{type(mixer).__name__}.kernel {reason}", []).append(path)
    return found


def _described(mixer: SoftmaxMixer, task: AttentionTask) -> str:
    kernel = type(mixer.kernel.chosen(task)).__name__
    reasons = ["documents"] if task.has_documents else []
    if task.has_window:
        reasons.append(f"window {task.window_size}")
    return f"{kernel} ({', '.join(reasons)})" if reasons else kernel


def _tasks(model: nn.Module, work: Pass) -> Iterator[tuple[str, SoftmaxMixer, AttentionTask]]:
    """The mixers with their paths, and what a pass of training asks of their kernels."""
    waiting = [("", model, work)]
    while waiting:
        path, module, work = waiting.pop()
        if isinstance(module, SoftmaxMixer):
            length = work.sequence_length
            yield (
                path,
                module,
                module.task._replace(
                    has_documents=work.has_documents,
                    num_queries=length,
                    num_keys=length,
                    device=work.device,
                    dtype=work.dtype,
                    needs_gradient=True,
                ),
            )
        if isinstance(module, Layer):
            own = module.workload(work.sequence_length)
            if own != Workload(work.sequence_length, 1.0):  # an encoder, whose sequences are no text
                work = work._replace(sequence_length=own.sequence_length, has_documents=False)
        children = [(f"{path}.{name}" if path else name, child, work) for name, child in module.named_children()]
        waiting += reversed(children)

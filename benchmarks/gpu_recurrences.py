"""The rows of recurrences of `on_gpu.py`: each rule by each kernel that computes it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_timing import Row, timed
from torch import Tensor

from ml.layers import ChunkedRecurrence, FlashLinearAttention, MambaSSM
from ml.layers.recurrences import Rule

KERNELS = (ChunkedRecurrence, FlashLinearAttention, MambaSSM)
CHUNK_SIZES = {Rule.GATED_DELTA_RULE: (32,), Rule.STATE_SPACE_DUALITY: (64,), Rule.SELECTIVE_SCAN: ()}


def recurrences(device: torch.device, tokens: int, heads: int) -> Iterator[Row]:
    """Yields the rows of one sequence: heads of 64, or as many channels of Mamba, and states of 128 or 16.

    Args:
        device: The device; "cpu" takes float32.
        tokens: Length of the sequence.
        heads: Number of heads.
    """
    cases: dict[str, tuple[Rule, Callable[..., list[Tensor]]]] = {
        "Mamba-2": (Rule.STATE_SPACE_DUALITY, _mamba2),
        "gated delta rule": (Rule.GATED_DELTA_RULE, _delta_rule),
        "Kimi delta rule": (Rule.GATED_DELTA_RULE, partial(_delta_rule, channels=(64,))),
        "Mamba": (Rule.SELECTIVE_SCAN, _mamba),
    }
    for kernel in KERNELS:  # the first call of a library compiles and times many variants
        for name, (rule, make) in cases.items():
            if rule in kernel.rules:
                measure = partial(recurrence, kernel, rule, make, tokens, heads, device)
                yield Row(f"recurrence, {tokens} tokens", f"{name}, {kernel.__name__}", measure)


def recurrence(
    kernel: type[ChunkedRecurrence],
    rule: Rule,
    make: Callable[..., list[Tensor]],
    tokens: int,
    heads: int,
    device: torch.device,
) -> dict[str, Any]:
    """Milliseconds of forward and backward pass, and its peak memory."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if obstacle := kernel().obstacle(rule, device.type, dtype):
        return {"skipped": obstacle}
    inputs = [one.requires_grad_() for one in make(tokens, heads, device, dtype)]
    compute, options = getattr(kernel(), rule.name.lower()), CHUNK_SIZES[rule]

    def step() -> None:
        torch.autograd.grad(compute(*inputs, None, None, *options)[0].sum(), inputs)

    return timed(step, device)


def _mamba2(tokens: int, heads: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    x = torch.randn(1, tokens, heads, 64, device=device, dtype=dtype)
    B, C = (torch.randn(1, tokens, 1, 128, device=device, dtype=dtype) for _ in range(2))
    return [x, torch.rand(1, tokens, heads, device=device), -torch.rand(heads, device=device), B, C]


def _delta_rule(
    tokens: int, heads: int, device: torch.device, dtype: torch.dtype, channels: tuple[int, ...] = ()
) -> list[Tensor]:
    query, key = (F.normalize(torch.randn(1, tokens, heads, 64, device=device), dim=-1) for _ in range(2))
    value = torch.randn(1, tokens, heads, 64, device=device, dtype=dtype)
    log_decay = -torch.rand(1, tokens, heads, *channels, device=device)
    return [query, key, value, log_decay, torch.rand(1, tokens, heads, device=device)]


def _mamba(tokens: int, heads: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    x = torch.randn(1, tokens, 64 * heads, device=device, dtype=dtype)
    B, C = (torch.randn(1, tokens, 16, device=device, dtype=dtype) for _ in range(2))
    return [x, torch.rand(1, tokens, 64 * heads, device=device), -torch.rand(64 * heads, 16, device=device), B, C]

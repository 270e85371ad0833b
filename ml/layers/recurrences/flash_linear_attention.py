"""Recurrences by flash-linear-attention."""

import functools
import importlib.util
import re
from typing import ClassVar

import torch
from torch import Tensor

from ml.config import configurable
from ml.layers.recurrences.chunked import Rule
from ml.layers.recurrences.library import LibraryKernel

# Log decay at the start of a document. exp(-64) of the state before is less than float32 can add to the new one, and
# sums of decays after it keep five digits.
_FORGETS = -64.0


@configurable
class FlashLinearAttention(LibraryKernel):
    """Recurrences by the Triton kernels of flash-linear-attention (Yang and Zhang, 2024), extra `fla`.

    The gated delta rule with a decay for each head or each channel, and state-space duality as linear attention with a
    decay for each head, for which groups of heads that share B and C repeat them in memory. Trains on CUDA in bfloat16
    or float16, with heads of at most 256. The kernels are compiled when they are first called, which takes some
    seconds, and are not part of the graph of a compiled block.
    """

    rules = frozenset((Rule.GATED_DELTA_RULE, Rule.STATE_SPACE_DUALITY))
    extra = "fla"
    modules: ClassVar = dict.fromkeys(rules, "fla.ops")

    def obstacle(self, rule: Rule, device_type: str, dtype: torch.dtype) -> str | None:
        return super().obstacle(rule, device_type, dtype) or _obstacle_of_compiler()

    @torch.compiler.disable
    def gated_delta_rule(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        log_decay: Tensor,
        beta: Tensor,
        initial_state: Tensor | None,
        starts: Tensor | None,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        tensors = (value, query, key, log_decay, beta, initial_state)
        if not self.takes(Rule.GATED_DELTA_RULE, *tensors):
            return super().gated_delta_rule(query, key, value, log_decay, beta, initial_state, starts, chunk_size)
        library = self.library(Rule.GATED_DELTA_RULE)
        compute = library.chunk_gated_delta_rule if log_decay.dim() == 3 else library.chunk_kda
        output, state = compute(
            query.to(value.dtype),
            key.to(value.dtype),
            value,
            _forgetting(log_decay, starts),
            beta.float(),
            scale=1.0,  # the queries are scaled
            initial_state=_wide(initial_state),
            output_final_state=True,
        )
        return output, state

    @torch.compiler.disable
    def state_space_duality(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        initial_state: Tensor | None,
        starts: Tensor | None,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        if not self.takes(Rule.STATE_SPACE_DUALITY, x, dt, A, B, C, initial_state):
            return super().state_space_duality(x, dt, A, B, C, initial_state, starts, chunk_size)
        heads_per_group = x.shape[2] // B.shape[2]
        key, query = (part.to(x.dtype).repeat_interleave(heads_per_group, dim=2) for part in (B, C))  # (B, T, N, S)
        state = None if initial_state is None else initial_state.mT  # (B, N, S, P)
        output, state = self.library(Rule.STATE_SPACE_DUALITY).chunk_simple_gla(
            query,
            key,
            (x * dt[..., None]).to(x.dtype),
            _forgetting(dt * A, starts),
            scale=1.0,
            initial_state=_wide(state),
            output_final_state=True,
        )
        return output, state.mT


def _wide(state: Tensor | None) -> Tensor | None:
    return None if state is None else state.float().contiguous()


def _forgetting(log_decay: Tensor, starts: Tensor | None) -> Tensor:
    """The log decays (B, T, N, ...) in float32, that of the first token of a document such that nothing remains."""
    log_decay = log_decay.float()
    if starts is None:
        return log_decay
    return log_decay.masked_fill(starts.view(*starts.shape, *[1] * (log_decay.dim() - 2)), _FORGETS)


@functools.cache
def _obstacle_of_compiler() -> str | None:
    """A backward pass with a decay for each head is compiled wrongly for Hopper GPUs, and the library refuses it."""
    if not torch.cuda.is_available():
        return None
    triton = importlib.import_module("triton").__version__
    version = tuple(int(number) for number in re.findall(r"\d+", triton)[:3])
    is_wrong = torch.cuda.get_device_capability()[0] == 9 and (3, 4, 0) <= version < (3, 7, 1)
    if not is_wrong or importlib.util.find_spec("tilelang") is not None:
        return None
    return f"Triton {triton} compiles it wrongly for Hopper GPUs: install Triton 3.7.1 or later, or tilelang"
